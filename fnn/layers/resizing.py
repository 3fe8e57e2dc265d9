"""Signals, images and volumes made larger: up-sampling and padding."""

import jax.numpy as jnp

from fnn._checks import check_array, check_choice, check_number, check_sizes
from fnn._numerics import upcast
from fnn.layer import Layer, type_of
from fnn.layers._frame import without_params
from fnn.layers._windows import check_places, merge_axis, split_axis, spread


def Upsample(scale: int | tuple[int, ...], method: str = "nearest") -> Layer:
    """y has s places for each place of x along an axis, where s is the scale.

    "nearest": y[s i + k] = x[i].
    "linear": y[s i + k] = (1 - |c|) x[i] + |c| x[i + 1], with c = (k + 1/2) / s - 1/2. This is the
    distance from the centre of x[i] to that of the place of y. Where c is below 0, x[i - 1] takes
    the place of x[i + 1]. Beyond its ends x goes on with its first and last value. One axis is
    interpolated after the other: two axes are "bilinear", three "trilinear".

    Backward: dx[i] is the sum of dy, each times the weight that x[i] has in that place of y.
    Residuals: none.

    Shapes: x (..., height, width, channels), y (..., s height, t width, channels); params (). The
    values are those of torch.nn.Upsample(scale_factor=scale, align_corners=False).

    Args:
        scale: an integer for each spatial axis, which are the axes before the channels. A single
            integer stands for two axes: a signal (batch, length, channels) needs a tuple of one.
            PyTorch takes other numbers than integers too.
        method: "nearest" or "linear".

    Raises:
        ValueError: a scale is not a positive integer; method is unknown; x has an empty spatial
            axis and method is "linear"; x or dy have another shape or are not floating.
    """
    scales = _for_each_axis("Upsample", "scale", scale)
    scales = check_sizes("Upsample", "scale", scales, len(scales), 1)
    check_choice("Upsample", "method", method, ("nearest", "linear"))
    name, axes = f"Upsample({scales}, {method!r})", range(-1 - len(scales), -1)

    def enlarge(x):
        wide = x if method == "nearest" else upcast(x)
        for axis, size in zip(axes, scales, strict=True):
            wide = (jnp.repeat if method == "nearest" else _interpolate)(wide, size, axis)
        return wide

    def shrink(dy):
        wide = upcast(dy)
        for axis, size in reversed(list(zip(axes, scales, strict=True))):
            if method == "nearest":
                wide = jnp.sum(split_axis(wide, axis, size), axis)
            else:
                wide = _transposed_interpolation(wide, size, axis)
        return wide

    def larger(lengths):
        return tuple(n * size for n, size in zip(lengths, scales, strict=True))

    least = (0 if method == "nearest" else 1,) * len(scales)
    return _resizing(name, least, larger, enlarge, shrink)


def _interpolate(x, size, axis):
    n, weights = x.shape[axis], _weights(x, size, axis)
    ends = _extend(x, axis, (1, 1), "edge")
    first, second = (jnp.expand_dims(spread(ends, axis, -at, n + 1), axis) for at in (0, 1))
    # A weight of 0 is selected, for numbers that are infinite.
    y = (1 - weights) * first + jnp.where(weights == 0, 0, weights * second)
    return spread(merge_axis(y, axis), axis, -((size + 1) // 2), n * size)


def _transposed_interpolation(dy, size, axis):
    n, weights = dy.shape[axis] // size, _weights(dy, size, axis)
    blocks = split_axis(spread(dy, axis, (size + 1) // 2, (n + 1) * size), axis, size)
    d_first = jnp.sum((1 - weights) * blocks, axis)
    d_second = jnp.sum(jnp.where(weights == 0, 0, weights * blocks), axis)
    d_ends = spread(d_first, axis, 0, n + 2) + spread(d_second, axis, 1, n + 2)
    return _crop(d_ends, axis, (1, 1), "edge")


def _weights(like, size, axis):
    """From the centre of a place of x to the next one: the next one's weights at y's centres.

    They are for blocks of y, and of the dtype of `like`. The first is 0 if `size` is odd.
    """
    shape = [1] * (like.ndim + 1)
    shape[axis] = size
    first = 0.5 if size % 2 == 0 else 0.0
    return ((jnp.arange(size, dtype=like.dtype) + first) / size).reshape(shape)


def Pad(
    widths: int | tuple[int | tuple[int, int], ...], mode: str = "constant", value: float = 0
) -> Layer:
    """y is x with places added before and after it along each spatial axis.

    "constant": they are `value`, as in torch.nn.ConstantPad2d.
    "reflect": x is reflected at its first and its last place, as in torch.nn.ReflectionPad2d.
    "edge": the first and the last value are repeated, as in torch.nn.ReplicationPad2d.

    Backward: dx is dy without the added places. The dy of an added place is added to the place that
    it is a copy of. Residuals: none.

    Shapes: x (..., height, width, channels), y the same with larger height and width; params ().

    Args:
        widths: for each spatial axis, which are the axes before the channels, how many places are
            added: an integer, or a pair (before, after). A single integer stands for two axes: a
            signal (batch, length, channels) needs a tuple of one. PyTorch counts the axes from the
            last one.
        mode: "constant", "reflect" or "edge".
        value: a finite number.

    Raises:
        ValueError: a width is not an integer >= 0; mode is unknown; value is not a finite number; x
            has too few places for the mode, where "reflect" takes widths below x's length; x or dy
            have another shape or are not floating.
    """
    each = _for_each_axis("Pad", "widths", widths)
    pairs = tuple(check_sizes("Pad", "widths", width, 2, 0) for width in each)
    check_choice("Pad", "mode", mode, ("constant", "reflect", "edge"))
    check_number("Pad", "value", value)
    by_axis = dict(zip(range(-1 - len(pairs), -1), pairs, strict=True))
    least = [{"constant": 0, "edge": 1, "reflect": 1 + max(pair)}[mode] for pair in pairs]

    def pad(x):
        for axis, pair in by_axis.items():
            x = _extend(x, axis, pair, mode, value)
        return x

    def crop(dy):
        wide = upcast(dy)
        for axis, pair in reversed(by_axis.items()):
            wide = _crop(wide, axis, pair, mode)
        return wide

    def larger(lengths):
        return tuple(n + sum(pair) for n, pair in zip(lengths, pairs, strict=True))

    return _resizing(f"Pad({pairs}, {mode!r})", tuple(least), larger, pad, crop)


def _extend(x, axis, pair, mode, value=0):
    """x with places added before and after it along one axis."""
    (before, after), n = pair, x.shape[axis]
    if mode == "constant":
        return spread(x, axis, before, before + n + after, fill=value)
    if mode == "reflect":
        first, last = spread(x, axis, -1, before), spread(x, axis, after + 1 - n, after)
        first, last = jnp.flip(first, axis), jnp.flip(last, axis)
    else:
        first, last = spread(x, axis, 0, 1), spread(x, axis, 1 - n, 1)
        first, last = jnp.repeat(first, before, axis), jnp.repeat(last, after, axis)
    return jnp.concatenate([first, x, last], axis)


def _crop(dy, axis, pair, mode):
    """The backward pass of _extend."""
    before, after = pair
    n = dy.shape[axis] - before - after
    first, dx, last = (
        spread(dy, axis, -start, length)
        for start, length in ((0, before), (before, n), (before + n, after))
    )
    if mode == "reflect":
        dx = dx + spread(jnp.flip(first, axis), axis, 1, n)
        dx = dx + spread(jnp.flip(last, axis), axis, n - 1 - after, n)
    elif mode == "edge":
        dx = dx + spread(jnp.sum(first, axis, keepdims=True), axis, 0, n)
        dx = dx + spread(jnp.sum(last, axis, keepdims=True), axis, n - 1, n)
    return dx


def _for_each_axis(kind, what, sizes):
    """A tuple of what is given for each spatial axis; a single one stands for two axes."""
    sizes = tuple(sizes) if isinstance(sizes, tuple | list) else (sizes, sizes)
    if not sizes:
        raise ValueError(f"{kind}: expected {what} for one or more axes, got {sizes}")
    return sizes


def _resizing(name, least, lengths_of_y, forward, backward):
    """The layer y = forward(x) and dx = backward(dy). It keeps x's shape alone.

    x has at least the lengths `least` along its spatial axes.
    """

    def checked_forward(x, key):
        x = check_places(name, x, least)
        return forward(x).astype(x.dtype), type_of(x)

    def checked_backward(x_type, dy):
        at = len(x_type.shape) - 1 - len(least)
        leading, lengths, channels = x_type.shape[:at], x_type.shape[at:-1], x_type.shape[-1]
        y_shape = *leading, *lengths_of_y(lengths), channels
        dy = check_array(name, "dy", dy, y_shape, x_type.dtype)
        return backward(dy).astype(dy.dtype)

    return without_params(name, checked_forward, checked_backward)
