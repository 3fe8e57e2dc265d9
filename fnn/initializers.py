"""Initial weights: functions (key, shape, dtype) -> array, over jax.nn.initializers.

A matrix has shape (dim_out, dim_in): its fan_in is the second axis and its fan_out the first. A
kernel of a convolution has shape (height, width, channels_in, channels_out): its fans are the
channels times height times width. Those that scale by a fan, and orthogonal, raise a ValueError
for a shape of fewer than two axes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.layer import accumulation_dtype

Initializer = Callable[..., jax.Array]


def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform on [-a, a] with a = sqrt(6 / (fan_in + fan_out)). Glorot and Bengio, 2010."""
    return _scaled(1.0, "fan_avg", "uniform", key, shape, dtype)


def xavier_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 2 / (fan_in + fan_out). Glorot and Bengio, 2010."""
    return _scaled(1.0, "fan_avg", "normal", key, shape, dtype)


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Uniform on [-a, a] with a = sqrt(6 / fan_in), for ReLU. He et al., 2015."""
    return _scaled(2.0, "fan_in", "uniform", key, shape, dtype)


def kaiming_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 2 / fan_in, for ReLU. He et al., 2015."""
    return _scaled(2.0, "fan_in", "normal", key, shape, dtype)


def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 1 / fan_in. LeCun et al., 1998."""
    return _scaled(1.0, "fan_in", "normal", key, shape, dtype)


def orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A matrix with orthonormal rows or columns, whichever are fewer. Saxe et al., 2014.

    A kernel is one as a matrix of (fan_in, channels_out).
    """
    _, out_axis = _axes(shape)
    draw = jax.nn.initializers.orthogonal(column_axis=out_axis)
    return draw(key, shape, accumulation_dtype(dtype)).astype(dtype)


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal, mean 0 and variance 1."""
    return jax.random.normal(key, shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """All zeros; the key is not used."""
    return jax.nn.initializers.zeros(key, shape, dtype)


def constant(value: float | jax.Array) -> Initializer:
    """The initializer that fills with `value`; the key is not used.

    Its full name is fnn.initializers.constant: fnn.constant is the learning rate's schedule.
    """
    return jax.nn.initializers.constant(value)


def _scaled(scale, mode, distribution, key, shape, dtype):
    in_axis, out_axis = _axes(shape)
    make = jax.nn.initializers.variance_scaling
    return make(scale, mode, distribution, in_axis, out_axis)(key, shape, dtype)


def _axes(shape):
    """The axes (in, out) of a matrix (out, in) or of a kernel (..., in, out)."""
    if len(shape) < 2:
        raise ValueError(
            f"initializers: expected the shape of a matrix or of a kernel, got {tuple(shape)}"
        )
    return (1, 0) if len(shape) == 2 else (len(shape) - 2, len(shape) - 1)
