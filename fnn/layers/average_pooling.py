"""Average-pooling of signals, images and volumes."""

import functools
import math
from typing import Any

import jax.numpy as jnp

from fnn._checks import check_type
from fnn._numerics import upcast
from fnn.layer import Layer
from fnn.layers._pools import (
    MANY_PLACES,
    fit,
    global_pool,
    moving_pool,
    reduce_windows,
)
from fnn.layers._windows import spread

Sizes = int | tuple[int, ...]


def AvgPool2d(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: str | int | tuple[Any, ...] = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Layer:
    """y[i, j, c] = the mean of x[s i + d k - p, t j + e l - q, c] over the window's k and l.

    s, t are the strides and d, e the dilations, which PyTorch's does not have. p, q are the numbers
    of rows and columns of zeros that padding adds before x.

    Backward: dx gets dy / (number of places in the mean) at each of them. Where windows overlap,
    these are added. Rows and columns that no window covers get 0. Residuals: none.

    Shapes, Raises, other Args: as MaxPool2d.

    Args:
        count_include_pad: whether the places of the padding count in the mean, as in PyTorch. With
            padding "SAME", TensorFlow does not count them. ONNX has both. What ceil_mode adds
            after the padding never counts.
    """
    sizes = window, stride, padding, dilation, ceil_mode
    return _avg_pool("AvgPool2d", 2, sizes, count_include_pad)


def AvgPool1d(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: str | int | tuple[Any, ...] = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Layer:
    """AvgPool2d for signals: x (..., length, channels), y (..., out_length, channels)."""
    sizes = window, stride, padding, dilation, ceil_mode
    return _avg_pool("AvgPool1d", 1, sizes, count_include_pad)


def AvgPool3d(
    window: Sizes,
    stride: Sizes | None = None,
    *,
    padding: str | int | tuple[Any, ...] = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Layer:
    """AvgPool2d for volumes: x and y (..., depth, height, width, channels)."""
    sizes = window, stride, padding, dilation, ceil_mode
    return _avg_pool("AvgPool3d", 3, sizes, count_include_pad)


def GlobalAvgPool(num_axes: int = 2) -> Layer:
    """y[c] = the mean of x[..., c] over the last num_axes axes before the channels.

    Backward: dx = dy / (number of places) at each place. Residuals: none.

    Shapes: x (..., height, width, channels), y (..., channels) for two axes; params (). PyTorch's
    AdaptiveAvgPool2d(1) keeps the two axes, of length 1. A signal (batch, length, channels) needs
    num_axes=1: two axes would be batch and length.

    Raises:
        ValueError: num_axes is not a positive integer; one of these axes is empty; x or dy have
            another shape or are not floating.
    """
    return global_pool("GlobalAvgPool", num_axes, *_mean(count_include_pad=True))


def _avg_pool(kind, num_axes, sizes, count_include_pad):
    check_type(kind, count_include_pad, bool, "count_include_pad to be True or False")
    return moving_pool(kind, num_axes, *sizes, *_mean(count_include_pad))


def _mean(count_include_pad):
    def pool(x, windows):
        # In this unit a sum cannot overflow. It is a power of two, which rounds nothing.
        unit = 2.0 ** -(math.prod(w.size for w in windows) - 1).bit_length()
        wide = upcast(fit(x, windows, 0)) * unit
        for w in reversed(windows):
            wide = sums(wide, w)
        return wide / (counts(windows, wide) * unit), ()

    def unpool(kept, dy, windows):
        wide = upcast(dy)
        wide = wide / counts(windows, wide)
        for w in windows:
            before = w.pads[0]
            if w.size == w.stride and w.dilation == 1:
                wide = spread(jnp.repeat(wide, w.size, w.axis), w.axis, -before, w.length)
            elif w.size <= MANY_PLACES:
                starts = range(-before, w.extent - before, w.dilation)
                wide = sum(spread(wide, w.axis, start, w.length, w.stride) for start in starts)
            else:  # dx[p] is the sum of dy over the windows that begin at p - extent + 1, ..., p
                start, length = w.extent - 1 - before, w.length + w.extent - 1
                wide = sums(spread(wide, w.axis, start, length, w.stride), w._replace(stride=1))
        return wide

    def sums(array, w):
        reduce_axis = functools.partial(jnp.sum, axis=w.axis)
        return reduce_windows(array, w, lambda first, second, _: first + second, reduce_axis)

    def counts(windows, like):
        """The number of places in each mean, of the dtype of `like` and for its shape."""
        count = 1
        for w in windows:
            before, after = w.pads if count_include_pad else (0, 0)
            end = w.length + after
            last = (w.count - 1) * w.stride - w.pads[0]
            if w.pads[0] == before and last + w.extent <= end:
                count *= w.size
            else:
                starts = w.starts(like.ndim)
                # The numbers of places of a window before each bound.
                first, stop = ((n - starts + w.dilation - 1) // w.dilation for n in (-before, end))
                count *= jnp.minimum(stop, w.size) - jnp.maximum(first, 0)
        return jnp.asarray(count, like.dtype)

    return pool, unpool
