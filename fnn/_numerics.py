"""Numerics that several modules share: dtypes of sums, norms, indices, shardings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of `dtype` are summed: float32 for 16 bits, else `dtype`."""
    is_narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if is_narrow else dtype


def upcast(array: Any) -> jax.Array:
    """`array` in its accumulation dtype."""
    array = jnp.asarray(array)
    return array.astype(accumulation_dtype(array.dtype))


def sum_of(arrays: list[jax.Array]) -> jax.Array:
    """The sum of arrays of one dtype, in that dtype; it accumulates in the accumulation dtype."""
    return sum(map(upcast, arrays)).astype(arrays[0].dtype)


def broadcast_last_axis(vector: jax.Array, like: jax.Array) -> jax.Array:
    """`vector` (features,), repeated over all leading axes to the shape and dtype of `like`.

    Written out, because jax_numpy_rank_promotion="raise" refuses to do it implicitly.
    """
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)


def log_of(number: float | jax.Array) -> float | jax.Array:
    """log(number), in 64 bits, so that 0.9999 is not rounded to float32 first; -inf for 0.

    The logarithm of a traced number has its dtype.
    """
    if isinstance(number, jax.core.Tracer):
        return jnp.log(number)
    return math.log(number) if number > 0 else -math.inf


def at_least_tiny(number: float | jax.Array, dtype: Any) -> jax.Array:
    """`number` >= 0 in `dtype`; the smallest normal one where it is, or is rounded to, less."""
    return jnp.maximum(jnp.asarray(number, dtype), jnp.finfo(dtype).tiny)


def norm(array: Any, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """sqrt(sum of squares) along `axis`, or over all axes; the axes stay, with length 1.

    The result has the accumulation dtype. The numbers are divided by the largest before they are
    squared, so that the squares cannot overflow.
    """
    array = upcast(array)
    largest = jnp.max(jnp.abs(array), axis, keepdims=True, initial=0)
    # XLA may replace x / unit by x * (1 / unit). For a unit above max / 4, 1 / unit is subnormal,
    # and the CPU rounds it to 0.
    unit = jnp.minimum(largest, jnp.finfo(array.dtype).max / 8)
    squares = jnp.square(array / jnp.where((largest == 0) | jnp.isinf(largest), 1, unit))
    # The largest number adds at least 1 to the sum. If all are 0, maximum makes the sum 1, because
    # sqrt has an infinite derivative at 0.
    root = jnp.sqrt(jnp.maximum(jnp.sum(squares, axis, keepdims=True), 1))
    return jnp.where(jnp.isinf(largest), largest, unit) * root


def global_norm(tree: Any) -> jax.Array:
    """The norm () of all the tree's leaves together, in JAX's default floating dtype."""
    norms = [norm(jnp.asarray(leaf, float)).reshape(1) for leaf in jax.tree.leaves(tree)]
    return norm(jnp.concatenate([jnp.zeros(1), *norms]))[0]


def clipping_factor(value: jax.Array, max_norm: float | jax.Array) -> jax.Array:
    """min(1, max_norm / value), of the shape and dtype of `value`, which is a norm.

    A max_norm beyond the finite positive numbers of that dtype becomes the nearest of them.
    """
    finite = jnp.finfo(value.dtype)
    limit = jnp.clip(jnp.asarray(max_norm, value.dtype), finite.tiny, finite.max)
    return limit / jnp.maximum(value, limit)


def mark_invalid(indices: jax.Array, length: int) -> jax.Array:
    """Indices as int32. Each one outside of 0 to length - 1 is replaced by `length`."""
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)  # int8 and int16 may not hold `length`
    return jnp.where((indices >= 0) & (indices < length), indices, length).astype(jnp.int32)


def cast_floating(tree: Any, dtype: Any) -> Any:
    """The tree as arrays, the floating ones converted to `dtype`."""
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, arrays
    )


def sharding_of(array: jax.Array) -> NamedSharding:
    """The sharding in an array's type, for the argument out_sharding of JAX's operations.

    On a mesh of Explicit axes JAX needs out_sharding for contractions, gathers and random draws.
    Without a mesh, or on Auto axes, this sharding is empty.
    """
    return jax.typeof(array).sharding


def sharding_of_rows(indices: jax.Array, table: jax.Array) -> NamedSharding:
    """The sharding of table[indices]: the axes of the indices, then the table's last axis."""
    rows, features = sharding_of(indices), sharding_of(table).spec[1]
    return NamedSharding(rows.mesh, PartitionSpec(*rows.spec, features))
