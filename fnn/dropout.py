"""Dropout: zeros at random places, while training."""

import jax
import jax.numpy as jnp

from fnn.layer import Layer, check_array, check_nonnegative, shape_token, without_params


def Dropout(rate: float) -> Layer:
    """y = x m / (1 - rate), dx = dy m / (1 - rate), with m = 0 with probability `rate`, else 1.

    Without a key, in evaluation mode, y = x and dx = dy. Srivastava et al., 2014.

    The residuals are the mask m, a byte an element: to draw it again from the key would take
    more time than all of the rest.

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
        kept = jnp.asarray(1 - rate, values.dtype)
        return jnp.where(mask, values / jnp.where(kept > 0, kept, 1), 0)

    def forward(x, key):
        x = check_array(name, "x", x, (...,))
        if key is None:
            return x, (None, shape_token(x))
        sharding = jax.typeof(x).sharding  # on a mesh of Explicit axes each device draws its own
        numbers = jax.random.uniform(key, x.shape, jnp.float32, out_sharding=sharding)
        mask = numbers < jnp.asarray(1 - rate, jnp.float32)
        return drop(mask, x), (mask, shape_token(x))

    def backward(residuals, dy):
        mask, token = residuals
        dy = check_array(name, "dy", dy, token.shape[1:], token.dtype)
        return dy if mask is None else drop(mask, dy)

    return without_params(name, forward, backward)
