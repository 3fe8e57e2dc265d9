"""Pooling over windows of images (..., height, width, channels).

For windows of more than MANY_PLACES places, the time and the size of the program grow at most with
the logarithm of the window's size.
"""

import functools
import math
from itertools import product

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_sizes
from fnn._numerics import sum_of, upcast
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params

# A window of up to this many places is handled by a slice for each place. Larger windows side by
# side are blocks of a reshaped x; larger windows that overlap go through _slide.
MANY_PLACES = 64


def MaxPool2d(window: int | tuple[int, int], stride: int | tuple[int, int] | None = None) -> Layer:
    """y[i, j, c] = the largest of x[s i + k, t j + l, c] over the window's k and l.

    Backward: dx gets dy at the place of the largest, the first of equal ones. Where windows
    overlap, their dy are added. A NaN makes y NaN, and the place is then the window's first. Rows
    and columns that no whole window covers are left out. Residuals: the index of each place in its
    window, a byte for windows of up to 256 places.

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

    def indices_in_window(blocks, dtype):
        """Each value's index in its window, for blocks (..., n, h, m, w, channels)."""
        return jnp.broadcast_to(
            jnp.arange(num_places, dtype=dtype).reshape(h, 1, w, 1), blocks.shape
        )

    def keep_larger(step):
        """A join for _slide of (largest, index) pairs.

        One place further along the axis, the index in the window is `step` higher.
        """

        def join(first, second, distance):
            (value, place), (other, other_place) = first, second
            largest = jnp.maximum(value, other)
            other_place = other_place + jnp.asarray(distance * step, place_dtype)
            return largest, jnp.where(value < largest, other_place, place)

        return join

    def pool(x):
        if num_places <= MANY_PLACES:
            values = [
                _strided(_strided(x, -3, row, h, s), -2, column, w, t)
                for row, column in product(range(h), range(w))
            ]
            y = functools.reduce(jnp.maximum, values)
            place = jnp.full(y.shape, num_places - 1, place_dtype)
            for number in reversed(range(num_places - 1)):
                place = jnp.where(values[number] < y, place, number)
        elif side_by_side:
            blocks = _blocks(x, window)
            y = jnp.max(blocks, (-4, -2))
            is_smaller = blocks < jnp.expand_dims(y, (-4, -2))
            places = jnp.where(is_smaller, num_places - 1, indices_in_window(blocks, jnp.int32))
            place = jnp.min(places, (-4, -2)).astype(place_dtype)
        else:
            in_row = _slide((x, jnp.zeros(x.shape, place_dtype)), -2, w, t, keep_larger(1))
            y, place = _slide(in_row, -3, h, s, keep_larger(w))
            place = jnp.where(jnp.isnan(y), 0, place)
        return y, place

    def unpool(place, dy, shape):
        if side_by_side:
            dy_blocks = jnp.expand_dims(dy, (-4, -2))
            dy_blocks = jnp.broadcast_to(dy_blocks, _blocks_shape(dy.shape, window))
            is_place = jnp.expand_dims(place, (-4, -2)) == indices_in_window(dy_blocks, place_dtype)
            return _unblock(jnp.where(is_place, dy_blocks, 0), shape)
        if num_places > MANY_PLACES:
            return _scatter(place, dy, shape, window, strides)
        parts = []
        for number, (row, column) in enumerate(product(range(h), range(w))):
            part = _spread(jnp.where(place == number, dy, 0), -3, s, row, shape[-3])
            parts.append(_spread(part, -2, t, column, shape[-2]))
        return sum_of(parts)

    return _pooling(name, window, strides, pool, unpool)


def AvgPool2d(window: int | tuple[int, int], stride: int | tuple[int, int] | None = None) -> Layer:
    """y[i, j, c] = the mean of x[s i + k, t j + l, c] over the window's k and l.

    Backward: dx gets dy / (number of places in a window) at each of them. Where windows overlap,
    these are added. Rows and columns that no whole window covers are left out. Residuals: none.

    Shapes, Args, Raises: as MaxPool2d.
    """
    name, window, strides = _sizes("AvgPool2d", window, stride)
    num_places, side_by_side = math.prod(window), window == strides

    is_small = num_places <= MANY_PLACES
    axes = list(zip((-3, -2), window, strides, strict=True))

    def add(first, second, distance):
        return first + second

    # In this unit a sum cannot overflow. It is a power of two, which rounds nothing.
    unit = 2.0 ** -(num_places - 1).bit_length()

    def pool(x):
        wide = upcast(x) * unit
        if side_by_side and not is_small:
            return jnp.sum(_blocks(wide, window), (-4, -2)) / (num_places * unit), ()
        for axis, size, stride in reversed(axes):
            if is_small:
                wide = sum(_strided(wide, axis, number, size, stride) for number in range(size))
            else:
                wide = _slide(wide, axis, size, stride, add)
        return wide / (num_places * unit), ()

    def unpool(kept, dy, shape):
        wide = upcast(dy) / num_places
        if side_by_side:
            blocks = jnp.expand_dims(wide, (-4, -2))
            return _unblock(jnp.broadcast_to(blocks, _blocks_shape(dy.shape, window)), shape)
        for axis, size, stride in axes:
            length = shape[axis]
            if is_small:
                wide = sum(_spread(wide, axis, stride, start, length) for start in range(size))
            else:  # dx[p] is the sum of dy over the windows that begin at p - size + 1, ..., p
                spread = _spread(wide, axis, stride, size - 1, length + size - 1)
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
        kept, x_type = residuals
        shape = x_type.shape
        height, width = (
            (n - k) // s + 1 for n, k, s in zip(shape[-3:-1], window, strides, strict=True)
        )
        y_shape = *shape[:-3], height, width, shape[-1]
        dy = check_array(name, "dy", dy, y_shape, x_type.dtype)
        return unpool(kept, dy, shape).astype(dy.dtype)

    return without_params(name, forward, backward)


def _slide(tree, axis, size, stride, join):
    """Reduce windows of `size` values along the axis by `join`, for a tree of arrays of one shape.

    A window is joined from two halves. join(first, second, distance) joins neighbouring windows,
    the second of which begins `distance` places after the first.
    """
    windows = {1: tree}  # size -> the results of the windows that begin at every place

    def everywhere(size):
        if size not in windows:
            half = size // 2
            first = cut(everywhere(half), 0, size - half + 1)
            second = cut(everywhere(size - half), half, half + 1)
            windows[size] = join(first, second, half)
        return windows[size]

    def cut(tree, start, size, stride=1):
        return jax.tree.map(lambda array: _strided(array, axis, start, size, stride), tree)

    return cut(everywhere(size), 0, 1, stride)


def _strided(array, axis, start, size, stride):
    """Value number `start` of each window of this size and stride along the axis."""
    last = (array.shape[axis] - size) // stride * stride
    return jax.lax.slice_in_dim(array, start, start + last + 1, stride, axis % array.ndim)


def _spread(array, axis, stride, start, length):
    """The array with stride - 1 zeros between its places, the first at `start`, `length` in all."""
    spread = (array.shape[axis] - 1) * stride + 1
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (start, length - start - spread, stride - 1)
    return jax.lax.pad(array, jnp.zeros((), array.dtype), config)


def _scatter(place, dy, shape, window, strides):
    """dy added up at its place in each window; an image and a channel at a time."""
    height, width = shape[-3:-1]
    places = jnp.divmod(place.astype(jnp.int32), window[1])
    row, column = (
        offset + stride * jax.lax.broadcasted_iota(jnp.int32, dy.shape, dy.ndim + axis)
        for offset, stride, axis in zip(places, strides, (-3, -2), strict=True)
    )

    def one(index, dy):
        return jnp.zeros(height * width, dy.dtype).at[index.ravel()].add(dy.ravel())

    images = (math.prod(dy.shape[:-3]), *dy.shape[-3:])
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
    window = check_sizes(kind, "window", window, 2, 1)
    strides = window if stride is None else check_sizes(kind, "stride", stride, 2, 1)
    return f"{kind}({window}, {strides})", window, strides
