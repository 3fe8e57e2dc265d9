"""Numerics that several modules share: dtypes of sums, norms, indices, shardings."""

import functools
import math
from collections.abc import Sequence
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
    """log(number), in 64 bits, so that 0.9999 is not rounded to float32 first; -inf for 0.

    The logarithm of a traced number has its dtype.
    """
    if isinstance(number, jax.core.Tracer):
        return jnp.log(number)
    return math.log(number) if number > 0 else -math.inf


def unit_for_sum(count: Any) -> float:
    """A power of two in which the sum of `count` numbers is at most the largest of them.

    So a mean is computed as sum(numbers * unit) / (count * unit): its sum cannot overflow, and
    powers of two round nothing. Under jax.export a count may be symbolic; its unit is 1.
    """
    return 2.0 ** -(count - 1).bit_length() if isinstance(count, int) and count > 0 else 1.0


def power_of_two(
    arrays: Sequence[jax.Array], axis: int | tuple[int, ...] | None, floor: Any = 0
) -> jax.Array:
    """A power of two near the largest |number| along `axis`, or near `floor` if that is larger.

    In this unit no square overflows. Dividing by a power of two rounds nothing. To jax.jvp the unit
    is a constant, because it cancels. Along an axis, the axis stays, with length 1. The unit of 0
    is 1, if the floor is 0 too.
    """
    finite = jnp.finfo(arrays[0].dtype)
    along = {"axis": axis, "keepdims": axis is not None}
    largest = functools.reduce(
        jnp.maximum, (jnp.max(jnp.abs(array), initial=0, **along) for array in arrays)
    )
    largest = jnp.maximum(largest, jnp.asarray(floor, finite.dtype))
    # XLA may divide by multiplying with the reciprocal, which must not be taken for 0.
    largest = jnp.clip(jnp.where(largest == 0, 1, largest), 4 * finite.tiny, finite.max / 4)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(largest), f"uint{finite.bits}")
    # Without the bits of its mantissa, a number is a power of two.
    return jax.lax.bitcast_convert_type(bits >> finite.nmant << finite.nmant, finite.dtype)


def norm(array: Any) -> jax.Array:
    """sqrt(sum of squares) of all of the array, in the accumulation dtype."""
    unit, rest = norm_in_parts([upcast(array)])
    return unit * rest


def global_norm(tree: Any) -> jax.Array:
    """The norm () of all the tree's leaves together, in JAX's default floating dtype."""
    unit, rest = global_norm_in_parts(tree)
    return unit * rest


def global_norm_in_parts(tree: Any) -> tuple[jax.Array, jax.Array]:
    """norm_in_parts of all the tree's leaves, in JAX's default floating dtype."""
    return norm_in_parts([jnp.zeros(()), *(jnp.asarray(a, float) for a in jax.tree.leaves(tree))])


def norm_in_parts(
    arrays: Sequence[jax.Array], axis: int | tuple[int, ...] | None = None
) -> tuple[jax.Array, jax.Array]:
    """Two factors of the norm of all the arrays together: a power of two, and the rest.

    The product of the two can overflow, but the two cannot. Along an axis, the axis stays.
    """
    unit = power_of_two(arrays, axis)
    along = {"axis": axis, "keepdims": axis is not None}
    squares = sum(jnp.sum(jnp.square(array / unit), **along) for array in arrays)
    # The inner where avoids sqrt's infinite derivative at 0.
    return unit, jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def clip_norm(
    array: jax.Array, unit: jax.Array, rest: jax.Array, max_norm: float | jax.Array
) -> jax.Array:
    """array * min(1, max_norm / norm), for the norm unit * rest of norm_in_parts.

    A max_norm beyond the finite positive numbers of the dtype becomes the nearest of them.
    """
    finite = jnp.finfo(array.dtype)
    limit = jnp.clip(jnp.asarray(max_norm, array.dtype), finite.tiny, finite.max)
    unit, rest = unit.astype(array.dtype), rest.astype(array.dtype)
    clipped = array / unit * (limit / jnp.maximum(rest, 1))
    return jnp.where(unit * rest <= limit, array, clipped)


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
