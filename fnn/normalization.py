"""Normalization over the features of each example."""

from typing import Any

import jax
import jax.numpy as jnp

from fnn.layer import Layer, check_array, check_integer, check_nonnegative, check_tree, widen


def LayerNorm(dim: int, eps: float = 1e-5, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale + bias with n = (x - mean) / sqrt(variance + eps), over the last axis.

    Backward, with dn = dy * scale:
    dx = (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps);
    dscale = sum of dy * n and dbias = sum of dy, over all leading axes. Ba et al., 2016.

    x is kept, and two numbers an example: the mean and the root's inverse. 16-bit numbers are
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

    x is kept, and the root's inverse for each example. 16-bit numbers are computed in float32.

    Shapes: x, y (..., dim); params {"scale": (dim,)}, ones of `dtype`.

    Raises:
        ValueError: as LayerNorm.
    """
    return _normalization("RMSNorm", dim, eps, dtype, centered=False)


def _normalization(kind, dim, eps, dtype, centered):
    dim = check_integer(kind, "dim", dim, 1)
    check_nonnegative(kind, "eps", eps)
    name = f"{kind}({dim})"
    shape = jax.ShapeDtypeStruct((dim,), dtype)
    like = {"scale": shape, "bias": shape} if centered else {"scale": shape}

    def init(key):
        scale = {"scale": jnp.ones(dim, dtype)}
        return {**scale, "bias": jnp.zeros(dim, dtype)} if centered else scale

    def mean(values):
        return jnp.mean(values, axis=-1, keepdims=True)

    def along_features(leaf, x):
        return jnp.broadcast_to(leaf.astype(x.dtype), x.shape)

    def forward(params, x, key=None):
        check_tree(name, "params", params, like)
        x = check_array(name, "x", x, (..., dim))
        wide = widen(x)
        center = mean(wide) if centered else None
        offset = wide - center if centered else wide
        inverse = jax.lax.rsqrt(mean(jnp.square(offset)) + jnp.asarray(eps, wide.dtype))
        y = offset * inverse * along_features(params["scale"], wide)
        if centered:
            y = y + along_features(params["bias"], wide)
        return y.astype(x.dtype), (x, center, inverse)

    def backward(params, residuals, dy):
        check_tree(name, "params", params, like)
        x, center, inverse = residuals
        x = check_array(name, "residuals", x, (..., dim))
        dy = widen(check_array(name, "dy", dy, x.shape, x.dtype))
        offset = widen(x) - center if centered else widen(x)
        leading, dn = tuple(range(x.ndim - 1)), dy * along_features(params["scale"], dy)
        grads = {"scale": jnp.sum(dy * (offset * inverse), axis=leading)}
        along_offset = offset * (mean(dn * offset) * jnp.square(inverse))
        if centered:
            grads["bias"] = jnp.sum(dy, axis=leading)
            dn = dn - mean(dn)
        grads = {leaf: grad.astype(params[leaf].dtype) for leaf, grad in grads.items()}
        return grads, ((dn - along_offset) * inverse).astype(x.dtype)

    return Layer(init, forward, backward)
