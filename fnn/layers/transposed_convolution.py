"""Transposed convolutions over one, two or three spatial axes."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from fnn.initializers import xavier_uniform, zeros
from fnn.layer import Layer
from fnn.layers.convolution import Initializer, Sizes, convolution


def ConvTranspose1d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: int | Sequence[Any] = 0,
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = xavier_uniform,
    bias_init: Initializer = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """ConvTranspose2d along one axis: x (..., length, in_channels).

    Shapes: y (..., out_length, out_channels); params {"W": (kernel length, in_channels,
    out_channels / groups), "b": (out_channels,)}.

    Arguments, backward, residuals and errors are those of ConvTranspose2d.
    """
    options = {"stride": stride, "padding": padding, "output_padding": output_padding}
    options |= {"dilation": dilation, "groups": groups}
    init = (bias, weight_init, bias_init, dtype)
    return convolution("ConvTranspose1d", 1, in_channels, out_channels, kernel_size, options, *init)


def ConvTranspose2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: int | Sequence[Any] = 0,
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = xavier_uniform,
    bias_init: Initializer = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """y[u, v, o] = b[o] + sum of x[i, j, c] W[k, l, c, o] over all i, j, k, l, c that meet u, v.

    They meet where u = s i + d k - p and v = t j + e l - q, with the strides s, t, the dilations d,
    e and the paddings p, q. So each number of x adds a kernel to y, and neighbours add theirs s
    rows or t columns apart. This is the dx of Conv2d. A stride makes the image larger:
    kernel_size=4, stride=2, padding=1 double its height and width.

    Backward: dx is Conv2d's y: dx[i, j, c] = sum over k, l, o of dy[u, v, o] W[k, l, c, o].
    dW[k, l, c, o] = sum of x[i, j, c] dy[u, v, o] over examples and i, j. db = sum of dy.
    Residuals: x, because dW needs it.

    Shapes: x (..., height, width, in_channels), y (..., out_height, out_width, out_channels) with
    out_height = s (height - 1) + d (kernel height - 1) + 1 + output_padding - padded rows; params
    {"W": (kernel height, kernel width, in_channels, out_channels / groups),
    "b": (out_channels,)}, without "b" if `bias` is False.

    Args:
        stride, dilation, groups, dtype: as for Conv2d.
        padding: how many rows and columns of y are left out: an int for both ends of each axis, or
            for each axis an int or a pair (before, after). padding=p undoes Conv2d's padding=p.
        output_padding: how many rows and columns y has more at the end. With a stride, Conv2d makes
            the same size of several; this chooses one. An int, or one for each spatial axis.
        weight_init, bias_init: as for Conv2d. weight_init is called with Conv2d's shape (kernel...,
            in_channels / groups, out_channels), so fan_in counts what one output sees at stride 1.

    Raises:
        ValueError: as for Conv2d; output_padding is not below the stride or the dilation; nothing
            of y is left.

    A network that removes noise. It learns from pairs of noisy images, of which none is clean::

        keys = jax.random.split(jax.random.key(0), 13)
        clean = 1.0 * jax.random.bernoulli(keys[0], 0.5, (64, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
        noisy, target = (clean + 0.5 * jax.random.normal(key, clean.shape) for key in keys[1:3])
        model = fnn.Sequential(
            fnn.Conv2d(1, 16, 4, stride=2, padding=1), fnn.ReLU(),
            fnn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), fnn.Sigmoid())
        state = fnn.init_train_state(model, fnn.sgd(1.0, 0.9), keys[0])
        epoch = fnn.make_train_epoch(model, fnn.MSELoss(), fnn.sgd(1.0, 0.9), batch_size=8)
        for key in keys[3:]:
            state, losses = epoch(state, noisy, target, key)

    fnn.predict(model, state.params, noisy) is then thirty times as near to clean as noisy is.
    """
    options = {"stride": stride, "padding": padding, "output_padding": output_padding}
    options |= {"dilation": dilation, "groups": groups}
    init = (bias, weight_init, bias_init, dtype)
    return convolution("ConvTranspose2d", 2, in_channels, out_channels, kernel_size, options, *init)


def ConvTranspose3d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    *,
    stride: Sizes = 1,
    padding: int | Sequence[Any] = 0,
    output_padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    bias: bool = True,
    weight_init: Initializer = xavier_uniform,
    bias_init: Initializer = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """ConvTranspose2d with a third axis: x (..., depth, height, width, in_channels).

    Shapes: y (..., out_depth, out_height, out_width, out_channels); params {"W": (kernel depth,
    height, width, in_channels, out_channels / groups), "b": (out_channels,)}.

    Arguments, backward, residuals and errors are those of ConvTranspose2d.
    """
    options = {"stride": stride, "padding": padding, "output_padding": output_padding}
    options |= {"dilation": dilation, "groups": groups}
    init = (bias, weight_init, bias_init, dtype)
    return convolution("ConvTranspose3d", 3, in_channels, out_channels, kernel_size, options, *init)
