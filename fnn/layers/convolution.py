"""Convolution of images (..., height, width, channels)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_sizes
from fnn._numerics import accumulation_dtype, broadcast_last_axis, sharding_of, upcast
from fnn.initializers import xavier_uniform, zeros
from fnn.layer import Layer
from fnn.layers._frame import with_params
from fnn.layers._windows import check_padding, output_sizes, pads_of


def Conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = "VALID",
    bias: bool = True,
    weight_init: Callable[..., jax.Array] = xavier_uniform,
    bias_init: Callable[..., jax.Array] = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """y[i, j, o] = b[o] + sum over k, l, c of x[s i + k - p, t j + l - q, c] W[k, l, c, o].

    s, t are the strides, and p, q the numbers of zero rows and columns before x. Padding "VALID"
    adds none. An int or a pair adds that many before and after x. "SAME" adds as many as make y
    ceil(height / s) by ceil(width / t); of an odd number the extra one comes after x.

    Backward:
        dW[k, l, c, o] = sum of x[s i + k - p, t j + l - q, c] dy[i, j, o] over examples and i, j.
        This is a convolution of x with dy.
        db = sum of dy.
        dx is the convolution of dy, spread out by the strides, with W turned by 180 degrees.
    Residuals: x.

    Shapes: x (..., height, width, in_channels), y (..., out_height, out_width, out_channels) with
    out_height = floor((height + zero rows - kernel height) / s) + 1; params
    {"W": (kernel height, kernel width, in_channels, out_channels), "b": (out_channels,)}, without
    "b" if `bias` is False.

    Args:
        weight_init, bias_init: functions (key, shape, dtype) -> array, such as fnn.kaiming_normal
            or jax.nn.initializers.he_normal().
        dtype: the dtype of the parameters.

    Raises:
        ValueError: a size is not a positive integer; padding is not one of the above; x is smaller
            than the kernel; x, dy, params or residuals have another shape or are not floating.
    """
    in_channels = check_integer("Conv2d", "in_channels", in_channels, 1)
    out_channels = check_integer("Conv2d", "out_channels", out_channels, 1)
    kernel = check_sizes("Conv2d", "kernel_size", kernel_size, 2, 1)
    strides = check_sizes("Conv2d", "stride", stride, 2, 1)
    padding = check_padding("Conv2d", padding, 2)
    name = f"Conv2d({in_channels}, {out_channels}, {kernel})"
    params = {"W": ((*kernel, in_channels, out_channels), weight_init)}
    if bias:
        params["b"] = ((out_channels,), bias_init)

    def pads_and_size(x):
        """The numbers of zeros (before, after) each spatial axis, and y's size along it."""
        size = x.shape[-3:-1]
        if 0 in size:
            raise ValueError(f"{name}: expected x with rows and columns, got {x.shape}")
        pads = pads_of(padding, size, kernel, strides)
        out = output_sizes(size, pads, kernel, strides)
        if min(out) < 1:
            raise ValueError(f"{name}: expected x no smaller than the kernel, got {x.shape}")
        return pads, out

    def convolve(a, b, **settings):
        """a (n, height, width, c) with b (height, width, c, o).

        Callers transpose other axis orders into this one. In the body of a scan, XLA's CPU compiler
        does not do it, and the convolution is then up to 30 times slower.
        """
        return jax.lax.conv_general_dilated(
            a,
            b,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=accumulation_dtype(a.dtype),
            **settings,
        )

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., "height", "width", in_channels))
        pads, out = pads_and_size(x)
        images = x.reshape(-1, *x.shape[-3:])
        W = params["W"].astype(x.dtype)
        y = convolve(images, W, window_strides=strides, padding=pads)
        if bias:
            y = y + broadcast_last_axis(params["b"], y)
        return y.astype(x.dtype).reshape(*x.shape[:-3], *out, out_channels), x

    def backward(params, x, dy):
        x = check_array(name, "residuals", x, (..., "height", "width", in_channels))
        pads, out = pads_and_size(x)
        dy = check_array(name, "dy", dy, (*x.shape[:-3], *out, out_channels), x.dtype)
        images, dys = (array.reshape(-1, *array.shape[-3:]) for array in (x, dy))
        # Lengths along an axis: n of x, p of the zeros before x, k of W, and m of dy with the
        # stride's zeros between its places.
        # A convolution of a with b has len(a) + zeros - len(b) + 1 values. So k values of dW need
        # k + m - 1 - (n + p) zeros after x. And n values of dx need k - 1 - p zeros before dy and
        # n + p - m after it. A negative number crops.
        before = [pad[0] for pad in pads]
        spread = [(size - 1) * stride + 1 for size, stride in zip(out, strides, strict=True)]
        axes = list(zip(x.shape[-3:-1], spread, kernel, before, strict=True))
        dW = convolve(
            images.transpose(3, 1, 2, 0),
            dys.transpose(1, 2, 0, 3),
            window_strides=(1, 1),
            padding=[(p, (k + m - 1) - (n + p)) for n, m, k, p in axes],
            rhs_dilation=strides,
            out_sharding=sharding_of(params["W"]),
        )
        dx = convolve(
            dys,
            params["W"].astype(x.dtype)[::-1, ::-1].swapaxes(2, 3),
            window_strides=(1, 1),
            padding=[(k - 1 - p, (n + p) - m) for n, m, k, p in axes],
            lhs_dilation=strides,
        )
        grads = {"W": dW.transpose(1, 2, 0, 3)}
        if bias:
            grads["b"] = jnp.sum(upcast(dys), axis=(0, 1, 2))
        return grads, dx.astype(x.dtype).reshape(x.shape)

    return with_params(name, params, dtype, forward, backward)
