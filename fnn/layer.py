"""The Layer triple and its contract. Read this file first.

A layer is three pure functions:

    init:     (key) -> params
    forward:  (params, x, key=None) -> (y, residuals)
    backward: (params, residuals, dy) -> (grads, dx)

params      Any pytree. It is () for a layer without parameters.
residuals   The saved tensors: what forward saves for backward. They occupy memory between the two
            passes, so a layer saves as little as possible.
dy, dx      The derivatives of the loss with respect to y and x. dx has x's shape and dtype.
grads       The derivatives with respect to params, with their structure, shapes and dtypes. A leaf
            that is not learned, such as BatchNorm's "mean" and "var", has grads of 0.
key         A layer that draws random numbers draws them with this key. A key means training, and
            None means evaluation.

Shapes: x is (..., features), or what the layer's docstring says, such as (..., height, width,
channels). The leading axes are free: one example without a batch axis is legal.

Dtypes: x's dtype decides the arithmetic, and y has it. If x holds integers, as for Embedding, y has
the dtype of params. Sums of 16-bit numbers accumulate in float32.

Numbers that a layer is made with may be traced by JAX. Their range is then not checked.

Errors: a layer of fnn raises a ValueError for a wrong shape, with its name, before it computes. The
check needs only shapes, so under jit it runs while JAX traces the program.
"""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class _Triple(NamedTuple):
    init: Callable[[jax.Array], Any]
    forward: Callable[..., tuple[jax.Array, Any]]
    backward: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]


class Layer(_Triple):
    """A Layer is an (init, forward, backward) triple of pure functions: see the contract above.

    `init, forward, backward = layer` unpacks it. `layer._replace(backward=other)` is the same layer
    with another learning rule. `print(layer)` shows its name and the layers inside it.

    Attributes:
        name: "Linear(2, 25)". By default the name of the function that encloses forward.
        layers: the layers inside it, or ().
        rebuild: a function: rebuild(*layers) makes the same combinator or transform from other
            layers. None for a layer without layers inside.
        settings: what a combinator or transform has beside its layers, for print: {"n": 3}. A
            primitive layer of fnn has there what fnn.statistics must know of its passes. _replace
            of one of them forgets it.
        uses_key: whether forward does something else with a key than without one, as Dropout's
            does. By default it does if a layer inside does. Training refuses such a layer without a
            key.
        couples_examples: whether, with a key, y of one example depends on the others of its batch,
            as BatchNorm's does. By default it does if a layer inside does. per_example refuses such
            a layer.

    After _replace the name stays. The inside is forgotten, because the new functions need not call
    the layers in it. What forward does is forgotten when another takes its place.
    """

    def __new__(
        cls,
        init,
        forward,
        backward,
        *,
        name=None,
        layers=(),
        rebuild=None,
        settings=None,
        uses_key=None,
        couples_examples=None,
    ) -> "Layer":
        layer = super().__new__(cls, init, forward, backward)
        name, layers = name or _enclosing_function(forward), tuple(layers)
        inside = {"name": name, "layers": layers, "rebuild": rebuild, "settings": settings or {}}
        for what, value in {"uses_key": uses_key, "couples_examples": couples_examples}.items():
            inside[what] = any(vars(inner)[what] for inner in layers) if value is None else value
        vars(layer).update(inside)  # not by assignment, which __setattr__ forbids
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Layer cannot be changed: {name} is given to Layer or _replace")

    @classmethod
    def _make(cls, functions) -> "Layer":
        return cls(*functions)

    def _replace(self, **functions) -> "Layer":
        kept = () if "forward" in functions else ("uses_key", "couples_examples")
        kept += () if self.layers or functions.keys() & {"forward", "backward"} else ("settings",)
        facts = {what: vars(self)[what] for what in ("name", *kept)}
        return Layer(*_Triple(*self)._replace(**functions), **facts)

    def __repr__(self) -> str:
        if not self.layers:
            return self.name
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        if len(self.layers) == 1:
            return f"{self.name}({', '.join([repr(self.layers[0]), *settings])})"
        rows = [f"{index}: {layer!r}" for index, layer in enumerate(self.layers)]
        inside = textwrap.indent(",\n".join(rows + settings), "  ")
        return f"{self.name}(\n{inside}\n)"


def _enclosing_function(function):
    """The name of the function that encloses `function`; its own name if there is none."""
    function = inspect.unwrap(function) if callable(function) else function
    path = getattr(function, "__qualname__", type(function).__name__)
    return (path.rpartition(".<locals>.")[0] or path).split(".")[-1]


def check_is_layer(name: str, *layers: Any) -> None:
    """Raise ValueError unless each of `layers` is a Layer."""
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"{name}: expected a Layer at position {index}, got {layer!r:.200}")


def name_of_first(layer: Layer, fact: str) -> str:
    """The name of the first and innermost layer for which `fact`, an attribute, is true."""
    while inside := [inner for inner in layer.layers if getattr(inner, fact)]:
        layer = inside[0]
    return layer.name


def transformed(layer: Layer, rebuild: Callable[..., Layer], **functions: Callable) -> Layer:
    """The Layer that a transform returns: `layer` with `functions` in place of its own.

    Args:
        rebuild: the transform itself, or functools.partial(transform, **settings). Its name becomes
            the layer's name.

    Raises:
        ValueError: `layer` is not a Layer.
    """
    name, settings = getattr(rebuild, "func", rebuild).__name__, getattr(rebuild, "keywords", {})
    check_is_layer(name, layer)
    functions = _Triple(*layer)._replace(**functions)
    return Layer(*functions, name=name, layers=(layer,), rebuild=rebuild, settings=settings)


def is_statistic(path: tuple[Any, ...]) -> bool:
    """Whether a leaf at this path of a pytree is a "mean" or "var" in a dictionary.

    Such a leaf is a statistic of the data, as BatchNorm's are. Gradients do not change it, and
    weight decay must not.
    """
    return bool(path) and getattr(path[-1], "key", None) in ("mean", "var")


def fold_key(key: jax.Array | None, index: Any) -> jax.Array | None:
    """The key of the layer, copy, step or part number `index`; None if there is no key."""
    return None if key is None else jax.random.fold_in(key, index)


@jax.tree_util.register_static
class ArrayType(NamedTuple):
    """An array's shape and dtype, kept as residuals in place of the array.

    It is a pytree without leaves.
    """

    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


def type_of(array: jax.Array) -> ArrayType:
    """The array's ArrayType."""
    return ArrayType(array.shape, array.dtype)
