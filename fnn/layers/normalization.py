"""Normalization: of each example by itself, and of a batch.

All compute n = (x - mean) / sqrt(variance + eps), or for RMSNorm n = x / sqrt(mean(x^2) + eps), and
y = n * scale + bias. They differ in the numbers over which mean and variance are taken: the
variance is that of the numbers, with divisor N and not N - 1. 16-bit numbers are computed in
float32.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_key, check_nonnegative
from fnn._numerics import accumulation_dtype, broadcast_last_axis, upcast
from fnn.layer import Layer
from fnn.layers._frame import with_params

ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros


def LayerNorm(dim: int | tuple[int, ...], eps: float = 1e-5, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale + bias with n = (x - mean) / sqrt(variance + eps), over the last axes.

    Backward, with dn = dy * scale:
    dx = (dn - mean(dn) - n * mean(dn * n)) / sqrt(variance + eps);
    dscale = sum of dy * n and dbias = sum of dy, over all leading axes. Ba et al., 2016.

    Residuals: x, and for each example the mean, 1 / sqrt(variance + eps), and a factor, mostly 1,
    that keeps squares from overflowing.

    Shapes: x, y (..., dim); params {"scale": (dim,), "bias": (dim,)}, ones and zeros of `dtype`.
    A tuple as dim stands for several axes: with dim (4, 3), x is (..., 4, 3) and scale (4, 3).

    Raises:
        ValueError: dim is not a positive integer, or a tuple of them; eps is negative or not
            finite; x, dy, params or residuals have another shape or are not floating.
    """
    return _over_last_axes("LayerNorm", dim, eps, dtype, centered=True)


def RMSNorm(dim: int | tuple[int, ...], eps: float = 1e-6, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale with n = x / sqrt(mean(x^2) + eps), over the last axes.

    Backward, with dn = dy * scale: dx = (dn - n * mean(dn * n)) / sqrt(mean(x^2) + eps);
    dscale = sum of dy * n over all leading axes. Zhang and Sennrich, 2019.

    torch.nn.RMSNorm has another default: there eps is the dtype's epsilon, 1.2e-7 for float32.

    Residuals: x, and for each example 1 / sqrt(mean(x^2) + eps), and a factor, mostly 1, that keeps
    squares from overflowing.

    Shapes: as LayerNorm; params {"scale": (dim,)}, ones of `dtype`.

    Raises:
        ValueError: as LayerNorm.
    """
    return _over_last_axes("RMSNorm", dim, eps, dtype, centered=False)


def GroupNorm(
    num_groups: int,
    num_channels: int,
    eps: float = 1e-5,
    *,
    num_axes: int = 2,
    dtype: Any = jnp.float32,
) -> Layer:
    """y = n * scale + bias with n = (x - mean) / sqrt(variance + eps), over groups of channels.

    Mean and variance are those of an example's num_channels / num_groups neighbouring channels, at
    all places of its num_axes spatial axes together. Backward: as LayerNorm. Wu and He, 2018.

    Residuals: as LayerNorm, with numbers for each example and group.

    Shapes: x, y (..., height, width, num_channels), or with num_axes=1 (..., time, num_channels);
    params {"scale": (num_channels,), "bias": (num_channels,)}, ones and zeros of `dtype`.

    Args:
        num_axes: the number of spatial axes. torch.nn.GroupNorm takes all axes after the first two.
            A sequence (batch, time, channels) needs num_axes=1: two axes would be batch and time.

    Raises:
        ValueError: a number is not a positive integer (num_axes may be 0); num_groups does not
            divide num_channels; otherwise as LayerNorm.
    """
    num_groups = check_integer("GroupNorm", "num_groups", num_groups, 1)
    num_channels = check_integer("GroupNorm", "num_channels", num_channels, 1)
    if num_channels % num_groups:
        raise ValueError(
            f"GroupNorm: expected num_channels that {num_groups} groups divide, got {num_channels}"
        )
    name = f"GroupNorm({num_groups}, {num_channels})"
    return _over_groups(name, num_groups, num_channels, eps, num_axes, dtype)


def InstanceNorm(
    num_channels: int, eps: float = 1e-5, *, num_axes: int = 2, dtype: Any = jnp.float32
) -> Layer:
    """GroupNorm with one channel a group: each channel of an example is normalized by itself.

    Ulyanov et al., 2016. Unlike torch.nn.InstanceNorm2d, it always has scale and bias, as there
    affine=True. Backward, residuals, shapes, arguments and errors: as GroupNorm.
    """
    num_channels = check_integer("InstanceNorm", "num_channels", num_channels, 1)
    name = f"InstanceNorm({num_channels})"
    return _over_groups(name, num_channels, num_channels, eps, num_axes, dtype)


def BatchNorm(num_channels: int, eps: float = 1e-5, *, dtype: Any = jnp.float32) -> Layer:
    """y = n * scale + bias with n = (x - mean) / sqrt(variance + eps), for each channel.

    With a key, in training mode, mean and variance are those of the channel over all other axes of
    x: over the batch, and over height and width. Backward goes through them, N numbers a channel:
    dx = scale * (dy - dbias / N - n * dscale / N) / sqrt(variance + eps).

    Without a key, in evaluation mode, mean and variance are params["mean"] and params["var"], and
    dx = scale * dy / sqrt(variance + eps). In both modes dscale = sum of dy * n and dbias = sum of
    dy, and the grads of mean and var are 0. Ioffe and Szegedy, 2015.

    There is no running average. After the training, fnn.calibrate(model, params, x) sets mean and
    var to those of x; fnn.fit does so by itself. Weight decay leaves them alone, because they are
    called "mean" and "var".

    What it costs: the examples of a batch depend on each other. So y changes with the batch, a part
    of accumulate_gradients is normalized by itself, and there are no per-example gradients. Over a
    mesh each BatchNorm has an all-reduce of its own, forward and backward.

    Residuals: x; in training mode also each channel's mean and 1 / sqrt(variance + eps).

    Shapes: x, y (..., num_channels); params {"scale", "bias", "mean", "var"}, each
    (num_channels,), ones, zeros, zeros and ones of `dtype`; mean and var in float32 for 16 bits.

    Raises:
        ValueError: in training mode, a channel has fewer than two numbers, as in an epoch's last
            batch of one example; otherwise as LayerNorm.
    """
    num_channels = check_integer("BatchNorm", "num_channels", num_channels, 1)
    check_nonnegative("BatchNorm", "eps", eps)
    name, shape = f"BatchNorm({num_channels})", (num_channels,)
    params = {"scale": (shape, ones), "bias": (shape, zeros)}
    params |= {"mean": (shape, _in_wide_dtype(zeros)), "var": (shape, _in_wide_dtype(ones))}

    def from_params(params, wide):
        # To jax.jvp they are constants too.
        mean, variance = (
            jax.lax.stop_gradient(params[entry]).astype(wide.dtype) for entry in ("mean", "var")
        )
        return mean, jax.lax.rsqrt(variance + jnp.asarray(eps, wide.dtype))

    def from_batch(wide):
        if math.prod(wide.shape[:-1]) in (0, 1):
            expected = "at least two numbers for each channel in training mode"
            raise ValueError(f"{name}: expected x with {expected}, got shape {wide.shape}")
        center, factor, inverse = _statistics(wide, tuple(range(wide.ndim - 1)), eps)
        return center.reshape(shape), (factor * inverse).reshape(shape)

    def normalize(wide, center, inverse):
        return (wide - broadcast_last_axis(center, wide)) * broadcast_last_axis(inverse, wide)

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., num_channels))
        wide, measured = upcast(x), None
        if key is not None:
            check_key(name, key)
            measured = from_batch(wide)
        n = normalize(wide, *(measured or from_params(params, wide)))
        scale, bias = (broadcast_last_axis(params[entry], wide) for entry in ("scale", "bias"))
        return (n * scale + bias).astype(x.dtype), (x, measured)

    def backward(params, residuals, dy):
        x, measured = residuals
        x = check_array(name, "residuals", x, (..., num_channels))
        dy = upcast(check_array(name, "dy", dy, x.shape, x.dtype))
        wide = upcast(x)
        center, inverse = measured or from_params(params, wide)
        n = normalize(wide, center, inverse)
        leading = tuple(range(x.ndim - 1))
        dscale, dbias = jnp.sum(dy * n, leading), jnp.sum(dy, leading)
        none = jnp.zeros_like(dbias)
        grads = {"scale": dscale, "bias": dbias, "mean": none, "var": none}
        dx = dy
        if measured:
            count = jnp.asarray(math.prod(x.shape[:-1]), wide.dtype)
            dx = dx - broadcast_last_axis(dbias / count, dy)
            dx = dx - n * broadcast_last_axis(dscale / count, dy)
        slope = params["scale"].astype(wide.dtype) * inverse
        return grads, (dx * broadcast_last_axis(slope, dy)).astype(x.dtype)

    return with_params(name, params, dtype, forward, backward, uses_key=True, couples_examples=True)


def _in_wide_dtype(initializer):
    """The initializer for numbers that 16 bits may not hold."""
    return lambda key, shape, dtype: initializer(key, shape, accumulation_dtype(dtype))


def _over_last_axes(kind, dim, eps, dtype, centered):
    lengths = dim if isinstance(dim, tuple | list) else (dim,)
    shape = tuple(check_integer(kind, "dim", length, 1) for length in lengths)
    if not shape:
        raise ValueError(f"{kind}: expected dim to be an integer or several, got {dim!r}")
    name = f"{kind}({shape[0] if len(shape) == 1 else shape})"
    axes = tuple(range(-len(shape), 0))
    return _normalization(name, shape, shape, axes, eps, dtype, centered, lambda array: array)


def _over_groups(name, num_groups, num_channels, eps, num_axes, dtype):
    kind = name.partition("(")[0]
    num_axes = check_integer(kind, "num_axes", num_axes, 0)
    name = name if num_axes == 2 else f"{name[:-1]}, num_axes={num_axes})"
    spatial = ("height", "width") if num_axes == 2 else ("n",) * num_axes

    def in_groups(array):
        return array.reshape(*array.shape[:-1], num_groups, num_channels // num_groups)

    axes = (*range(-num_axes - 2, -2), -1)
    x_shape = (*spatial, num_channels)
    return _normalization(name, x_shape, (num_channels,), axes, eps, dtype, True, in_groups)


def _normalization(
    name: str,
    x_shape: tuple[Any, ...],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    eps: float,
    dtype: Any,
    centered: bool,
    view: Callable[[jax.Array], jax.Array],
) -> Layer:
    """The layer that normalizes over `axes` of view(x), for x (..., *x_shape) and params `shape`.

    view reshapes the last axes of x, scale or bias.
    """
    check_nonnegative(name.partition("(")[0], "eps", eps)
    params = {"scale": (shape, ones)}
    if centered:
        params["bias"] = (shape, zeros)

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., *x_shape))
        wide = view(upcast(x))
        statistics = _statistics(wide, axes, eps, centered)
        y = _normalize(wide, *statistics) * broadcast_last_axis(view(params["scale"]), wide)
        if centered:
            y = y + broadcast_last_axis(view(params["bias"]), wide)
        return y.astype(x.dtype).reshape(x.shape), (x, *statistics)

    def backward(params, residuals, dy):
        x, *statistics = residuals
        x = check_array(name, "residuals", x, (..., *x_shape))
        dy = view(upcast(check_array(name, "dy", dy, x.shape, x.dtype)))
        wide = view(upcast(x))
        n = _normalize(wide, *statistics)
        dn = dy * broadcast_last_axis(view(params["scale"]), dy)
        examples = tuple(range(x.ndim - len(shape)))
        grads = {"scale": jnp.sum(dy * n, axis=examples).reshape(shape)}
        if centered:
            grads["bias"] = jnp.sum(dy, axis=examples).reshape(shape)
        dx = dn - n * jnp.mean(dn * n, axes, keepdims=True)
        dx = dx - jnp.mean(dn, axes, keepdims=True) if centered else dx
        _, factor, inverse = statistics
        return grads, (dx * (factor * inverse)).astype(x.dtype).reshape(x.shape)

    return with_params(name, params, dtype, forward, backward)


def _statistics(x, axes, eps, centered=True):
    """What normalizes x: center, factor and inverse. The axes stay, with length 1.

    center is the mean over `axes`. Not centered, it is None, and mean(x^2) replaces the variance.
    The squares of x * factor neither overflow nor underflow. For most x the factor is 1. factor *
    inverse is 1 / sqrt(variance + eps).
    """
    center, finite = None, jnp.finfo(x.dtype)
    root_eps = jnp.sqrt(jnp.asarray(eps, x.dtype))
    # To jax.jvp the factor is a constant, because it cancels.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0))
    largest = jnp.clip(largest, finite.tiny, finite.max)
    most = 2.0 ** (finite.maxexp // 4)  # the derivative of rsqrt has the power -3/2 of a square
    factor, increase = jnp.minimum(1, most / largest), 1
    if isinstance(eps, jax.core.Tracer) or eps < most**-2:  # else what underflows is nothing to eps
        increase = jnp.where(largest < 1 / most, most**2, 1)
        factor = factor * increase
    if centered:
        count = max(1, math.prod(x.shape[axis] for axis in axes))
        power = 2.0 ** count.bit_length()  # dividing by it rounds nothing, and no sum overflows
        center = jnp.sum(x * increase / power, axes, keepdims=True) * (power / count) / increase
        # Without this barrier both passes together read x more often on a GPU.
        center = jax.lax.optimization_barrier(center)
    offset, root = (x - center if centered else x) * factor, root_eps * factor
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(offset), axes, keepdims=True) + jnp.square(root))
    return center, factor, jnp.minimum(inverse, 1 / root)  # the square of root may be 0


def _normalize(x, center, factor, inverse):
    return x * (factor * inverse) if center is None else (x - center) * factor * inverse
