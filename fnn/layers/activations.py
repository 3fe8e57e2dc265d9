"""Activations: layers without parameters, for x of any shape.

Each keeps one array: y if the derivative can be computed from y, else x. Keeping y is usually free,
because a Linear that follows keeps the same array.

All raise a ValueError for an x that is not floating, and for a dy of another shape than y.
"""

import math

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_choice, check_integer, check_nonnegative
from fnn._numerics import upcast
from fnn.layer import Layer
from fnn.layers._frame import without_params

# For |x| beyond these bounds the gate is exactly 0 or 1 in float64, and its derivative 0. There
# exp(-40^2 / 2) and exp(-800) are below the smallest float64, about exp(-745).
GELU_BOUND, SILU_BOUND = 40, 800


def ReLU() -> Layer:
    """y = max(x, 0); dx = dy where y > 0, else 0. Any shape; params ()."""
    return _keep_y("ReLU()", jax.nn.relu, lambda y, dy: jnp.where(y > 0, dy, 0))


def LeakyReLU(negative_slope: float = 0.01) -> Layer:
    """y = x where x > 0, else negative_slope * x; dx = dy where y > 0, else negative_slope * dy.

    Any shape; params (). The derivative at 0 is negative_slope, as in torch.nn.LeakyReLU. A slope
    below 0 is refused, because the sign of y must tell the branch.

    Raises:
        ValueError: negative_slope is negative or not a finite number. A traced one passes.
    """
    check_nonnegative("LeakyReLU", "negative_slope", negative_slope)
    if not isinstance(negative_slope, jax.core.Tracer) and negative_slope == 0:
        return ReLU()  # because 0 * -inf is NaN

    def scaled(values):
        wide = upcast(values)  # float16 may not hold the slope
        return (jnp.asarray(negative_slope, wide.dtype) * wide).astype(values.dtype)

    return _keep_y(
        f"LeakyReLU({negative_slope})",
        lambda x: jnp.where(x > 0, x, scaled(x)),
        lambda y, dy: jnp.where(y > 0, dy, scaled(dy)),
    )


def Tanh() -> Layer:
    """y = tanh(x); dx = dy (1 - y)(1 + y), as the slope is 1 - tanh(x)^2. Any shape; params ()."""
    return _keep_y("Tanh()", jnp.tanh, lambda y, dy: dy * (1 - y) * (1 + y))


def Sigmoid() -> Layer:
    """y = 1 / (1 + exp(-x)); dx = dy y (1 - y). Any shape; params ()."""
    return _keep_y("Sigmoid()", jax.nn.sigmoid, lambda y, dy: dy * y * (1 - y))


def ELU(alpha: float = 1.0) -> Layer:
    """y = x where x > 0, else alpha (exp(x) - 1); dx = dy where y > 0, else dy (y + alpha).

    Clevert et al., 2016. Any shape; params (). Only y is kept. In 16 bits dx is therefore inexact
    where x is far below 0: there y is rounded to -alpha.

    Raises:
        ValueError: alpha is negative or not a finite number. A traced one passes.
    """
    check_nonnegative("ELU", "alpha", alpha)

    def function(x):
        wide = upcast(x)  # float16 may not hold alpha
        below = jnp.asarray(alpha, wide.dtype) * jnp.expm1(jnp.where(wide > 0, 0, wide))
        return jnp.where(x > 0, x, below.astype(x.dtype))

    def pullback(y, dy):
        wide = upcast(y)
        below = upcast(dy) * (wide + jnp.asarray(alpha, wide.dtype))
        return jnp.where(y > 0, dy, below.astype(dy.dtype))

    return _keep_y(f"ELU({alpha})", function, pullback)


def Softplus() -> Layer:
    """y = log(1 + exp(x)); dx = dy (1 - exp(-y)). Any shape; params ().

    Unlike torch.nn.Softplus, it does not switch to y = x above 20.
    """
    return _keep_y("Softplus()", jax.nn.softplus, lambda y, dy: -dy * jnp.expm1(-y))


def GELU(approximate: str = "none") -> Layer:
    """y = x P(x), where P is the standard normal distribution's cumulative function.

    dx = dy (P(x) + x p(x)), with p(x) = exp(-x^2 / 2) / sqrt(2 pi). With approximate="tanh",
    P(x) = (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), and p = dP/dx.
    Hendrycks and Gimpel, 2016. Any shape; params (). y does not determine x, so x is kept.

    Raises:
        ValueError: approximate is neither "none" nor "tanh".
    """
    check_choice("GELU", "approximate", approximate, ("none", "tanh"))

    def exact(x):
        density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
        return jax.lax.erfc(-x / math.sqrt(2)) / 2, density

    def by_tanh(x):
        scale = 2 * math.sqrt(2 / math.pi)
        s = jax.nn.sigmoid(scale * (x + 0.044715 * x**3))  # (1 + tanh(u)) / 2, without cancellation
        return s, s * (1 - s) * scale * (1 + 3 * 0.044715 * jnp.square(x))

    return _gated(f"GELU({approximate!r})", exact if approximate == "none" else by_tanh, GELU_BOUND)


def SiLU() -> Layer:
    """y = x s(x) with s(x) = 1 / (1 + exp(-x)); dx = dy s(x) (1 + x (1 - s(x))).

    Elfwing et al., 2018. Any shape; params (). y does not determine x, so x is kept.
    """

    def gate(x):
        s = jax.nn.sigmoid(x)
        return s, s * (1 - s)

    return _gated("SiLU()", gate, SILU_BOUND)


def Softmax(axis: int = -1) -> Layer:
    """y = exp(x) / sum of exp(x) along the axis; dx = y (dy - sum of dy y).

    Any shape with that axis; params (). 16-bit numbers are computed in float32. If several x are
    +inf, or all are -inf, they get equal shares.

    Raises:
        ValueError: axis is not an integer, or x has no such axis.
    """
    return _along_axis(
        "Softmax",
        axis,
        softmax,
        lambda y, dy, axis: y * (dy - jnp.sum(dy * y, axis, keepdims=True)),
    )


def LogSoftmax(axis: int = -1) -> Layer:
    """y = x - log of the sum of exp(x) along the axis; dx = dy - exp(y) sum of dy.

    Any shape with that axis; params (). 16-bit numbers are computed in float32.

    Raises:
        ValueError: axis is not an integer, or x has no such axis.
    """
    return _along_axis(
        "LogSoftmax",
        axis,
        log_softmax,
        lambda y, dy, axis: dy - jnp.exp(y) * jnp.sum(dy, axis, keepdims=True),
    )


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


def _keep_y(name, function, pullback):
    """The layer y = function(x), dx = pullback(y, dy)."""

    def forward(x):
        y = function(x)
        return y, y

    return _activation(name, forward, pullback)


def _gated(name, gate, bound):
    """The layer y = x g(x), dx = dy (g(x) + x g'(x)); gate(x) is (g(x), g'(x)).

    Below -bound g is 0, above bound it is 1. Clipping x there avoids 0 times infinity. 16-bit
    numbers are computed in float32.
    """

    def forward(x):
        wide = upcast(x)
        y = jnp.maximum(wide, -bound) * gate(jnp.clip(wide, -bound, bound))[0]
        return y.astype(x.dtype), x

    def pullback(x, dy):
        wide = jnp.clip(upcast(x), -bound, bound)
        value, slope = gate(wide)
        return (upcast(dy) * (value + wide * slope)).astype(x.dtype)

    return _activation(name, forward, pullback)


def _along_axis(name, axis, function, pullback):
    """The layer y = function(x, axis), dx = pullback(y, dy, axis)."""
    axis = check_integer(name, "axis", axis, -math.inf)
    name = f"{name}({axis})"

    def checked(x):
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"{name}: expected x with an axis {axis}, got shape {x.shape}")
        return function(upcast(x), axis).astype(x.dtype)

    return _keep_y(
        name, checked, lambda y, dy: pullback(upcast(y), upcast(dy), axis).astype(y.dtype)
    )


def _activation(name, function, pullback):
    """The layer (y, kept) = function(x), dx = pullback(kept, dy); kept is of y's shape."""

    def forward(x, key):
        return function(check_array(name, "x", x, (...,)))

    def backward(kept, dy):
        return pullback(kept, check_array(name, "dy", dy, kept.shape, kept.dtype))

    return without_params(name, forward, backward)
