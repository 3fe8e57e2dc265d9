"""Normalization over the features of each example."""

from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_nonnegative
from fnn._numerics import broadcast_last_axis, upcast
from fnn.layer import Layer
from fnn.layers._frame import with_params


def LayerNorm(dim: int, eps: float = 1e-5, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale + bias with n = (x - mean) / sqrt(variance + eps), over the last axis.

    Backward, with dn = dy * scale:
    dx = (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps);
    dscale = sum of dy * n and dbias = sum of dy, over all leading axes. Ba et al., 2016.

    Residuals: x, and for each example the mean and 1 / sqrt(variance + eps). 16-bit numbers are
    computed in float32.

    Shapes: x, y (..., dim); params {"scale": (dim,), "bias": (dim,)}, ones and zeros of `dtype`.

    Raises:
        ValueError: dim is not a positive integer; eps is negative or not finite; x, dy, params
            or residuals have another shape or are not floating.
    """
    return _normalization("LayerNorm", dim, eps, dtype, centered=True)


def RMSNorm(dim: int, eps: float = 1e-6, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale with n = x / sqrt(mean(x^2) + eps), over the last axis.

    Backward, with dn = dy * scale: dx = (dn - n * mean(dn * n)) / sqrt(mean(x^2) + eps);
    dscale = sum of dy * n over all leading axes. Zhang and Sennrich, 2019.

    Residuals: x, and 1 / sqrt(mean(x^2) + eps) for each example. 16-bit numbers are computed in
    float32.

    Shapes: x, y (..., dim); params {"scale": (dim,)}, ones of `dtype`.

    Raises:
        ValueError: as LayerNorm.
    """
    return _normalization("RMSNorm", dim, eps, dtype, centered=False)


def _normalization(kind, dim, eps, dtype, centered):
    dim = check_integer(kind, "dim", dim, 1)
    check_nonnegative(kind, "eps", eps)
    name = f"{kind}({dim})"
    params = {"scale": ((dim,), jax.nn.initializers.ones)}
    if centered:
        params["bias"] = ((dim,), jax.nn.initializers.zeros)

    def mean(values):
        return jnp.mean(values, axis=-1, keepdims=True)

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., dim))
        wide = upcast(x)
        root_eps = jnp.sqrt(jnp.asarray(eps, wide.dtype))
        unit = _power_of_two(wide, root_eps)
        center = mean(wide / unit) * unit if centered else None
        offset = wide - center if centered else wide
        scaled_variance = mean(jnp.square(offset / unit)) + jnp.square(root_eps / unit)
        inverse = jax.lax.rsqrt(scaled_variance) / unit  # 1 / sqrt(variance + eps)
        inverse = jnp.minimum(inverse, 1 / root_eps)  # in a large unit eps may be 0
        y = offset * inverse * broadcast_last_axis(params["scale"], wide)
        if centered:
            y = y + broadcast_last_axis(params["bias"], wide)
        return y.astype(x.dtype), (x, center, inverse)

    def backward(params, residuals, dy):
        x, center, inverse = residuals
        x = check_array(name, "residuals", x, (..., dim))
        dy = upcast(check_array(name, "dy", dy, x.shape, x.dtype))
        n = (upcast(x) - center if centered else upcast(x)) * inverse
        dn = dy * broadcast_last_axis(params["scale"], dy)
        examples = tuple(range(x.ndim - 1))
        grads = {"scale": jnp.sum(dy * n, axis=examples)}
        if centered:
            grads["bias"] = jnp.sum(dy, axis=examples)
        dx = dn - n * mean(dn * n)
        dx = dx - mean(dn) if centered else dx
        return grads, (dx * inverse).astype(x.dtype)

    return with_params(name, params, dtype, forward, backward)


def _power_of_two(x, root_eps):
    """For each example a power of two near its largest |x|, or near sqrt(eps) if that is larger.

    In this unit no square overflows. Dividing by a power of two rounds nothing. To jax.jvp the unit
    is a constant, because it cancels.
    """
    finite = jnp.finfo(x.dtype)
    floor = jnp.maximum(root_eps, finite.tiny)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    # XLA may replace x / unit by x * (1 / unit). For a unit above max / 4, 1 / unit is subnormal,
    # and the CPU rounds it to 0.
    largest = jnp.clip(largest, floor, finite.max / 8)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(largest), f"uint{finite.bits}")
    # Without the bits of its mantissa, a number is a power of two.
    return jax.lax.bitcast_convert_type(bits >> finite.nmant << finite.nmant, x.dtype)
