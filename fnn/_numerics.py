"""Numerics that several rooms share: dtypes of sums, norms, indices, shardings."""

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
    """`vector` (features,) along the last axis of an array with the shape and dtype of `like`.

    Written out, because jax_numpy_rank_promotion="raise" refuses to do it implicitly.
    """
    return jnp.broadcast_to(vector.astype(like.dtype), like.shape)


def log_of(number: float | jax.Array) -> float | jax.Array:
    """log(number). Python takes it in 64 bits, so that a number near 1 is not rounded before.

    JAX takes the logarithm of a traced number, in the number's own dtype.
    """
    if isinstance(number, jax.core.Tracer):
        return jnp.log(number)
    return math.log(number) if number > 0 else -math.inf


def norm(array: Any, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """sqrt(sum of squares) along `axis`, or over all axes; the axes stay, with length 1.

    The result has the accumulation dtype. Squares are taken in units of the largest number, so
    that they do not overflow where the norm does not.
    """
    array = upcast(array)
    unit = unit_of_squares(array, axis)
    squares = jnp.square(array / unit)
    # The sum is at least 1, or 0 where all numbers are 0: there sqrt's derivative is infinite.
    root = jnp.sqrt(jnp.maximum(jnp.sum(squares, axis, keepdims=True), 1))
    return jnp.max(jnp.abs(array), axis, keepdims=True, initial=0) * root


def unit_of_squares(array: jax.Array, axis: int | tuple[int, ...] | None) -> jax.Array:
    """The largest absolute value along `axis`, which stays; 1 where that is 0 or infinite."""
    largest = jnp.max(jnp.abs(array), axis, keepdims=True, initial=0)
    return jnp.where((largest == 0) | jnp.isinf(largest), 1, largest)


def global_norm(tree: Any) -> jax.Array:
    """The norm () of all the tree's leaves together, in JAX's default floating dtype."""
    norms = [norm(jnp.asarray(leaf, float)).reshape(1) for leaf in jax.tree.leaves(tree)]
    return norm(jnp.concatenate([jnp.zeros(1), *norms]))[0]


def clipping_factor(norm: jax.Array, max_norm: float | jax.Array) -> jax.Array:
    """min(1, max_norm / norm), of norm's shape and dtype.

    A max_norm beyond the finite positive numbers of that dtype becomes the nearest of them.
    """
    finite = jnp.finfo(norm.dtype)
    limit = jnp.clip(jnp.asarray(max_norm, norm.dtype), finite.tiny, finite.max)
    return limit / jnp.maximum(norm, limit)


def valid_or_length(indices: jax.Array, length: int) -> jax.Array:
    """Indices as int32. Those outside of 0 to length - 1, negative ones too, become `length`."""
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)  # which has room for the length
    return jnp.where((indices >= 0) & (indices < length), indices, length).astype(jnp.int32)


def sharding_of(array: jax.Array) -> NamedSharding:
    """The sharding in an array's type, for the argument out_sharding of JAX's operations.

    On a mesh of Explicit axes JAX asks where the result of a contraction, a gather or a random draw
    shall lie. With no mesh, or on Auto axes, this sharding states nothing.
    """
    return jax.typeof(array).sharding


def sharding_of_rows(indices: jax.Array, table: jax.Array) -> NamedSharding:
    """The sharding of table[indices]: the axes of the indices, then the table's last axis."""
    rows, features = sharding_of(indices), sharding_of(table).spec[1]
    return NamedSharding(rows.mesh, PartitionSpec(*rows.spec, features))
