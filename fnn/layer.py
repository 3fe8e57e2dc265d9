"""The Layer triple and its contract. Read this file first.

A layer is three pure functions:

    init:     (key) -> params
    forward:  (params, x, key=None) -> (y, residuals)
    backward: (params, residuals, dy) -> (grads, dx)

params      Any pytree. It is () for a layer without parameters.
residuals   The saved tensors: what backward needs and forward had. They are the memory that the
            layer takes between the two passes, so they are as small as the mathematics allows.
dy, dx      The derivatives of a scalar (the loss) by y and by x. dx has x's shape and dtype.
grads       The derivative by params. It has the structure, shapes and dtypes of params.
key         A layer that draws random numbers draws them with this key. None means evaluation.

Shapes: x is (..., features). The leading axes are free: one example without a batch axis is legal.

Dtypes: arithmetic runs in x's dtype, params are converted to it, and y has it. Products and sums
of 16-bit numbers accumulate in float32.

Errors: a layer raises a ValueError for a wrong shape before it computes anything. It knows from
the shapes alone; under jit the error comes while JAX traces the program.
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
    """An (init, forward, backward) triple of pure functions; the module states the contract.

    `init, forward, backward = layer` unpacks it. `layer._replace(backward=other)` is the same layer
    with another learning rule. `print(layer)` shows its name and the layers inside it.

    Attributes:
        name: "Linear(2, 25)". By default the name of the function that defined forward.
        layers: The layers that it is made of; () if it is not made of layers.
        rebuild: rebuild(*layers) is the same combinator or transform of other layers.

    After _replace the name stays, and `layers` is (): the functions need no longer use them.
    """

    def __new__(cls, init, forward, backward, *, name=None, layers=(), rebuild=None) -> "Layer":
        layer = super().__new__(cls, init, forward, backward)
        name = name or _maker_of(forward)
        vars(layer).update(name=name, layers=tuple(layers), rebuild=rebuild)
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Layer cannot be changed; _replace({name}=...) makes another")

    def _replace(self, **functions) -> "Layer":
        return Layer(*_Triple(*self)._replace(**functions), name=self.name)

    def __repr__(self) -> str:
        if not self.layers:
            return self.name
        settings = [
            f"{name}={value!r}" for name, value in getattr(self.rebuild, "keywords", {}).items()
        ]
        if len(self.layers) == 1:
            return f"{self.name}({', '.join([repr(self.layers[0]), *settings])})"
        rows = [f"{index}: {layer!r}" for index, layer in enumerate(self.layers)]
        inside = textwrap.indent(",\n".join(rows + settings), "  ")
        return f"{self.name}(\n{inside}\n)"


def _maker_of(function):
    """The name of the function in which a function is defined; its own name if there is none."""
    function = inspect.unwrap(function) if callable(function) else function
    path = getattr(function, "__qualname__", type(function).__name__)
    return (path.rpartition(".<locals>.")[0] or path).split(".")[-1]


def check_is_layer(name: str, *layers: Any) -> None:
    """Raise ValueError unless each of `layers` is a Layer."""
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"{name}: expected a Layer at position {index}, got {layer!r:.200}")


def transformed(layer: Layer, rebuild: Callable[..., Layer], **functions: Callable) -> Layer:
    """`layer` with other functions, as the transform `rebuild`, which has them made, returns it.

    `rebuild` is the transform, or a functools.partial of it with its settings.

    Raises:
        ValueError: `layer` is not a Layer.
    """
    name = getattr(rebuild, "func", rebuild).__name__
    check_is_layer(name, layer)
    functions = _Triple(*layer)._replace(**functions)
    return Layer(*functions, name=name, layers=(layer,), rebuild=rebuild)


@jax.tree_util.register_static
class ArrayType(NamedTuple):
    """The shape and the dtype of an array that residuals need not hold: a pytree without leaves."""

    shape: tuple[int, ...]
    dtype: Any


def type_of(array: jax.Array) -> ArrayType:
    return ArrayType(array.shape, array.dtype)
