"""What pooling layers share: their frame, their windows, and the reduction of windows.

Windows are reduced along one spatial axis of x after the other. For windows of more than
MANY_PLACES places along an axis, the time and the size of the program grow at most with the
logarithm of the window's size.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_sizes, check_type
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params
from fnn.layers._windows import (
    check_padding,
    check_places,
    output_sizes,
    pads_of,
    split_axis,
    spread,
)

# Along an axis, windows of up to this many places are reduced by a slice for each place. Larger
# windows side by side are blocks of a reshaped x; larger windows that overlap are joined of halves.
MANY_PLACES = 8


class Windows(NamedTuple):
    """The windows along one spatial axis of x."""

    axis: int  # counted from the end
    length: int  # of x along the axis
    size: int  # the number of places of a window
    stride: int
    dilation: int
    pads: tuple[int, int]  # the places added before and after x
    count: int  # of windows

    @property
    def extent(self) -> int:
        """The distance from a window's first place to its last, plus 1."""
        return self.dilation * (self.size - 1) + 1

    def starts(self, ndim: int) -> jax.Array:
        """The place of x where each window begins, along self.axis of `ndim` axes.

        It is negative in the padding.
        """
        shape = [1] * ndim
        shape[self.axis] = self.count
        return jnp.arange(self.count, dtype=jnp.int32).reshape(shape) * self.stride - self.pads[0]


def moving_pool(
    kind, num_axes, window, stride, padding, dilation, ceil_mode, pool, unpool
) -> Layer:
    """A layer of windows that move over x.

    Args:
        kind: the layer's name without its sizes.
        pool: (x, windows) -> (y, kept), where `windows` has the Windows of each spatial axis.
        unpool: (kept, dy, windows) -> dx.
    """
    window = check_sizes(kind, "window", window, num_axes, 1)
    strides = window if stride is None else check_sizes(kind, "stride", stride, num_axes, 1)
    padding = check_padding(kind, padding, num_axes)
    dilation = check_sizes(kind, "dilation", dilation, num_axes, 1)
    check_type(kind, ceil_mode, bool, "ceil_mode to be True or False")
    extents = tuple(d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True))
    name = f"{kind}({window}, {strides})"

    def windows_in(shape):
        axes = range(-1 - num_axes, -1)
        lengths = tuple(shape[axis] for axis in axes)
        pads = pads_of(padding, lengths, extents, strides)
        counts = output_sizes(lengths, pads, extents, strides)
        columns = axes, lengths, window, strides, dilation, pads, counts
        windows = [Windows(*row) for row in zip(*columns, strict=True)]
        if ceil_mode:
            windows = [w._replace(count=w.count + _one_more_begins(w)) for w in windows]
        if any(w.count < 1 for w in windows):
            raise ValueError(f"{name}: expected x no smaller than the window, got {shape}")
        if not all(map(_reach_x, windows)):
            raise ValueError(
                f"{name}: expected each window to have a place in x, got x of shape {shape} and "
                f"padding {padding!r}"
            )
        return windows

    return _pooling(name, (0,) * num_axes, windows_in, pool, unpool)


def global_pool(kind, num_axes, pool, unpool) -> Layer:
    """A layer of one window of x's size. The axes that are pooled are not in y."""
    num_axes = check_integer(kind, "num_axes", num_axes, 1)
    name = f"{kind}({num_axes})"

    def windows_in(shape):
        axes = range(-1 - num_axes, -1)
        return [Windows(n, shape[n], shape[n], shape[n], 1, (0, 0), 1) for n in axes]

    return _pooling(name, (1,) * num_axes, windows_in, pool, unpool, keeps_axes=False)


def _pooling(name, least, windows_in, pool, unpool, keeps_axes=True):
    """The layer (y, kept) = pool(x, windows) and dx = unpool(kept, dy, windows).

    x has at least the lengths `least` along its spatial axes.
    """
    num_axes = len(least)

    def y_shapes(shape, windows):
        """y's shape, and its shape with the axes that are pooled."""
        counts = tuple(w.count for w in windows)
        leading, channels = shape[: -1 - num_axes], shape[-1:]
        return leading + counts * keeps_axes + channels, leading + counts + channels

    def forward(x, key):
        x = check_places(name, x, least)
        windows = windows_in(x.shape)
        y, kept = pool(x, windows)
        return y.astype(x.dtype).reshape(y_shapes(x.shape, windows)[0]), (kept, type_of(x))

    def backward(residuals, dy):
        kept, x_type = residuals
        windows = windows_in(x_type.shape)
        y_shape, full_shape = y_shapes(x_type.shape, windows)
        dy = check_array(name, "dy", dy, y_shape, x_type.dtype)
        return unpool(kept, dy.reshape(full_shape), windows).astype(dy.dtype)

    return without_params(name, forward, backward)


def _one_more_begins(w):
    """Whether one more window, which ends after the padding, begins in x or before it."""
    rest = (w.length + sum(w.pads) - w.extent) % w.stride
    return rest > 0 and w.count * w.stride < w.length + w.pads[0]


def _reach_x(w):
    """Whether each window has a place in x: the first one from x's begin on is before x's end."""
    starts = range(-w.pads[0], w.count * w.stride - w.pads[0], w.stride)
    firsts = (max(start, start % w.dilation) for start in starts)
    return all(
        first < min(start + w.extent, w.length) for start, first in zip(starts, firsts, strict=True)
    )


def fit(x: jax.Array, windows: list[Windows], fill: float) -> jax.Array:
    """x from the first place of the first window to the last place of the last one."""
    for w in windows:
        x = spread(x, w.axis, w.pads[0], (w.count - 1) * w.stride + w.extent, fill=fill)
    return x


def reduce_windows(
    tree: Any, w: Windows, join: Callable[..., Any], reduce_axis: Callable[[Any], Any]
) -> Any:
    """Reduce the windows along w.axis, for a tree of arrays of one shape that fit has made.

    Args:
        join: a function (first, second, distance) -> results of the windows that consist of a first
            and a second part. The second begins `distance` places of a window after the first.
        reduce_axis: a function that reduces the tree's arrays along w.axis.
    """
    length = jax.tree.leaves(tree)[0].shape[w.axis]

    def cut(tree, start, size, stride):
        """Of places for windows of `size` places, each window's place number `start`."""
        first = start * w.dilation
        last = first + (length - w.dilation * (size - 1) - 1) // stride * stride
        return jax.tree.map(
            lambda a: jax.lax.slice_in_dim(a, first, last + 1, stride, w.axis % a.ndim), tree
        )

    @functools.cache
    def joined(size, stride=1):
        """The windows of `size` places with this stride."""
        if size == 1:
            return tree
        half = size // 2
        first, second = joined(half), joined(size - half)
        return join(cut(first, 0, size, stride), cut(second, half, size, stride), half)

    if w.size <= MANY_PLACES:
        result, *others = (cut(tree, number, w.size, w.stride) for number in range(w.size))
        for number, other in enumerate(others, start=1):
            result = join(result, other, number)
        return result
    if w.dilation == 1 and w.stride == w.size:
        return reduce_axis(jax.tree.map(lambda a: split_axis(a, w.axis, w.size), tree))
    return joined(w.size, w.stride)
