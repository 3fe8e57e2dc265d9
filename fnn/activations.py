"""Elementwise activations. Each keeps only y, which the next Linear keeps as its x anyway."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn.layer import Layer, check_array, check_nonnegative, check_tree


def ReLU() -> Layer:
    """y = max(x, 0); dx = dy where y > 0, else 0. Any shape; params ()."""
    return _elementwise("ReLU()", jax.nn.relu, lambda y, dy: jnp.where(y > 0, dy, 0))


def LeakyReLU(negative_slope: float = 0.01) -> Layer:
    """y = x where x > 0, else negative_slope * x; dx = dy where y > 0, else negative_slope * dy.

    Any shape; params (). The derivative at 0 is negative_slope, as in torch.nn.LeakyReLU. With a
    slope below 0, y would not tell the two branches apart.

    Raises:
        ValueError: negative_slope is negative or not a finite number. A traced one passes.
    """
    check_nonnegative("LeakyReLU", "negative_slope", negative_slope)
    if not isinstance(negative_slope, jax.core.Tracer) and negative_slope == 0:
        return ReLU()  # 0 * -inf is not a number

    def scaled(values):
        return jnp.asarray(negative_slope, values.dtype) * values

    return _elementwise(
        f"LeakyReLU({negative_slope})",
        lambda x: jnp.where(x > 0, x, scaled(x)),
        lambda y, dy: jnp.where(y > 0, dy, scaled(dy)),
    )


def Tanh() -> Layer:
    """y = tanh(x); dx = dy (1 - y)(1 + y). Any shape; params ()."""
    return _elementwise("Tanh()", jnp.tanh, lambda y, dy: dy * (1 - y) * (1 + y))


def Sigmoid() -> Layer:
    """y = 1 / (1 + exp(-x)); dx = dy y (1 - y). Any shape; params ()."""
    return _elementwise("Sigmoid()", jax.nn.sigmoid, lambda y, dy: dy * y * (1 - y))


def _elementwise(
    name: str,
    function: Callable[[jax.Array], jax.Array],
    pullback: Callable[[jax.Array, jax.Array], jax.Array],
) -> Layer:
    """The layer y = function(x), dx = pullback(y, dy)."""

    def init(key):
        return ()

    def forward(params, x, key=None):
        check_tree(name, "params", params, ())
        y = function(check_array(name, "x", x, (...,)))
        return y, y

    def backward(params, y, dy):
        check_tree(name, "params", params, ())
        return (), pullback(y, check_array(name, "dy", dy, y.shape, y.dtype))

    return Layer(init, forward, backward)
