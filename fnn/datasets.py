"""Data: the disk task."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fnn.layer import check_integer, check_nonnegative


def sample_disk(
    key: jax.Array,
    num_examples: int,
    *,
    center: tuple[float, float] = (0.5, 0.5),
    radius: float = 1 / math.sqrt(2 * math.pi),
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Points uniform in the unit square; label 1 inside the disk, 0 outside.

    The default disk covers half of the square: pi radius^2 = 1/2.

    Shapes: points (num_examples, 2) of `dtype`, labels (num_examples,) int32.

    Raises:
        ValueError: num_examples is not a positive integer; center is not two numbers; radius is
            negative or not finite (a traced one passes).
    """
    num_examples = check_integer("sample_disk", "num_examples", num_examples, 1)
    check_nonnegative("sample_disk", "radius", radius)
    center, radius = jnp.asarray(center, dtype), jnp.asarray(radius, dtype)
    if center.shape != (2,):
        raise ValueError(f"sample_disk: expected center of shape (2,), got {center.shape}")
    points = jax.random.uniform(key, (num_examples, 2), dtype)
    squared_distance = jnp.sum(jnp.square(points - jnp.broadcast_to(center, points.shape)), axis=-1)
    return points, (squared_distance < jnp.square(radius)).astype(jnp.int32)
