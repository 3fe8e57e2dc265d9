"""Activations made of pieces: a comparison selects the piece.

Most keep y alone. It is usually free, because a Linear that follows keeps the same array.

All raise a ValueError for an x that is not floating, and for a dy of another shape than y.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import (
    check_array,
    check_integer,
    check_nonnegative,
    check_number,
    check_positive,
)
from fnn._numerics import at_least_tiny, broadcast_last_axis, upcast
from fnn.layer import Layer, type_of
from fnn.layers._elementwise import keep_y
from fnn.layers._frame import with_params, without_params

# The fixed point of means 0 and variances 1: Klambauer et al., 2017.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def ReLU() -> Layer:
    """y = max(x, 0); dx = dy where y > 0, else 0. Any shape; params ()."""
    return keep_y("ReLU()", jax.nn.relu, lambda y, dy: jnp.where(y > 0, dy, 0))


def LeakyReLU(negative_slope: float = 0.01) -> Layer:
    """y = x where x > 0, else negative_slope * x; dx = dy where y > 0, else negative_slope * dy.

    Any shape; params (). The derivative at 0 is negative_slope, as in torch.nn.LeakyReLU. Unlike
    there, a slope below 0 is refused, because the sign of y must tell the branch; see PReLU.

    Raises:
        ValueError: negative_slope is negative or not a finite number. A traced one passes.
    """
    check_nonnegative("LeakyReLU", "negative_slope", negative_slope)
    if not isinstance(negative_slope, jax.core.Tracer) and negative_slope == 0:
        return ReLU()  # because 0 * -inf is NaN

    def scaled(values):
        wide = upcast(values)  # float16 may not hold the slope
        return (jnp.asarray(negative_slope, wide.dtype) * wide).astype(values.dtype)

    return keep_y(
        f"LeakyReLU({negative_slope})",
        lambda x: jnp.where(x > 0, x, scaled(x)),
        lambda y, dy: jnp.where(y > 0, dy, scaled(dy)),
    )


def PReLU(num_parameters: int = 1, init: float = 0.25, *, dtype: Any = jnp.float32) -> Layer:
    """y = x where x > 0, else W x; dx = dy where x > 0, else W dy; dW = sum of dy x where x <= 0.

    He et al., 2015. The slope W is trained, and may become negative. Then the sign of y does not
    tell the branch, so x is kept. Weight decay would draw the slopes to 0.

    Shapes: params {"W": (num_parameters,)}. With one parameter x has any shape. With several, x is
    (..., num_parameters): each channel has its own slope.

    Raises:
        ValueError: num_parameters is not a positive integer; init is not a finite number; x, dy or
            params have another shape or are not floating.
    """
    num_parameters = check_integer("PReLU", "num_parameters", num_parameters, 1)
    check_number("PReLU", "init", init)
    name, is_shared = f"PReLU({num_parameters})", num_parameters == 1
    shape = (...,) if is_shared else (..., num_parameters)

    def slopes(params, like):
        return broadcast_last_axis(params["W"].reshape(() if is_shared else -1), like)

    def forward(params, x, key=None):
        x = check_array(name, "x", x, shape)
        wide = upcast(x)
        return jnp.where(x > 0, x, (slopes(params, wide) * wide).astype(x.dtype)), x

    def backward(params, x, dy):
        x = check_array(name, "residuals", x, shape)
        dy = check_array(name, "dy", dy, x.shape, x.dtype)
        wide = upcast(dy)
        dx = jnp.where(x > 0, dy, (slopes(params, wide) * wide).astype(dy.dtype))
        axes = tuple(range(x.ndim if is_shared else x.ndim - 1))
        dW = jnp.sum(jnp.where(x > 0, 0, wide * upcast(x)), axes)
        return {"W": dW.reshape(num_parameters)}, dx

    params = {"W": ((num_parameters,), jax.nn.initializers.constant(init))}
    return with_params(name, params, dtype, forward, backward)


def Threshold(threshold: float, value: float) -> Layer:
    """y = x where x > threshold, else `value`; dx = dy where x > threshold, else 0.

    Any shape; params (). Residuals: for each element a byte, whether x <= threshold, because y need
    not tell it.

    Raises:
        ValueError: threshold or value is not a finite number. A traced one passes.
    """
    check_number("Threshold", "threshold", threshold)
    check_number("Threshold", "value", value)
    name = f"Threshold({threshold}, {value})"

    def forward(x, key):
        x = check_array(name, "x", x, (...,))
        is_below = x <= jnp.asarray(threshold, x.dtype)  # not so for NaN, which stays
        return jnp.where(is_below, jnp.asarray(value, x.dtype), x), (is_below, type_of(x))

    def backward(residuals, dy):
        is_below, x_type = residuals
        return jnp.where(is_below, 0, check_array(name, "dy", dy, *x_type))

    return without_params(name, forward, backward)


def Hardtanh(low: float = -1.0, high: float = 1.0) -> Layer:
    """y = x from low to high, low below and high above; dx = dy where low < y < high, else 0.

    Any shape; params (). The derivative at low and at high is 0, as in torch.nn.Hardtanh.

    Raises:
        ValueError: low or high is not a finite number, or low >= high. A traced one passes.
    """
    check_number("Hardtanh", "low", low)
    check_number("Hardtanh", "high", high)
    is_traced = any(isinstance(number, jax.core.Tracer) for number in (low, high))
    if not is_traced and low >= high:
        raise ValueError(f"Hardtanh: expected low < high, got {low!r} and {high!r}")
    return _clipped(f"Hardtanh({low}, {high})", low, high, lambda x: x)


def ReLU6() -> Layer:
    """y = min(max(x, 0), 6); dx = dy where 0 < y < 6, else 0. Any shape; params ()."""
    return _clipped("ReLU6()", 0, 6, lambda x: x)


def Hardsigmoid() -> Layer:
    """y = (x + 3) / 6, but 0 below x = -3 and 1 above x = 3; dx = dy / 6 where 0 < y < 1, else 0.

    Howard et al., 2019. Any shape; params (). Other libraries have other slopes and bounds.
    """
    return _clipped("Hardsigmoid()", 0, 1, lambda x: (x + 3) / 6, 6)


def ELU(alpha: float = 1.0) -> Layer:
    """y = x where x > 0, else alpha (exp(x) - 1); dx = dy where y > 0, else dy (y + alpha).

    Clevert et al., 2016. Any shape; params (). Only y is kept. In 16 bits dx is therefore inexact
    where x is far below 0: there y is rounded to -alpha. Unlike in torch.nn.ELU, alpha is not below
    0, because the sign of y must tell the branch.

    Raises:
        ValueError: alpha is negative or not a finite number. A traced one passes.
    """
    check_nonnegative("ELU", "alpha", alpha)
    return _exponential_below_0(f"ELU({alpha})", alpha)


def CELU(alpha: float = 1.0) -> Layer:
    """y = x where x > 0, else alpha (exp(x / alpha) - 1).

    dx = dy where y > 0, else dy (y + alpha) / alpha. Barron, 2017. Unlike ELU's, the derivative at
    0 is 1 for each alpha. Any shape; params (). Only y is kept, and dx is inexact where ELU's is.
    Unlike in torch.nn.CELU, alpha is above 0.

    Raises:
        ValueError: alpha is not a finite number above 0. A traced one passes.
    """
    check_positive("CELU", "alpha", alpha)
    return _exponential_below_0(f"CELU({alpha})", alpha, width=alpha)


def SELU() -> Layer:
    """y = s x where x > 0, else s a (exp(x) - 1); dx = dy s where y > 0, else dy (y + s a).

    s = 1.0507... and a = 1.6732... keep means near 0 and variances near 1 through many layers.
    Klambauer et al., 2017. Any shape; params (). Only y is kept, and dx is inexact where ELU's is.
    """
    return _exponential_below_0("SELU()", SELU_ALPHA, scale=SELU_SCALE)


def Maxout(pieces: int) -> Layer:
    """y[i] = the largest of x[pieces * i + k] over k = 0, ..., pieces - 1.

    Backward: dx gets dy at the place of the largest, the first of equal ones, and 0 elsewhere. A
    NaN makes y NaN. After Linear(dim_in, pieces * n), y is the largest of `pieces` linear functions
    of the input. Goodfellow et al., 2013. The pieces of one y are neighbours in x, as in thinc.

    Residuals: the place k of each y, a byte for up to 256 pieces.

    Shapes: x (..., pieces * n), y (..., n); params ().

    Raises:
        ValueError: pieces is not a positive integer, or does not divide x's features; x or dy have
            another shape or are not floating.
    """
    pieces = check_integer("Maxout", "pieces", pieces, 1)
    name = f"Maxout({pieces})"
    place_dtype = jnp.uint8 if pieces <= 256 else jnp.int32

    def forward(x, key):
        x = check_array(name, "x", x, (..., "features"))
        features = x.shape[-1]
        if features % pieces:
            raise ValueError(f"{name}: expected x of shape (..., {pieces} * n), got {x.shape}")
        groups = x.reshape(*x.shape[:-1], features // pieces, pieces)
        y = jnp.max(groups, axis=-1)
        is_smaller = groups < y[..., None]
        places = jax.lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)
        place = jnp.min(jnp.where(is_smaller, pieces - 1, places), axis=-1)
        return y, (place.astype(place_dtype), type_of(y))

    def backward(residuals, dy):
        place, y_type = residuals
        dy = check_array(name, "dy", dy, *y_type)
        shape = *dy.shape, pieces
        is_place = place[..., None] == jax.lax.broadcasted_iota(place_dtype, shape, dy.ndim)
        dx = jnp.where(is_place, dy[..., None], 0)
        return dx.reshape(*dy.shape[:-1], dy.shape[-1] * pieces)

    return without_params(name, forward, backward)


def _clipped(name, low, high, line, width=1):
    """y = line(x), but at least low and at most high; dx = dy / width where low < y < high."""

    def bounds(dtype):
        return jnp.asarray(low, dtype), jnp.asarray(high, dtype)

    def pullback(y, dy):
        lowest, highest = bounds(y.dtype)
        return jnp.where((lowest < y) & (y < highest), dy / width, 0)

    return keep_y(name, lambda x: jnp.clip(line(x), *bounds(x.dtype)), pullback)


def _exponential_below_0(name, alpha, scale=1, width=1):
    """y = scale x where x > 0, else scale alpha (exp(x / width) - 1).

    dx = scale dy where y > 0, else dy (y + scale alpha) / width.
    """

    def function(x):
        wide = upcast(x)  # float16 may not hold alpha
        depth = jnp.asarray(scale * alpha, wide.dtype)
        below = depth * jnp.expm1(jnp.where(wide > 0, 0, wide) / at_least_tiny(width, wide.dtype))
        return jnp.where(x > 0, (scale * wide).astype(x.dtype), below.astype(x.dtype))

    def pullback(y, dy):
        wide = upcast(dy)
        height = upcast(y) + jnp.asarray(scale * alpha, wide.dtype)
        slope = height / at_least_tiny(width, wide.dtype)
        return jnp.where(y > 0, scale * wide, wide * slope).astype(dy.dtype)

    return keep_y(name, function, pullback)
