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
)

Pair = int | tuple[int, int]


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

    def reduce(values):
        y = functools.reduce(jnp.maximum, values)
        last = len(values) - 1
        winner = jnp.full(y.shape, last, jnp.uint8 if last < 256 else jnp.int32)
        for number in reversed(range(last)):
            winner = jnp.where(values[number] < y, winner, number)
        return y, winner

    def spread(winner, dy, count):
        return [jnp.where(winner == number, dy, 0) for number in range(count)]

    return _pool("MaxPool2d", window, stride, reduce, spread)


def AvgPool2d(window: Pair, stride: Pair | None = None) -> Layer:
    """y[i, j, c] = the mean of x[s i + k, t j + l, c] over the window's k and l.

    dx gets dy / (number of places in a window) at each of them; where windows overlap, they add
    up. Rows and columns that no whole window covers are left out. Nothing but x's shape is kept.

    Shapes, Args, Raises: as MaxPool2d.
    """

    def reduce(values):
        return sum(map(widen, values)) / len(values), ()

    def spread(kept, dy, count):
        return [dy / count] * count

    return _pool("AvgPool2d", window, stride, reduce, spread)


def Flatten() -> Layer:
    """y = x with its last three axes, an image's height, width and channels, as one; dx = dy.

    Shapes: x (..., height, width, channels), y (..., height * width * channels); params (). Axes
    before the image stay, so that an image without a batch axis is flattened as any other.

    Raises:
        ValueError: x has fewer than three axes; dy has another shape than y.
    """
    name = "Flatten()"

    def init(key):
        return ()

    def forward(params, x, key=None):
        check_tree(name, "params", params, ())
        x = check_array(name, "x", x, (..., "height", "width", "channels"))
        return x.reshape(*x.shape[:-3], math.prod(x.shape[-3:])), shape_token(x)

    def backward(params, token, dy):
        check_tree(name, "params", params, ())
        *leading, height, width, channels = token.shape[1:]
        size = height * width * channels
        dy = check_array(name, "dy", dy, (*leading, size), token.dtype)
        return (), dy.reshape(token.shape[1:])

    return Layer(init, forward, backward)


def _pool(kind, window, stride, reduce, spread):
    """The layer that reduces windows.

    reduce(values) -> (y, kept): values are the parts of x at one place of every window each;
    spread(kept, dy, count) -> their cotangents, for the `count` places of a window.
    """
    window = _pair(kind, "window", window, 1)
    strides = window if stride is None else _pair(kind, "stride", stride, 1)
    name = f"{kind}({window}, {strides})"
    places = list(product(*map(range, window)))

    def init(key):
        return ()

    def count_windows(shape):
        return tuple(
            (n - w) // s + 1 for n, w, s in zip(shape[-3:-1], window, strides, strict=True)
        )

    def forward(params, x, key=None):
        check_tree(name, "params", params, ())
        x = check_array(name, "x", x, (..., "height", "width", "channels"))
        out = count_windows(x.shape)
        if min(out) < 1:
            raise ValueError(f"{name}: expected x no smaller than the window, got {x.shape}")
        values = []
        for place in places:
            value = x
            for axis, start, n, s in zip((-3, -2), place, out, strides, strict=True):
                limit = start + (n - 1) * s + 1
                value = jax.lax.slice_in_dim(value, start, limit, s, value.ndim + axis)
            values.append(value)
        y, kept = reduce(values)
        return y.astype(x.dtype), (kept, shape_token(x))

    def backward(params, residuals, dy):
        check_tree(name, "params", params, ())
        kept, token = residuals
        *leading, height, width, channels = token.shape[1:]
        out = count_windows(token.shape)
        dy = check_array(name, "dy", dy, (*leading, *out, channels), token.dtype)
        parts = []
        for place, part in zip(places, spread(kept, dy, len(places)), strict=True):
            pads = [
                (start, size - start - (n - 1) * s - 1, s - 1)
                for start, size, n, s in zip(place, (height, width), out, strides, strict=True)
            ]
            config = [*[(0, 0, 0)] * len(leading), *pads, (0, 0, 0)]
            parts.append(jax.lax.pad(widen(part), jnp.zeros((), widen(part).dtype), config))
        return (), sum(parts).astype(dy.dtype)

    return Layer(init, forward, backward)


def _pair(name, what, value, low):
    """`value` as two integers: those of a pair, or the same one twice."""
    values = value if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name}: expected {what} to be an integer or two, got {value!r}")
    return tuple(check_integer(name, what, size, low) for size in values)
