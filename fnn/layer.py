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

from fnn._checks import check_tree


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

    def __new__(cls, init, forward, backward, *, name=None, layers=(), rebuild=None):
        layer = super().__new__(cls, init, forward, backward)
        layer.name, layer.layers, layer.rebuild = name or _maker_of(forward), layers, rebuild
        return layer

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


def with_params(
    name: str,
    params: dict[str, tuple[tuple[int, ...], Callable[..., jax.Array]]],
    dtype: Any,
    forward: Callable[..., tuple[jax.Array, Any]],
    backward: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]],
) -> Layer:
    """The frame of every layer with parameters: it draws them, checks them, and rounds the grads.

    Args:
        params: for each parameter its shape and its initializer (key, shape, dtype) -> array.
            Parameter number i is drawn with fold_in(key, i).
        dtype: the dtype of the parameters.
        forward, backward: those of the contract. The grads may be wider than the parameters.
    """
    like = {leaf: jax.ShapeDtypeStruct(shape, dtype) for leaf, (shape, _) in params.items()}

    def init(key):
        return {
            leaf: initializer(jax.random.fold_in(key, index), shape, dtype)
            for index, (leaf, (shape, initializer)) in enumerate(params.items())
        }

    def checked_forward(params, x, key=None):
        check_tree(name, "params", params, like)
        return forward(params, x, key)

    def checked_backward(params, residuals, dy):
        check_tree(name, "params", params, like)
        grads, dx = backward(params, residuals, dy)
        return {leaf: grads[leaf].astype(params[leaf].dtype) for leaf in params}, dx

    return Layer(init, checked_forward, checked_backward, name=name)


def without_params(
    name: str,
    forward: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    backward: Callable[[Any, jax.Array], jax.Array],
) -> Layer:
    """The frame of every layer without: forward(x, key) -> (y, residuals), backward(...) -> dx."""

    def checked_forward(params, x, key=None):
        check_tree(name, "params", params, ())
        return forward(x, key)

    def checked_backward(params, residuals, dy):
        check_tree(name, "params", params, ())
        return (), backward(residuals, dy)

    return Layer(lambda key: (), checked_forward, checked_backward, name=name)


@jax.tree_util.register_static
class ArrayType(NamedTuple):
    """The shape and the dtype of an array that residuals need not hold: a pytree without leaves."""

    shape: tuple[int, ...]
    dtype: Any


def type_of(array: jax.Array) -> ArrayType:
    return ArrayType(array.shape, array.dtype)
