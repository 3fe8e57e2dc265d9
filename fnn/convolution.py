"""Convolution, pooling and Flatten, for images (..., height, width, channels)."""

import functools
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from fnn.initializers import xavier_uniform, zeros
from fnn.layer import (
    Layer,
    accumulation_dtype,
    check_array,
    check_integer,
    check_tree,
    shape_token,
    widen,
    without_params,
)

Pair = int | tuple[int, int]
MOST_ONE_BY_ONE = 64


def Conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: str | Pair = "VALID",
    bias: bool = True,
    weight_init: Callable[..., jax.Array] = xavier_uniform,
    bias_init: Callable[..., jax.Array] = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """y[i, j, o] = b[o] + sum over k, l, c of x[s i + k - p, t j + l - q, c] W[k, l, c, o].

    s, t are the strides and p, q the rows and columns of zeros before x: none for padding
    "VALID", as many as given for an int or a pair, and for "SAME" so many, before and after x,
    that y is ceil(height / s) by ceil(width / t), where an odd one is after it.

    Backward: dW[k, l, c, o] = sum of x[s i + k - p, t j + l - q, c] dy[i, j, o] over examples and
    i, j, a convolution of x with dy; db = sum of dy; dx is the convolution of dy, spread out by
    the strides, with W turned by 180 degrees. x is kept.

    Shapes: x (..., height, width, in_channels), y (..., out_height, out_width, out_channels) with
    out_height = floor((height + zeros - kernel height) / s) + 1; params
    {"W": (kernel height, kernel width, in_channels, out_channels), "b": (out_channels,)}, without
    "b" if `bias` is False.

    Args:
        weight_init, bias_init: functions (key, shape, dtype) -> array.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: a size is not a positive integer, or a padding none of the above; x is smaller
            than the kernel; x, dy, params or residuals have another shape or are not floating.
    """
    in_channels = check_integer("Conv2d", "in_channels", in_channels, 1)
    out_channels = check_integer("Conv2d", "out_channels", out_channels, 1)
    kernel = _pair("Conv2d", "kernel_size", kernel_size, 1)
    strides = _pair("Conv2d", "stride", stride, 1)
    if padding not in ("VALID", "SAME"):
        if isinstance(padding, str):
            raise ValueError(
                f"Conv2d: expected padding 'VALID', 'SAME', an integer or two, got {padding!r}"
            )
        padding = tuple((size, size) for size in _pair("Conv2d", "padding", padding, 0))
    name = f"Conv2d({in_channels}, {out_channels}, {kernel})"
    shape = (*kernel, in_channels, out_channels)
    like = {"W": jax.ShapeDtypeStruct(shape, dtype)}
    if bias:
        like["b"] = jax.ShapeDtypeStruct((out_channels,), dtype)

    def init(key):
        params = {"W": weight_init(jax.random.fold_in(key, 0), shape, dtype)}
        if bias:
            params["b"] = bias_init(jax.random.fold_in(key, 1), (out_channels,), dtype)
        return params

    def geometry(x):
        """Each spatial axis's zeros (before, after), and y's size."""
        size = x.shape[-3:-1]
        if 0 in size:
            raise ValueError(f"{name}: expected x with rows and columns, got {x.shape}")
        pads = padding
        if isinstance(padding, str):
            pads = jax.lax.padtype_to_pads(size, kernel, strides, padding)
        out = tuple(
            (n + sum(pad) - k) // s + 1
            for n, pad, k, s in zip(size, pads, kernel, strides, strict=True)
        )
        if min(out) < 1:
            raise ValueError(f"{name}: expected x no smaller than the kernel, got {x.shape}")
        return pads, out

    def convolve(a, b, **settings):
        """a (n, height, width, c) with b (height, width, c, o).

        Axes in any other order are written as transposes: in the body of a scan, XLA's CPU
        compiler does not put them in this order itself, and is then slower by up to 30 times.
        """
        return jax.lax.conv_general_dilated(
            a,
            b,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=accumulation_dtype(a.dtype),
            **settings,
        )

    def forward(params, x, key=None):
        check_tree(name, "params", params, like)
        x = check_array(name, "x", x, (..., "height", "width", in_channels))
        pads, out = geometry(x)
        images = x.reshape(-1, *x.shape[-3:])
        W = params["W"].astype(x.dtype)
        y = convolve(images, W, window_strides=strides, padding=pads)
        if bias:
            y = y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape)
        return y.astype(x.dtype).reshape(*x.shape[:-3], *out, out_channels), x

    def backward(params, x, dy):
        check_tree(name, "params", params, like)
        x = check_array(name, "residuals", x, (..., "height", "width", in_channels))
        pads, out = geometry(x)
        dy = check_array(name, "dy", dy, (*x.shape[:-3], *out, out_channels), x.dtype)
        images, dys = (array.reshape(-1, *array.shape[-3:]) for array in (x, dy))
        # dy spread out by the strides covers this much of x, from its zeros on.
        spread = [(n - 1) * s + 1 for n, s in zip(out, strides, strict=True)]
        axes = list(zip(x.shape[-3:-1], spread, kernel, pads, strict=True))
        dW = convolve(
            images.transpose(3, 1, 2, 0),
            dys.transpose(1, 2, 0, 3),
            window_strides=(1, 1),
            padding=[(before, m + k - 1 - n - before) for n, m, k, (before, _) in axes],
            rhs_dilation=strides,
            out_sharding=jax.typeof(params["W"]).sharding,
        )
        dx = convolve(
            dys,
            params["W"].astype(x.dtype)[::-1, ::-1].swapaxes(2, 3),
            window_strides=(1, 1),
            padding=[(k - 1 - before, n + before - m) for n, m, k, (before, _) in axes],
            lhs_dilation=strides,
        )
        grads = {"W": dW.transpose(1, 2, 0, 3)}
        if bias:
            grads["b"] = jnp.sum(widen(dys), axis=(0, 1, 2))
        grads = {leaf: grad.astype(params[leaf].dtype) for leaf, grad in grads.items()}
        return grads, dx.astype(x.dtype).reshape(x.shape)

    return Layer(init, forward, backward)


def MaxPool2d(window: Pair, stride: Pair | None = None) -> Layer:
    """y[i, j, c] = the largest of x[s i + k, t j + l, c] over the window's k and l.

    dx gets dy at the place of the largest, the first of equal ones; where windows overlap, the dy
    add up. A NaN makes y NaN, and the place the window's first. Rows and columns that no whole
    window covers are left out. The places are kept, a byte each for windows of up to 256.

    Shapes: x (..., height, width, channels), y (..., out_height, out_width, channels) with
    out_height = floor((height - window height) / s) + 1; params ().

    Args:
        stride: of the windows; the window's size if None.

    Raises:
        ValueError: a size is not a positive integer; x is smaller than the window; x or dy have
            another shape or are not floating.
    """

    def place_dtype(count):
        return jnp.uint8 if count <= 256 else jnp.int32

    def numbers(blocks, dtype):
        """The number of each value's place in its window."""
        height, width = blocks.shape[-4], blocks.shape[-2]
        places = jnp.arange(height * width, dtype=dtype).reshape(height, 1, width, 1)
        return jnp.broadcast_to(places, blocks.shape)

    def reduce(values):
        y = functools.reduce(jnp.maximum, values)
        last = len(values) - 1
        winner = jnp.full(y.shape, last, place_dtype(len(values)))
        for number in reversed(range(last)):
            winner = jnp.where(values[number] < y, winner, number)
        return y, winner

    def reduce_blocks(blocks):
        y, axes, count = jnp.max(blocks, (-4, -2)), (-4, -2), blocks.shape[-4] * blocks.shape[-2]
        below = blocks < jnp.expand_dims(y, axes)
        winner = jnp.min(jnp.where(below, count - 1, numbers(blocks, jnp.int32)), axes)
        return y, winner.astype(place_dtype(count))

    def spread(winner, dys):
        is_winner = jnp.expand_dims(winner, (-4, -2)) == numbers(dys, winner.dtype)
        return jnp.where(is_winner, dys, 0)

    return _pool("MaxPool2d", window, stride, reduce, reduce_blocks, spread)


def AvgPool2d(window: Pair, stride: Pair | None = None) -> Layer:
    """y[i, j, c] = the mean of x[s i + k, t j + l, c] over the window's k and l.

    dx gets dy / (number of places in a window) at each of them; where windows overlap, they add
    up. Rows and columns that no whole window covers are left out. Nothing but x's shape is kept.

    Shapes, Args, Raises: as MaxPool2d.
    """

    def reduce(values):
        return sum(map(widen, values)) / len(values), ()

    def reduce_blocks(blocks):
        return jnp.mean(widen(blocks), (-4, -2)), ()

    def spread(kept, dys):
        return widen(dys) / (dys.shape[-4] * dys.shape[-2])

    return _pool("AvgPool2d", window, stride, reduce, reduce_blocks, spread)


def Flatten(*, num_axes: int = 3) -> Layer:
    """y = x with its last num_axes axes as one; dx = dy.

    Shapes: x (..., height, width, channels), y (..., height * width * channels) by default; params
    (). Axes before them stay, so that an image without a batch axis is flattened as any other.

    Raises:
        ValueError: num_axes is not a positive integer; x has fewer axes; dy has another shape
            than y.
    """
    num_axes = check_integer("Flatten", "num_axes", num_axes, 1)
    name = "Flatten()" if num_axes == 3 else f"Flatten(num_axes={num_axes})"
    axes = ("height", "width", "channels") if num_axes == 3 else tuple("n" * num_axes)

    def forward(x, key):
        x = check_array(name, "x", x, (..., *axes))
        return x.reshape(*x.shape[:-num_axes], math.prod(x.shape[-num_axes:])), shape_token(x)

    def backward(token, dy):
        shape = token.shape[1:]
        y_shape = *shape[:-num_axes], math.prod(shape[-num_axes:])
        return check_array(name, "dy", dy, y_shape, token.dtype).reshape(shape)

    return without_params(name, forward, backward)


def _pool(kind, window, stride, reduce, reduce_blocks, spread):
    """The layer that reduces windows.

    reduce(values) -> (y, kept): values are the parts of x at one place of every window each.
    reduce_blocks(blocks) -> the same of windows side by side, in an array of shape
    (..., out_height, window height, out_width, window width, channels), for windows of more than
    MOST_ONE_BY_ONE places: with them neither the program grows nor its cost.
    spread(kept, dys) -> the cotangents of all values; dys is dy, broadcast to the blocks' shape.
    """
    window = _pair(kind, "window", window, 1)
    strides = window if stride is None else _pair(kind, "stride", stride, 1)
    name = f"{kind}({window}, {strides})"
    places = list(product(*map(range, window)))
    (h, w), (s, t) = window, strides

    def count_windows(shape):
        return (shape[-3] - h) // s + 1, (shape[-2] - w) // t + 1

    def pad(array, rows, columns):
        config = [*[(0, 0, 0)] * (array.ndim - 3), rows, columns, (0, 0, 0)]
        return jax.lax.pad(array, jnp.zeros((), array.dtype), config)

    def forward(x, key):
        x = check_array(name, "x", x, (..., "height", "width", "channels"))
        n, m = count_windows(x.shape)
        if min(n, m) < 1:
            raise ValueError(f"{name}: expected x no smaller than the window, got {x.shape}")
        if strides == window and len(places) > MOST_ONE_BY_ONE:
            rows = x[..., : n * h, : m * w, :].reshape(*x.shape[:-3], n, h, m * w, x.shape[-1])
            y, kept = reduce_blocks(rows.reshape(*rows.shape[:-2], m, w, x.shape[-1]))
        else:
            stops = (n - 1) * s + 1, (m - 1) * t + 1
            y, kept = reduce(
                [x[..., i : i + stops[0] : s, j : j + stops[1] : t, :] for i, j in places]
            )
        return y.astype(x.dtype), (kept, shape_token(x))

    def backward(residuals, dy):
        kept, token = residuals
        *leading, height, width, channels = token.shape[1:]
        n, m = count_windows(token.shape)
        dy = check_array(name, "dy", dy, (*leading, n, m, channels), token.dtype)
        dys = jnp.expand_dims(dy, (-4, -2))
        values = spread(kept, jnp.broadcast_to(dys, (*leading, n, h, m, w, channels)))
        if strides == window:
            rows = values.reshape(*leading, n * h, m, w, channels)
            dx = rows.reshape(*leading, n * h, m * w, channels)
            return pad(dx, (0, height - n * h, 0), (0, width - m * w, 0)).astype(dy.dtype)
        rest = height - (n - 1) * s - 1, width - (m - 1) * t - 1
        parts = [
            pad(values[..., i, :, j, :], (i, rest[0] - i, s - 1), (j, rest[1] - j, t - 1))
            for i, j in places
        ]
        return sum(map(widen, parts)).astype(dy.dtype)

    return without_params(name, forward, backward)


def _pair(name, what, value, low):
    """`value` as two integers: those of a pair, or the same one twice."""
    values = value if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name}: expected {what} to be an integer or two, got {value!r}")
    return tuple(check_integer(name, what, size, low) for size in values)
