"""Initializers: functions (key, shape, dtype) -> array, made of JAX's.

The shape is in JAX's order (..., in, out): (dim_in, dim_out) for a matrix, and (height, width,
channels_in, channels_out) for a kernel, whose fans are the channels times height times width. A
layer that keeps its weights in another order transposes what was drawn. So every initializer of
jax.nn.initializers works as it is.

The normal ones are not truncated, as in PyTorch; JAX's functions of the same names cut them off at
two standard deviations. All that scale by a fan, and orthogonal, raise a ValueError for a shape of
fewer than two axes. constant(value), which is JAX's, makes an initializer; fnn.constant is a
schedule.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant as constant
from jax.nn.initializers import variance_scaling

from fnn._numerics import accumulation_dtype


def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform on [-a, a] with a = sqrt(6 / (fan_in + fan_out)). Glorot and Bengio, 2010."""
    return variance_scaling(1.0, "fan_avg", "uniform")(key, shape, dtype)


def xavier_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 2 / (fan_in + fan_out). Glorot and Bengio, 2010."""
    return variance_scaling(1.0, "fan_avg", "normal")(key, shape, dtype)


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform on [-a, a] with a = sqrt(6 / fan_in), for ReLU. He et al., 2015."""
    return variance_scaling(2.0, "fan_in", "uniform")(key, shape, dtype)


def kaiming_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 2 / fan_in, for ReLU. He et al., 2015."""
    return variance_scaling(2.0, "fan_in", "normal")(key, shape, dtype)


def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 1 / fan_in. LeCun et al., 1998."""
    return variance_scaling(1.0, "fan_in", "normal")(key, shape, dtype)


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A matrix with orthonormal rows or columns, whichever are fewer. Saxe et al., 2014.

    A kernel is such a matrix of shape (fan_in, channels_out). JAX draws none of 16 bits, so these
    are drawn in float32.
    """
    draw = jax.nn.initializers.orthogonal()
    return draw(key, shape, accumulation_dtype(dtype)).astype(dtype)


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 1."""
    return jax.random.normal(key, shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """All zeros. The key is not used."""
    return jnp.zeros(shape, dtype)
