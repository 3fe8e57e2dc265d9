"""Normalization over the features of each example."""

from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_nonnegative
from fnn._numerics import broadcast_last_axis, power_of_two, unit_for_sum, upcast
from fnn.layer import Layer
from fnn.layers._frame import with_params


def LayerNorm(dim: int, eps: float = 1e-5, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale + bias with n = (x - mean) / sqrt(variance + eps), over the last axis.

    Backward, with dn = dy * scale:
    dx = (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps);
    dscale = sum of dy * n and dbias = sum of dy, over all leading axes. Ba et al., 2016.

    Residuals: x, and for each example the mean and sqrt(variance + eps). 16-bit numbers are
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

    Residuals: x, and sqrt(mean(x^2) + eps) for each example. 16-bit numbers are computed in
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

    small = unit_for_sum(4 * dim)

    def mean(values):
        return jnp.mean(values, axis=-1, keepdims=True)

    def inverse(root):
        """1 / root as two factors. The first makes numbers small, so that no sum overflows.

        At 3e38 a CPU takes 1 / root for 0.
        """
        first = jnp.where(root > 1e-3, jnp.asarray(small, root.dtype), 1)
        return first, 1 / (root * first)

    def normalize(x, center, first, second):
        return (x * first - center * first if centered else x * first) * second

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., dim))
        wide = upcast(x)
        root_eps = jnp.sqrt(jnp.asarray(eps, wide.dtype))
        unit = power_of_two([wide], -1, root_eps)
        offset = wide / unit
        center = mean(offset) if centered else None
        offset = offset - center if centered else offset
        variance = mean(jnp.square(offset)) + jnp.square(root_eps / unit)
        center = center * unit if centered else None
        root = jnp.maximum(jnp.sqrt(variance) * unit, root_eps)  # in a large unit eps may be 0
        y = normalize(wide, center, *inverse(root)) * broadcast_last_axis(params["scale"], wide)
        if centered:
            y = y + broadcast_last_axis(params["bias"], wide)
        return y.astype(x.dtype), (x, center, root)

    def backward(params, residuals, dy):
        x, center, root = residuals
        x = check_array(name, "residuals", x, (..., dim))
        dy = upcast(check_array(name, "dy", dy, x.shape, x.dtype))
        first, second = inverse(root)
        n = normalize(upcast(x), center, first, second)
        dn = dy * broadcast_last_axis(params["scale"], dy)
        examples = tuple(range(x.ndim - 1))
        grads = {"scale": jnp.sum(dy * n, axis=examples)}
        if centered:
            grads["bias"] = jnp.sum(dy, axis=examples)
        dn = dn * first
        dx = dn - n * mean(dn * n)
        dx = dx - mean(dn) if centered else dx
        return grads, (dx * second).astype(x.dtype)

    return with_params(name, params, dtype, forward, backward)
