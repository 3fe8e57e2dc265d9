"""Dropout: zeros at random places, while training."""

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_key, check_nonnegative
from fnn._numerics import sharding_of, upcast
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params


def Dropout(rate: float) -> Layer:
    """y = x m / (1 - rate), dx = dy m / (1 - rate), with m = 0 with probability `rate`, else 1.

    Without a key, in evaluation mode, y = x and dx = dy. make_train_step and make_train_epoch ask
    for a key. Srivastava et al., 2014.

    Residuals: the mask m, a byte for each element, because drawing it again would be slow.

    Any shape; params ().

    Raises:
        ValueError: rate is not a number from 0 to 1. A traced one passes.
    """
    check_nonnegative("Dropout", "rate", rate)
    if not isinstance(rate, jax.core.Tracer):
        rate = float(rate)
        if rate > 1:
            raise ValueError(f"Dropout: expected rate to be a number from 0 to 1, got {rate!r}")
    name = f"Dropout({rate})"

    def drop(mask, values):
        wide = upcast(values)
        keep_rate = jnp.asarray(1 - rate, wide.dtype)
        # At rate 1 nothing is kept. The inner where avoids 0 / 0.
        kept = wide / jnp.where(keep_rate > 0, keep_rate, 1)
        return jnp.where(mask, kept.astype(values.dtype), 0)

    def forward(x, key):
        x = check_array(name, "x", x, (...,))
        if key is None:
            return x, (None, type_of(x))
        check_key(name, key)
        numbers = jax.random.uniform(key, x.shape, jnp.float32, out_sharding=sharding_of(x))
        mask = numbers < jnp.asarray(1 - rate, jnp.float32)
        return drop(mask, x), (mask, type_of(x))

    def backward(residuals, dy):
        mask, x_type = residuals
        dy = check_array(name, "dy", dy, *x_type)
        return dy if mask is None else drop(mask, dy)

    return without_params(name, forward, backward, uses_key=True)
