"""Initial weights: functions (key, shape, dtype) -> array, over jax.nn.initializers.

A weight has shape (dim_out, dim_in), so its fan_out is the first axis and its fan_in the second.
"""

from typing import Any

import jax
import jax.numpy as jnp


def xavier_uniform(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform on [-a, a] with a = sqrt(6 / (fan_in + fan_out)). Glorot and Bengio, 2010."""
    return jax.nn.initializers.glorot_uniform(in_axis=1, out_axis=0)(key, shape, dtype)


def xavier_normal(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 2 / (fan_in + fan_out). Glorot and Bengio, 2010."""
    variance_scaling = jax.nn.initializers.variance_scaling
    return variance_scaling(1.0, "fan_avg", "normal", in_axis=1, out_axis=0)(key, shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """All zeros; the key is not used."""
    return jax.nn.initializers.zeros(key, shape, dtype)
