"""Max-pooling of signals, images and volumes."""

import functools
import math
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from fnn._numerics import sum_of, upcast
from fnn.layer import Layer
from fnn.layers._pools import fit, global_pool, moving_pool, reduce_windows
from fnn.layers._windows import merge_axis, spread

# Backward adds up to this many terms, one for each of the windows side by side that reach a place.
# For more windows a scatter is faster.
MANY_TERMS = 16

Sizes = int | tuple[int, ...]


def MaxPool2d(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: str | int | tuple[Any, ...] = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Layer:
    """y[i, j, c] = the largest of x[s i + d k - p, t j + e l - q, c] over the window's k and l.

    s, t are the strides, and d, e the dilations. p, q are the numbers of rows and columns that
    padding adds before x. What is added is never the largest.

    Backward: dx gets dy at the place of the largest, the first of equal ones. Where windows
    overlap, their dy are added. A NaN makes y NaN, and the place is then the window's first in x.
    Rows and columns that no window covers get 0. Residuals: the index of each place in its window,
    a byte for windows of up to 256 places.

    Shapes: x (..., height, width, channels), y (..., out_height, out_width, channels) with
    out_height = floor((height + added rows - d (window height - 1) - 1) / s) + 1; params ().

    Args:
        stride: the distance (s, t) from one window to the next; by default the window's size.
        padding: "VALID" adds nothing. An integer adds that many rows and columns before and after
            x. A tuple has an integer or a pair (before, after) for each axis. "SAME" adds as many
            as make out_height = ceil(height / s); of an odd number the extra one comes after x.
        dilation: the distance (d, e) from one place of a window to the next.
        ceil_mode: whether there is one more window where the last one leaves out a rest. It begins
            in x or before it, as in PyTorch.

    Raises:
        ValueError: an argument is not one of the above; x is smaller than the window; a window has
            no place in x, while PyTorch refuses padding above half of the window; x or dy have
            another shape or are not floating.
    """
    return _max_pool("MaxPool2d", 2, window, stride, padding, dilation, ceil_mode)


def MaxPool1d(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: str | int | tuple[Any, ...] = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Layer:
    """MaxPool2d for signals: x (..., length, channels), y (..., out_length, channels)."""
    return _max_pool("MaxPool1d", 1, window, stride, padding, dilation, ceil_mode)


def MaxPool3d(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: str | int | tuple[Any, ...] = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Layer:
    """MaxPool2d for volumes: x and y (..., depth, height, width, channels)."""
    return _max_pool("MaxPool3d", 3, window, stride, padding, dilation, ceil_mode)


def GlobalMaxPool(num_axes: int = 2) -> Layer:
    """y[c] = the largest of x[..., c] over the last num_axes axes before the channels.

    It is MaxPool2d, for two axes, with a window of x's size. Residuals: the index of each largest.

    Shapes: x (..., height, width, channels), y (..., channels) for two axes; params (). PyTorch's
    AdaptiveMaxPool2d(1) keeps the two axes, of length 1. A signal (batch, length, channels) needs
    num_axes=1: two axes would be batch and length.

    Raises:
        ValueError: num_axes is not a positive integer; one of these axes is empty; x or dy have
            another shape or are not floating.
    """
    return global_pool("GlobalMaxPool", num_axes, _pool, _unpool)


def _max_pool(kind, num_axes, window, stride, padding, dilation, ceil_mode):
    sizes = window, stride, padding, dilation, ceil_mode
    return moving_pool(kind, num_axes, *sizes, _pool, _unpool)


def _pool(x, windows):
    """The largest of each window and its index in the window: one axis after the other."""
    num_places = math.prod(w.size for w in windows)
    values = fit(x, windows, -jnp.inf)
    indices = jnp.zeros(values.shape, jnp.uint8 if num_places <= 256 else jnp.int32)
    first_in_x, step = 0, 1  # one place further along the axis, the index is `step` higher
    for w in reversed(windows):
        join = functools.partial(_join, step)
        reduce_axis = functools.partial(_reduce_axis, step, w.axis)
        values, indices = reduce_windows((values, indices), w, join, reduce_axis)
        if w.pads[0]:
            in_padding = -(w.starts(x.ndim) // w.dilation)  # rounded up
            first_in_x += step * jnp.maximum(in_padding, 0)
        step *= w.size
    # A window without a number above -inf may have found its largest in the padding. Comparisons
    # with NaN have found nothing.
    first_in_x = jnp.asarray(first_in_x, indices.dtype)
    return values, jnp.where(values > -jnp.inf, indices, first_in_x)


def _join(step, first, second, distance):
    (value, index), (other, other_index) = first, second
    other_index = other_index + jnp.asarray(distance * step, index.dtype)
    return jnp.maximum(value, other), jnp.where(value < other, other_index, index)


def _reduce_axis(step, axis, pair):
    values, indices = pair
    largest = jnp.max(values, axis, keepdims=True)
    place = jax.lax.broadcasted_iota(jnp.int32, values.shape, axis % values.ndim)
    candidates = place * step + indices.astype(jnp.int32)
    candidates = jnp.where(values < largest, jnp.iinfo(jnp.int32).max, candidates)
    return jnp.squeeze(largest, axis), jnp.min(candidates, axis).astype(indices.dtype)


def _unpool(indices, dy, windows):
    """dx: the sum of dy over the windows whose largest is at this place."""
    indices = indices.astype(jnp.int32)
    # Where stride and dilation have a common divisor, no window has the places in between.
    gaps = [math.gcd(w.stride, w.dilation) for w in windows]
    dense = [
        w._replace(stride=w.stride // gap, dilation=w.dilation // gap)
        for w, gap in zip(windows, gaps, strict=True)
    ]
    # The others form blocks of `stride` places. A window begins with a block, and has places in the
    # blocks that are so many further:
    reach = [sorted({n * w.dilation // w.stride for n in range(w.size)}) for w in dense]
    if math.prod(map(len, reach)) > MANY_TERMS:
        return _scatter(indices, dy, windows)
    num_places = math.prod(w.size for w in windows)
    axes = [2 * (w.axis + 1) for w in windows]  # of the places in a block

    def from_windows(distances):
        """The part of the windows which begin so many blocks before each block."""
        index, part, here, step = indices, dy, 0, 1
        for w, axis, blocks, distance in reversed(
            [*zip(dense, axes, reach, distances, strict=True)]
        ):
            length = w.count + blocks[-1]
            index, part = (spread(array, w.axis, distance, length) for array in (index, part))
            offsets = distance * w.stride + jnp.arange(w.stride, dtype=jnp.int32)
            number, rest = jnp.divmod(offsets, w.dilation)
            is_in_window = (rest == 0) & (number < w.size)
            shape = [1] * (dy.ndim + len(windows))
            shape[axis] = w.stride
            here += jnp.where(is_in_window, number * step, -num_places).reshape(shape)
            step *= w.size
        index, part = (jnp.expand_dims(array, axes) for array in (index, part))
        return jnp.where(index == here, part, 0)

    dx = sum_of([from_windows(distances) for distances in product(*reach)])
    for axis in axes:
        dx = merge_axis(dx, axis)
    for w, gap in zip(windows, gaps, strict=True):
        dx = spread(dx, w.axis, -w.pads[0], w.length, gap)
    return dx


def _scatter(indices, dy, windows):
    """dx where many windows overlap: an example and a channel at a time."""
    place, step = 0, 1  # place counts through the places of x
    for w in reversed(windows):
        indices, number = jnp.divmod(indices, w.size)
        place += step * (w.starts(dy.ndim) + w.dilation * number)
        step *= w.length

    def one(place, dy):
        return jnp.zeros(step, dy.dtype).at[place.ravel()].add(dy.ravel())

    leading, channels = dy.shape[: -1 - len(windows)], dy.shape[-1]
    shape = math.prod(leading), *(w.count for w in windows), channels
    each = jax.vmap(jax.vmap(one, -1, -1))
    dx = each(place.reshape(shape), upcast(dy).reshape(shape))
    return dx.reshape(*leading, *(w.length for w in windows), channels)
