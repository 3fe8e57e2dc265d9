"""What activations share: layers without parameters whose y has x's shape and dtype."""

from collections.abc import Callable

import jax

from fnn._checks import check_array
from fnn.layer import Layer
from fnn.layers._frame import without_params


def keep_y(
    name: str,
    function: Callable[[jax.Array], jax.Array],
    pullback: Callable[[jax.Array, jax.Array], jax.Array],
) -> Layer:
    """The layer y = function(x), dx = pullback(y, dy)."""

    def forward(x, key):
        y = function(check_array(name, "x", x, (...,)))
        return y, y

    return without_params(name, forward, _checked(name, pullback))


def keep_x(
    name: str,
    function: Callable[[jax.Array], jax.Array],
    pullback: Callable[[jax.Array, jax.Array], jax.Array],
) -> Layer:
    """The layer y = function(x), dx = pullback(x, dy)."""

    def forward(x, key):
        x = check_array(name, "x", x, (...,))
        return function(x), x

    return without_params(name, forward, _checked(name, pullback))


def check_axis(name: str, x: jax.Array, axis: int) -> None:
    """Check that x has the axis."""
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{name}: expected x with an axis {axis}, got shape {x.shape}")


def _checked(name, pullback):
    """pullback, which takes no dy of another shape than what forward kept."""

    def backward(kept, dy):
        return pullback(kept, check_array(name, "dy", dy, kept.shape, kept.dtype))

    return backward
