"""The Layer triple, its contract, and the checks by which every layer keeps it.

A layer is three pure functions:

    init:     (key) -> params
    forward:  (params, x, key=None) -> (y, residuals)
    backward: (params, residuals, dy) -> (grads, dx)

params      any pytree; () for a layer without parameters.
residuals   what backward needs and forward had, as small a pytree as will do: it is the
            layer's memory cost between the two passes.
dy, dx      cotangents: the derivatives of a scalar (the loss) by y and by x. dx has x's shape
            and dtype.
grads       the derivative by params: their structure, shapes and dtypes.
key         randomness, for layers that need it; None means evaluation. A layer that needs none
            ignores it.

Layers work on (..., features), so that one example without a batch axis is legal. Arithmetic
runs in x's dtype, with params converted to it, and y has that dtype; products and sums of
16-bit numbers accumulate in float32. A layer refuses what has the wrong shape with a ValueError,
from shapes alone, before it computes anything; under jit that is while the program is traced.
"""

import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Layer(NamedTuple):
    """An (init, forward, backward) triple of pure functions; see the contract above.

    `layer._replace(backward=other)` is the same layer with another learning rule.
    """

    init: Callable[[jax.Array], Any]
    forward: Callable[..., tuple[jax.Array, Any]]
    backward: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]


def without_params(
    name: str,
    forward: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    backward: Callable[[Any, jax.Array], jax.Array],
) -> Layer:
    """The layer with params () of forward(x, key) -> (y, residuals), backward(residuals, dy)."""

    def init(key):
        return ()

    def checked_forward(params, x, key=None):
        check_tree(name, "params", params, ())
        return forward(x, key)

    def checked_backward(params, residuals, dy):
        check_tree(name, "params", params, ())
        return (), backward(residuals, dy)

    return Layer(init, checked_forward, checked_backward)


class Parts(NamedTuple):
    """What a layer is made of: its kind, and the layers that rebuild(*layers) makes it of."""

    layer: Layer
    kind: str
    layers: tuple[Layer, ...]
    rebuild: Callable[..., Layer]


def made_of(layers: tuple[Layer, ...], kind: str, rebuild: Callable[..., Layer], layer: Layer):
    """`layer`, whose backward remembers its parts, for what looks inside (summary, observe)."""
    layer.backward.parts = Parts(layer, kind, layers, rebuild)
    return layer


def parts_of(layer: Layer) -> Parts | None:
    """The parts of a layer that made_of has returned; None where a function has been replaced."""
    parts = getattr(layer.backward, "parts", None)
    return parts if parts and parts.layer == layer else None


def check_array(
    name: str, what: str, array: Any, shape: tuple[Any, ...], dtype: Any = None
) -> jax.Array:
    """`array` as a jax array, converted to `dtype` where one is given.

    Raises ValueError unless it is floating point and of `shape`, in which a leading Ellipsis
    stands for any number of axes and a name for an axis of any length.
    """
    array = _as_array(name, what, array)
    lengths, num_leading = shape, 0
    if shape[:1] == (...,):
        lengths, num_leading = shape[1:], array.ndim - len(shape) + 1
    if (
        array.ndim - num_leading != len(lengths)
        or num_leading < 0
        or not all(
            isinstance(expected, str) or length == expected
            for length, expected in zip(array.shape[num_leading:], lengths, strict=True)
        )
    ):
        pattern = str(shape).replace("Ellipsis", "...").replace("'", "")
        raise ValueError(f"{name}: expected {what} of shape {pattern}, got {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: expected {what} of a floating dtype, got {array.dtype}")
    return array if dtype is None else array.astype(dtype)


def check_tree(name: str, what: str, tree: Any, like: Any) -> None:
    """Raise ValueError unless `tree` has the structure and shapes of `like`, and is floating.

    `like` is a pytree of arrays, or of jax.ShapeDtypeStruct.
    """
    expected, found = (
        jax.tree.map(lambda leaf: getattr(leaf, "shape", ()), part) for part in (like, tree)
    )
    if jax.tree.structure(tree) != jax.tree.structure(like) or found != expected:
        kind = type(tree).__name__
        raise ValueError(f"{name}: expected {what} of shapes {expected}, got {found} ({kind})")
    for leaf in jax.tree.leaves(tree):
        dtype = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name}: expected {what} of a floating dtype, got {dtype}")


def check_integer(name: str, what: str, value: Any, low: int, high: float = math.inf) -> Any:
    """`value` as an int, if it is an integer from low to high, else ValueError.

    A traced integer passes as it is.
    """
    if isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or not low <= integer <= high:
        span = "an integer" if low == -math.inf else f"an integer >= {low}"
        span = span if high == math.inf else f"an integer from {low} to {high}"
        raise ValueError(f"{name}: expected {what} to be {span}, got {value!r}")
    return integer


def check_number(name: str, what: str, value: Any, low: float = -math.inf) -> None:
    """Raise ValueError unless `value` is a finite real scalar >= low; a traced one passes."""
    try:
        array = jnp.asarray(value)
        real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
        is_scalar = array.ndim == 0 and real
    except (TypeError, ValueError, OverflowError):
        is_scalar = False
    if is_scalar and isinstance(value, jax.core.Tracer):
        return
    if not is_scalar or not math.isfinite(value) or value < low:
        span = "a finite number" if low == -math.inf else f"a finite number >= {low}"
        raise ValueError(f"{name}: expected {what} to be {span}, got {value!r}")


def check_nonnegative(name: str, what: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite real scalar >= 0; a traced one passes."""
    check_number(name, what, value, 0)


def check_positive(name: str, what: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite real scalar > 0; a traced one passes."""
    check_nonnegative(name, what, value)
    if not isinstance(value, jax.core.Tracer) and value == 0:
        raise ValueError(f"{name}: expected {what} to be above 0, got {value!r}")


def check_integers(name: str, what: str, array: Any) -> jax.Array:
    """`array` as a jax array; raises ValueError unless it is of an integer dtype."""
    array = _as_array(name, what, array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name}: expected {what} of an integer dtype, got {array.dtype}")
    return array


def _as_array(name, what, array):
    try:
        return jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected {what} to be an array, got {array!r:.80}") from error


def check_layers(name: str, layers: tuple[Any, ...]) -> None:
    """Raise ValueError unless every one of `layers` is a Layer."""
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"{name}: expected a Layer at position {index}, got {layer!r}")


def checked_indices(indices: jax.Array, length: int) -> jax.Array:
    """Integer indices as int32: those from 0 to length - 1 as they are, all others as `length`."""
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)  # which has room for the length
    return jnp.where((indices >= 0) & (indices < length), indices, length).astype(jnp.int32)


def shape_token(array: jax.Array) -> jax.Array:
    """An array without elements by which residuals remember the shape and dtype of `array`.

    It has one axis more, the first, of length 0.
    """
    return jax.lax.slice_in_dim(jax.lax.expand_dims(array, [0]), 0, 0)


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of `dtype` are summed: float32 for 16-bit ones, else `dtype`."""
    is_narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if is_narrow else dtype


def widen(array: Any) -> jax.Array:
    """`array` in its accumulation dtype."""
    array = jnp.asarray(array)
    return array.astype(accumulation_dtype(array.dtype))


def norm(array: Any, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The root of the sum of squares along `axis` or all axes, which stay, with length 1.

    It has the accumulation dtype, and is computed in units of the largest number, whose square
    may overflow.
    """
    array = widen(array)
    largest = jnp.max(jnp.abs(array), axis, keepdims=True, initial=0)
    unit = jnp.where((largest == 0) | jnp.isinf(largest), 1, largest)
    squares = jnp.square(array / unit)
    return largest * jnp.sqrt(jnp.maximum(jnp.sum(squares, axis, keepdims=True), 1))


def global_norm(tree: Any) -> jax.Array:
    """The norm () of all the tree's leaves together, in JAX's default floating dtype."""
    norms = [norm(jnp.asarray(leaf, float)).reshape(1) for leaf in jax.tree.leaves(tree)]
    return norm(jnp.concatenate([jnp.zeros(1), *norms]))[0]


def clipping_factor(norm: jax.Array, max_norm: float | jax.Array) -> jax.Array:
    """min(1, max_norm / norm), of norm's shape and dtype, into whose range max_norm is brought."""
    finite = jnp.finfo(norm.dtype)
    limit = jnp.clip(jnp.asarray(max_norm, norm.dtype), finite.tiny, finite.max)
    return limit / jnp.maximum(norm, limit)


@contextlib.contextmanager
def note_on_error(place: str) -> Iterator[None]:
    """Adds `place` to an exception that passes through, as a note below its message."""
    try:
        yield
    except Exception as error:
        error.add_note(place)
        raise
