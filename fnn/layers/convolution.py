"""Convolutions over one, two or three spatial axes, and what transposed ones share with them."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_sizes
from fnn._numerics import broadcast_last_axis, sharding_of, upcast
from fnn.initializers import xavier_uniform, zeros
from fnn.layer import Layer
from fnn.layers._convolve import (
    Steps,
    convolve,
    convolve_transposed,
    extents,
    kernel_gradient,
    swap_channels,
)
from fnn.layers._frame import with_params
from fnn.layers._windows import check_padding, options_in_name, output_sizes, pads_of

Sizes = int | Sequence[int]  # one for all spatial axes, or one for each
Initializer = Callable[..., jax.Array]


def Conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = xavier_uniform,
    bias_init: Initializer = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """y[i, o] = b[o] + sum over k, c of x[s i + d k - p, c] W[k, c, o]: Conv2d along one axis.

    Shapes: x (..., length, in_channels), y (..., out_length, out_channels); params
    {"W": (kernel length, in_channels / groups, out_channels), "b": (out_channels,)}.

    Arguments, backward, residuals and errors are those of Conv2d.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    init = (bias, weight_init, bias_init, dtype)
    return convolution("Conv1d", 1, in_channels, out_channels, kernel_size, options, *init)


def Conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = xavier_uniform,
    bias_init: Initializer = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """y[i, j, o] = b[o] + sum over k, l, c of x[s i + d k - p, t j + e l - q, c] W[k, l, c, o].

    s, t are the strides, d, e the dilations, and p, q the numbers of zero rows and columns before
    x. With groups, output o sees the channels c of its own group alone.

    Backward:
        dW[k, l, c, o] = sum of x[s i + d k - p, t j + e l - q, c] dy[i, j, o] over examples and
        i, j. This is a convolution of x with dy.
        db = sum of dy.
        dx is the convolution of dy, spread out by the strides, with W turned by 180 degrees.
    Residuals: x, because dW needs it.

    Shapes: x (..., height, width, in_channels), y (..., out_height, out_width, out_channels) with
    out_height = floor((height + zero rows - d (kernel height - 1) - 1) / s) + 1; params {"W":
    (kernel height, kernel width, in_channels / groups, out_channels), "b": (out_channels,)},
    without "b" if `bias` is False.

    Args:
        stride, dilation: an int, or one for each spatial axis.
        padding: "VALID" adds no zeros. An int adds that many before and after x along each axis. A
            sequence has for each axis an int or a pair (before, after). "SAME" adds as many as make
            y ceil(height / s) by ceil(width / t), as XLA does; of an odd number the extra one comes
            after x. PyTorch refuses "same" with a stride above 1, and its default is 0.
        groups: the channels are split into as many groups of neighbours. With groups equal to
            in_channels and out_channels, each channel has a kernel of its own (depthwise).
        weight_init, bias_init: functions (key, shape, dtype) -> array, such as fnn.kaiming_normal
            or jax.nn.initializers.he_normal(). fan_in is that of W's shape: in_channels / groups
            times the kernel's places. PyTorch's default is another.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: a size is not a positive integer; padding is not one of the above; the channels
            are not multiples of groups; x is smaller than the kernel; x, dy, params or residuals
            have another shape or are not floating.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    init = (bias, weight_init, bias_init, dtype)
    return convolution("Conv2d", 2, in_channels, out_channels, kernel_size, options, *init)


def Conv3d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = xavier_uniform,
    bias_init: Initializer = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """Conv2d with a third axis: x (..., depth, height, width, in_channels).

    Shapes: y (..., out_depth, out_height, out_width, out_channels); params {"W": (kernel depth,
    height, width, in_channels / groups, out_channels), "b": (out_channels,)}.

    Arguments, backward, residuals and errors are those of Conv2d.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    init = (bias, weight_init, bias_init, dtype)
    return convolution("Conv3d", 3, in_channels, out_channels, kernel_size, options, *init)


def convolution(
    kind, num_axes, in_channels, out_channels, kernel, options, bias, weight_init, bias_init, dtype
) -> Layer:
    """The layer of that kind. A transposed convolution has output_padding among its options."""
    transposed = "output_padding" in options
    in_channels = check_integer(kind, "in_channels", in_channels, 1)
    out_channels = check_integer(kind, "out_channels", out_channels, 1)
    kernel = check_sizes(kind, "kernel_size", kernel, num_axes, 1)
    strides = check_sizes(kind, "stride", options["stride"], num_axes, 1)
    words = () if transposed else ("VALID", "SAME")
    padding = check_padding(kind, options["padding"], num_axes, words)
    more = check_sizes(kind, "output_padding", options.get("output_padding", 0), num_axes, 0)
    dilations = check_sizes(kind, "dilation", options["dilation"], num_axes, 1)
    groups = check_integer(kind, "groups", options["groups"], 1)
    for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            expected = f"expected {what} to be a multiple of groups={groups}"
            raise ValueError(f"{kind}: {expected}, got {channels}")
    if any(map(operator.ge, more, map(max, strides, dilations))):
        expected = "expected output_padding below the larger of stride and dilation"
        raise ValueError(f"{kind}: {expected}, got {options['output_padding']}")
    chosen = {"stride": strides, "padding": padding, "output_padding": more}
    chosen |= {"dilation": dilations, "groups": groups, "bias": bias}
    name = f"{kind}({in_channels}, {out_channels}, {kernel}{options_in_name(**chosen)})"
    spatial, window = ("depth", "height", "width")[3 - num_axes :], extents(kernel, dilations)
    axes = spatial if num_axes > 1 else ("length",)

    def init_W(key, shape, dtype):
        W = weight_init(key, (*kernel, in_channels // groups, out_channels), dtype)
        return swap_channels(W, groups).swapaxes(-1, -2) if transposed else W

    shape = (
        (in_channels, out_channels // groups)
        if transposed
        else (in_channels // groups, out_channels)
    )
    params = {"W": ((*kernel, *shape), init_W)}
    if bias:
        params["b"] = ((out_channels,), bias_init)

    def steps_and_sizes(x):
        """The steps of the convolution, and y's sizes along the spatial axes."""
        sizes = x.shape[-num_axes - 1 : -1]
        if 0 in sizes:
            raise ValueError(f"{name}: expected x of {' and '.join(axes)} above 0, got {x.shape}")
        if transposed:
            # The zeros of a convolution whose x is this y: the last output_padding are left out.
            pads = tuple(
                (before, after - m) for (before, after), m in zip(padding, more, strict=True)
            )
            lengths = zip(extents(sizes, strides), window, pads, strict=True)
            out = tuple(n + k - 1 - sum(pad) for n, k, pad in lengths)
            expected = "large enough for a y without empty axes"
        else:
            pads = pads_of(padding, sizes, window, strides)
            out = output_sizes(sizes, pads, window, strides)
            expected = "no smaller than the kernel"
        if min(out) < 1:
            raise ValueError(f"{name}: expected x {expected}, got {x.shape}")
        return Steps(strides, dilations, pads, groups), out

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., *axes, in_channels))
        steps, out = steps_and_sizes(x)
        images, W = as_batch(x), params["W"].astype(x.dtype)
        if transposed:
            y = convolve_transposed(images, W.swapaxes(-1, -2), steps, out)
        else:
            y = convolve(images, W, steps)
        if bias:
            y = y + broadcast_last_axis(params["b"], y)
        return y.astype(x.dtype).reshape(*x.shape[: -num_axes - 1], *y.shape[1:]), x

    def backward(params, x, dy):
        x = check_array(name, "residuals", x, (..., *axes, in_channels))
        steps, out = steps_and_sizes(x)
        dy_shape = (*x.shape[: -num_axes - 1], *out, out_channels)
        dy = check_array(name, "dy", dy, dy_shape, x.dtype)
        images, dys, W = as_batch(x), as_batch(dy), params["W"].astype(x.dtype)
        sharding = sharding_of(params["W"])
        if transposed:
            dW = kernel_gradient(dys, images, kernel, steps, sharding).swapaxes(-1, -2)
            dx = convolve(dys, W.swapaxes(-1, -2), steps)
        else:
            dW = kernel_gradient(images, dys, kernel, steps, sharding)
            dx = convolve_transposed(dys, W, steps, images.shape[1:-1])
        grads = {"W": dW}
        if bias:
            grads["b"] = jnp.sum(upcast(dys), axis=tuple(range(num_axes + 1)))
        return grads, dx.astype(x.dtype).reshape(x.shape)

    def as_batch(array):
        """The array with one leading axis."""
        return array.reshape(-1, *array.shape[-num_axes - 1 :])

    settings = {"kernel": kernel, "steps_for": lambda x: steps_and_sizes(x)[0]}
    return with_params(name, params, dtype, forward, backward, settings=settings)
