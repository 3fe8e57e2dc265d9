"""Pooling over windows of images (..., height, width, channels).

A window is reduced along one axis after the other, so its cost grows with the logarithm of its size
at most.
"""

import math
from itertools import product

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_pair
from fnn._numerics import sum_of, upcast
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params

# Larger windows side by side are reduced as blocks. Larger windows that overlap send dy back by a
# scatter: it is slow on a CPU, but the program does not grow with the window.
MANY_PLACES = 64


def MaxPool2d(window: int | tuple[int, int], stride: int | tuple[int, int] | None = None) -> Layer:
    """y[i, j, c] = the largest of x[s i + k, t j + l, c] over the window's k and l.

    Backward: dx gets dy at the place of the largest, the first of equal ones. Where windows
    overlap, the dy add up. A NaN makes y NaN, and the place is then the window's first. Rows and
    columns that no whole window covers are left out. The places are kept, a byte each for windows
    of up to 256.

    Shapes: x (..., height, width, channels), y (..., out_height, out_width, channels) with
    out_height = floor((height - window height) / s) + 1; params ().

    Args:
        stride: the distance (s, t) from one window to the next; by default the window's size.

    Raises:
        ValueError: a size is not a positive integer; x is smaller than the window; x or dy have
            another shape or are not floating.
    """
    name, window, strides = _sizes("MaxPool2d", window, stride)
    (h, w), (s, t) = window, strides
    num_places, side_by_side = h * w, window == strides
    place_dtype = jnp.uint8 if num_places <= 256 else jnp.int32

    def numbers(blocks, dtype):
        """The number of each place in its window, over all blocks (..., n, h, m, w, channels)."""
        return jnp.broadcast_to(
            jnp.arange(num_places, dtype=dtype).reshape(h, 1, w, 1), blocks.shape
        )

    def larger(step):
        """Joins (largest, place) of neighbouring windows; `step` places are between two values."""

        def join(first, second, distance):
            (value, place), (other, other_place) = first, second
            largest = jnp.maximum(value, other)
            other_place = other_place + jnp.asarray(distance * step, place_dtype)
            return largest, jnp.where(value < largest, other_place, place)

        return join

    def pool(x):
        if side_by_side and num_places > MANY_PLACES:
            blocks = _blocks(x, window)
            y = jnp.max(blocks, (-4, -2))
            is_smaller = blocks < jnp.expand_dims(y, (-4, -2))
            place = jnp.min(
                jnp.where(is_smaller, num_places - 1, numbers(blocks, jnp.int32)), (-4, -2)
            )
        else:
            in_row = _slide((x, jnp.zeros(x.shape, place_dtype)), -2, w, t, larger(1))
            y, place = _slide(in_row, -3, h, s, larger(w))
        return y, jnp.where(jnp.isnan(y), 0, place).astype(place_dtype)

    def unpool(place, dy, shape):
        if side_by_side:
            dys = jnp.broadcast_to(jnp.expand_dims(dy, (-4, -2)), _blocks_shape(dy.shape, window))
            is_place = jnp.expand_dims(place, (-4, -2)) == numbers(dys, place_dtype)
            return _unblock(jnp.where(is_place, dys, 0), shape)
        if num_places > MANY_PLACES:
            return _scatter(place, dy, shape, window, strides)
        at_places = []
        for number, (row, column) in enumerate(product(range(h), range(w))):
            there = _spread(jnp.where(place == number, dy, 0), -3, s, row, shape[-3])
            at_places.append(_spread(there, -2, t, column, shape[-2]))
        return sum_of(at_places)

    return _pooling(name, window, strides, pool, unpool)


def AvgPool2d(window: int | tuple[int, int], stride: int | tuple[int, int] | None = None) -> Layer:
    """y[i, j, c] = the mean of x[s i + k, t j + l, c] over the window's k and l.

    Backward: dx gets dy / (number of places in a window) at each of them. Where windows overlap,
    these add up. Rows and columns that no whole window covers are left out. Only x's shape is kept.

    Shapes, Args, Raises: as MaxPool2d.
    """
    name, window, strides = _sizes("AvgPool2d", window, stride)
    num_places, side_by_side = math.prod(window), window == strides

    def add(first, second, distance):
        return first + second

    def pool(x):
        wide = upcast(x)
        if side_by_side and num_places > MANY_PLACES:
            return jnp.mean(_blocks(wide, window), (-4, -2)), ()
        for axis, size, stride in zip((-2, -3), window[::-1], strides[::-1], strict=True):
            wide = _slide(wide, axis, size, stride, add)
        return wide / num_places, ()

    def unpool(kept, dy, shape):
        wide = upcast(dy) / num_places
        if side_by_side:
            blocks = jnp.expand_dims(wide, (-4, -2))
            return _unblock(jnp.broadcast_to(blocks, _blocks_shape(dy.shape, window)), shape)
        for axis, size, stride in zip((-3, -2), window, strides, strict=True):
            if _is_small(size, stride):
                starts = range(size)
                wide = sum(_spread(wide, axis, stride, start, shape[axis]) for start in starts)
            else:  # dx[p] is the sum of dy over the windows that begin at p - size + 1, ..., p
                spread = _spread(wide, axis, stride, size - 1, shape[axis] + size - 1)
                wide = _slide(spread, axis, size, 1, add)
        return wide

    return _pooling(name, window, strides, pool, unpool)


def _pooling(name, window, strides, pool, unpool):
    """The layer (y, kept) = pool(x), dx = unpool(kept, dy, shape of x)."""

    def forward(x, key):
        x = check_array(name, "x", x, (..., "height", "width", "channels"))
        if any(n < k for n, k in zip(x.shape[-3:-1], window, strict=True)):
            raise ValueError(f"{name}: expected x no smaller than the window, got {x.shape}")
        y, kept = pool(x)
        return y.astype(x.dtype), (kept, type_of(x))

    def backward(residuals, dy):
        kept, x = residuals
        height, width = (
            (n - k) // s + 1 for n, k, s in zip(x.shape[-3:-1], window, strides, strict=True)
        )
        y_shape = *x.shape[:-3], height, width, x.shape[-1]
        dy = check_array(name, "dy", dy, y_shape, x.dtype)
        return unpool(kept, dy, x.shape).astype(dy.dtype)

    return without_params(name, forward, backward)


def _slide(tree, axis, size, stride, join):
    """join of the `size` neighbours in each window along the axis, for arrays of one shape.

    join(first, second, distance) is of two neighbouring windows, the second of which begins
    `distance` places after the first.
    """
    length = jax.tree.leaves(tree)[0].shape[axis]
    last_start = (length - size) // stride * stride

    def take(tree, start, stop, stride=1):
        return jax.tree.map(
            lambda array: jax.lax.slice_in_dim(array, start, stop, stride, axis % array.ndim), tree
        )

    def from_start(start, size):
        """The windows from `start` on, one every `stride` places, each value by itself."""
        if size == 1:
            return take(tree, start, start + last_start + 1, stride)
        half = size // 2
        return join(from_start(start, half), from_start(start + half, size - half), half)

    if _is_small(size, stride):
        return from_start(0, size)

    windows = {1: tree}  # by their size: the windows that begin at every place

    def everywhere(size):
        if size not in windows:
            half, count = size // 2, length - size + 1
            first, second = everywhere(half), everywhere(size - half)
            windows[size] = join(take(first, 0, count), take(second, half, half + count), half)
        return windows[size]

    return take(everywhere(size), 0, last_start + 1, stride)


def _is_small(size, stride):
    """Whether it costs less to take each value of a window by itself than windows by doubling."""
    return size <= 8 and size - 1 < 3 * stride


def _spread(array, axis, stride, start, length):
    """The array with stride - 1 zeros between its places, the first at `start`, `length` in all."""
    spread = (array.shape[axis] - 1) * stride + 1
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (start, length - start - spread, stride - 1)
    return jax.lax.pad(array, jnp.zeros((), array.dtype), config)


def _scatter(place, dy, shape, window, strides):
    """dy added up at its place in each window; an image and a channel at a time."""
    height, width = shape[-3:-1]
    row, column = jnp.divmod(place.astype(jnp.int32), window[1])
    n, m = dy.shape[-3:-1]
    row = row + (strides[0] * jnp.arange(n)).reshape(n, 1, 1)
    column = column + (strides[1] * jnp.arange(m)).reshape(m, 1)

    def one(index, dy):
        return jnp.zeros(height * width, dy.dtype).at[index.ravel()].add(dy.ravel())

    images = (-1, n, m, shape[-1])
    each = jax.vmap(jax.vmap(one, -1, -1))
    dx = each((row * width + column).reshape(images), upcast(dy).reshape(images))
    return dx.reshape(shape)


def _blocks(x, window):
    """The windows side by side that x wholly covers: (..., n, h, m, w, channels)."""
    (h, w), (height, width, channels) = window, x.shape[-3:]
    n, m = height // h, width // w
    return x[..., : n * h, : m * w, :].reshape(*x.shape[:-3], n, h, m, w, channels)


def _blocks_shape(y_shape, window):
    *leading, n, m, channels = y_shape
    return *leading, n, window[0], m, window[1], channels


def _unblock(blocks, shape):
    """The inverse of _blocks, with zeros where no window is."""
    *leading, n, h, m, w, channels = blocks.shape
    # Two steps: each merges two axes, which XLA does without a copy.
    dx = blocks.reshape(*leading, n * h, m, w, channels).reshape(*leading, n * h, m * w, channels)
    rest = _spread(dx, -3, 1, 0, shape[-3])
    return _spread(rest, -2, 1, 0, shape[-2])


def _sizes(kind, window, stride):
    window = check_pair(kind, "window", window, 1)
    strides = window if stride is None else check_pair(kind, "stride", stride, 1)
    return f"{kind}({window}, {strides})", window, strides
