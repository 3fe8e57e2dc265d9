"""Checks of arguments. A failed check raises ValueError("name: expected what ..., got ...").

`name` is the caller, such as "Linear(2, 3)", and `what` is the argument, such as "x".
"""

import contextlib
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def check_array(
    name: str, what: str, array: Any, shape: tuple[Any, ...], dtype: Any = None
) -> jax.Array:
    """Return `array` as a jax array, converted to `dtype` if one is given.

    It must be floating point and of `shape`. In `shape`, a leading Ellipsis stands for any number
    of axes, and a string names an axis of any length.
    """
    array = as_array(name, what, array)
    has_free_axes = shape[:1] == (...,)
    lengths = shape[1:] if has_free_axes else shape
    num_free = array.ndim - len(lengths)
    fits = num_free == 0 or (has_free_axes and num_free > 0)
    if not fits or not all(
        isinstance(expected, str) or length == expected
        for length, expected in zip(array.shape[num_free:], lengths, strict=True)
    ):
        pattern = str(shape).replace("Ellipsis", "...").replace("'", "")
        raise ValueError(f"{name}: expected {what} of shape {pattern}, got {array.shape}")
    if not is_floating(array):
        raise ValueError(f"{name}: expected {what} of a floating dtype, got {array.dtype}")
    return array if dtype is None else array.astype(dtype)


def check_tree(name: str, what: str, tree: Any, like: Any) -> None:
    """Check that `tree` has the structure and the shapes of `like`, and that each leaf is floating.

    `like` is a pytree of arrays, or of jax.ShapeDtypeStruct.
    """
    expected, found = (
        jax.tree.map(lambda leaf: getattr(leaf, "shape", ()), part) for part in (like, tree)
    )
    if not have_same_shapes(tree, like):
        kind = type(tree).__name__
        raise ValueError(f"{name}: expected {what} of shapes {expected}, got a {kind}: {found}")
    for path, leaf in jax.tree.leaves_with_path(tree):
        place = what + jax.tree_util.keystr(path)
        dtype = as_array(name, place, leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name}: expected {place} of a floating dtype, got {dtype}")


def have_same_shapes(tree: Any, like: Any) -> bool:
    """Whether two trees have the same structure, and each leaf the shape of the other's."""
    (leaves, structure), (others, other_structure) = map(jax.tree.flatten, (tree, like))
    # Not by comparing trees of shapes: a node of a class of one's own may not know equality.
    shapes, other_shapes = ([getattr(a, "shape", ()) for a in part] for part in (leaves, others))
    return structure == other_structure and shapes == other_shapes


def check_copies(name: str, params: Any, n: int) -> None:
    """Check that every leaf of `params` has a first axis of length n, one entry for each copy."""
    if any(jnp.shape(leaf)[:1] != (n,) for leaf in jax.tree.leaves(params)):
        shapes = jax.tree.map(jnp.shape, params)
        raise ValueError(f"{name}: expected params with a first axis of {n}, got {shapes}")


def check_integer(name: str, what: str, value: Any, low: int, high: float = math.inf) -> Any:
    """Return `value` as an int. It must be an integer from low to high.

    A traced integer passes as it is.
    """
    if isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or not low <= integer <= high:
        if high != math.inf:
            expected = f"an integer from {low} to {high}"
        else:
            expected = "an integer" if low == -math.inf else f"an integer >= {low}"
        raise ValueError(f"{name}: expected {what} to be {expected}, got {value!r}")
    return integer


def check_sizes(name: str, what: str, value: Any, count: int, low: int) -> tuple[Any, ...]:
    """Return `value` as a tuple of `count` integers >= low. A single integer is repeated."""
    values = value if isinstance(value, tuple | list) else (value,) * count
    if len(values) != count:
        raise ValueError(f"{name}: expected {what} to be an integer or {count}, got {value!r}")
    return tuple(check_integer(name, what, size, low) for size in values)


def check_number(name: str, what: str, value: Any, low: float = -math.inf) -> None:
    """Check that `value` is a finite real scalar >= low. A traced scalar passes."""
    if not _is_number(value) or not (isinstance(value, jax.core.Tracer) or value >= low):
        expected = "a finite number" if low == -math.inf else f"a finite number >= {low}"
        raise ValueError(f"{name}: expected {what} to be {expected}, got {value!r}")


def check_nonnegative(name: str, what: str, value: Any) -> None:
    """Check that `value` is a finite real scalar >= 0. A traced scalar passes."""
    check_number(name, what, value, 0)


def check_positive(name: str, what: str, value: Any) -> None:
    """Check that `value` is a finite real scalar > 0. A traced scalar passes."""
    if not _is_number(value) or not (isinstance(value, jax.core.Tracer) or value > 0):
        raise ValueError(f"{name}: expected {what} to be a finite number above 0, got {value!r}")


def _is_number(value):
    """Whether `value` is a finite real scalar, or a traced one of which only the dtype is known."""
    if value is None or isinstance(value, bool):
        return False
    try:
        dtype = jnp.result_type(type(value) if isinstance(value, int) else value)
        is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
        is_scalar = is_real and jnp.ndim(value) == 0
        return is_scalar and (isinstance(value, jax.core.Tracer) or math.isfinite(value))
    except (TypeError, ValueError, OverflowError):
        return False


def check_integer_array(name: str, what: str, array: Any) -> jax.Array:
    """Return `array` as a jax array, as as_array does. It must have an integer dtype."""
    array = as_array(name, what, array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name}: expected {what} of an integer dtype, got {array.dtype}")
    return array


def check_key(name: str, key: Any) -> None:
    """Check that `key` is one key of jax.random.key, or of jax.random.PRNGKey."""
    dtype, shape = getattr(key, "dtype", type(key)), getattr(key, "shape", None)
    is_typed = hasattr(key, "dtype") and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_key = shape == () if is_typed else dtype == jnp.uint32 and shape in ((2,), (4,))
    if not is_key:
        got = repr(key) if shape is None else f"{dtype} of shape {shape}"
        raise ValueError(f"{name}: expected a key such as jax.random.key(0), got {got:.200}")


def as_array(name: str, what: str, array: Any) -> jax.Array:
    """Return `array` as a jax array of any dtype.

    Without jax_enable_x64, JAX wraps NumPy's integers of 64 bits: the index 2**32 + 3 becomes 3.
    Here they are clipped to 32 bits, so that a wrong index stays out of range. A function under
    jax.jit cannot do it: JAX wraps its arguments before it runs.
    """
    try:
        return jnp.asarray(clip_64_bits(array))
    except (TypeError, ValueError, OverflowError) as error:
        got = f"{array!r:.80}"
        if hasattr(array, "dtype"):
            got = f"{type(array).__name__} of dtype {array.dtype!r}"
        raise ValueError(f"{name}: expected {what} to be an array, got {got}") from error


def clip_64_bits(array: Any) -> Any:
    """A NumPy array of 64-bit integers, clipped to the range of JAX's dtype; others as they are.

    Of a list or tuple, each entry.
    """
    if isinstance(array, list | tuple):
        return [*map(clip_64_bits, array)]
    if isinstance(array, jax.Array) or getattr(array, "dtype", None) not in ("int64", "uint64"):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return array.clip(jnp.iinfo(dtype).min, jnp.iinfo(dtype).max).astype(dtype)


def check_choice(name: str, what: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of `choices`."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name}: expected {what} {', '.join(others)} or {last}, got {value!r}")


def check_type(name: str, value: Any, kind: type, expected: str) -> None:
    """Check that `value` is of the type `kind`, which `expected` describes."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: expected {expected}, got {value!r:.200}")


def is_floating(array: Any) -> bool:
    """Whether an array has a floating dtype."""
    return jnp.issubdtype(array.dtype, jnp.floating)


@contextlib.contextmanager
def note_on_error(place: str) -> Iterator[None]:
    """Add `place` to an exception that passes through, as a note below its message."""
    try:
        yield
    except Exception as error:
        error.add_note(place)
        raise
