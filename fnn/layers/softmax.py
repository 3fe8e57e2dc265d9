"""Softmax and its logarithm, along one axis. Each keeps y alone."""

import math

import jax
import jax.numpy as jnp

from fnn._checks import check_integer
from fnn._numerics import upcast
from fnn.layer import Layer
from fnn.layers._elementwise import check_axis, keep_y


def Softmax(axis: int = -1) -> Layer:
    """y = exp(x) / sum of exp(x) along the axis; dx = y (dy - sum of dy y).

    Any shape with that axis; params (). 16-bit numbers are computed in float32. If several x are
    +inf, or all are -inf, they get equal shares. torch.nn.Softmax has no default axis: its dim=None
    guesses one from the number of axes.

    Raises:
        ValueError: axis is not an integer, or x has no such axis; x or dy have another shape or are
            not floating.
    """

    def pullback(y, dy, axis):
        y = _softmax_of(y, axis, lambda y: y)
        return y * (dy - jnp.sum(dy * y, axis, keepdims=True))

    return _along_axis("Softmax", axis, softmax, pullback)


def LogSoftmax(axis: int = -1) -> Layer:
    """y = x - log of the sum of exp(x) along the axis; dx = dy - exp(y) sum of dy.

    Any shape with that axis; params (). 16-bit numbers are computed in float32. The default axis is
    Softmax's.

    Raises:
        ValueError: as Softmax.
    """

    def pullback(y, dy, axis):
        return dy - _softmax_of(y, axis, jnp.exp) * jnp.sum(dy, axis, keepdims=True)

    return _along_axis("LogSoftmax", axis, log_softmax, pullback)


def softmax(x: jax.Array, axis: int) -> jax.Array:
    """exp(x) / sum of exp(x) along the axis; see Softmax."""
    powers = jnp.exp(minus_largest(x, axis))
    return powers / jnp.sum(powers, axis, keepdims=True)


def log_softmax(x: jax.Array, axis: int) -> jax.Array:
    """x - log of the sum of exp(x) along the axis, the logarithm of softmax."""
    below = minus_largest(x, axis)
    return below - jnp.log(jnp.sum(jnp.exp(below), axis, keepdims=True))


def minus_largest(x: jax.Array, axis: int) -> jax.Array:
    """x minus the largest x along the axis; 0 where x is equal to an infinite largest.

    jax.jvp may treat the largest as a constant, because softmax does not depend on the shift.
    """
    largest = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True, initial=-jnp.inf))
    infinite = x == jnp.where(largest == -jnp.inf, -jnp.inf, jnp.inf)
    return jnp.where(infinite, 0, x) - jnp.where(infinite, 0, largest)


def _softmax_of(y, axis, function):
    """softmax(x) = function(y), from the y that forward kept.

    Except on a CPU it is divided by its sum once more, which is 1. Of a backward that begins with
    such a division XLA makes one kernel for a GPU, which reads y and dy once.
    """

    def divided(y):
        shares = function(jax.lax.optimization_barrier(y))
        return shares / jnp.sum(shares, axis, keepdims=True)

    return jax.lax.platform_dependent(y, cpu=function, default=divided)


def _along_axis(name, axis, function, pullback):
    """The layer y = function(x, axis), dx = pullback(y, dy, axis)."""
    axis = check_integer(name, "axis", axis, -math.inf)
    name = f"{name}({axis})"

    def checked(x):
        check_axis(name, x, axis)
        return function(upcast(x), axis).astype(x.dtype)

    return keep_y(
        name, checked, lambda y, dy: pullback(upcast(y), upcast(dy), axis).astype(y.dtype)
    )
