"""The forward and backward pass of all convolutions, and the three linear maps they are made of.

A convolution joins x, a kernel W and dy in one sum:

    sum over places i, k and channels c, o of dy[i, o] W[k, c, o] x[s i + d k - p, c]

It is linear in each of the three. y, dW and dx are its derivatives: y is what dy is multiplied by,
dW is what W is multiplied by, and dx is what x is multiplied by. Here s is the stride, d the
dilation, and p the number of zeros before x. With groups, c and o run over the channels of one
group, and the groups stand side by side along the last axis.

A transposed convolution is the same sum with x and dy in each other's place: its y is the dx of
the convolution, and its dx is the y.

Shapes in the maps: x (n, spatial..., in), W (kernel..., in / groups, out), y and dy
(n, out spatial..., out). Their results have the accumulation dtype.
"""

import math
import operator
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fnn._checks import check_array, check_integer, check_sizes
from fnn._numerics import accumulation_dtype, broadcast_last_axis, sharding_of, upcast
from fnn.layer import Layer
from fnn.layers._frame import with_params
from fnn.layers._windows import Pads, check_padding, output_sizes, pads_of

# A kernel of up to this many places is handled by a slice for each place, where groups make XLA's
# own convolution slow. The program grows with the places.
MANY_PLACES = 64

# The values of options that are not in a layer's name, because they are the usual ones.
USUAL = {
    "stride": (1,),
    "padding": ("VALID", 0),
    "output_padding": (0,),
    "dilation": (1,),
    "groups": (1,),
}


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
    chosen = [f", {what}={value!r}" for what, value in options.items() if value not in USUAL[what]]
    name = f"{kind}({in_channels}, {out_channels}, {kernel}{''.join(chosen)})"
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

    return with_params(name, params, dtype, forward, backward)


class Steps(NamedTuple):
    """How a kernel moves over x, for each spatial axis, and the number of groups."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads
    groups: int


def extents(kernel: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[int, ...]:
    """The length of a kernel along each axis, with the dilation's gaps: d (k - 1) + 1."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))


def convolve(x: jax.Array, W: jax.Array, steps: Steps) -> jax.Array:
    """y: the sum of dy[i, o] W[k, c, o] x[s i + d k - p, c], without dy."""
    return _convolve(x, W, steps, (1,) * len(steps.pads))


def convolve_transposed(
    dy: jax.Array, W: jax.Array, steps: Steps, sizes: tuple[int, ...]
) -> jax.Array:
    """dx for an x of these spatial sizes: the same sum without x.

    It is the convolution of dy, spread out by the strides, with W turned by 180 degrees.
    """
    kernel, ones = W.shape[:-2], (1,) * len(sizes)
    # Lengths along an axis: n of x, p of the zeros before x, k of W with its gaps, and m of dy with
    # the stride's zeros between its places. A convolution of a with b has
    # len(a) + zeros - len(b) + 1 values. So n values of dx need k - 1 - p zeros before dy and
    # n + p - m after it. A negative number crops.
    axes = _lengths(sizes, dy.shape[1:-1], kernel, steps)
    pads = tuple((k - 1 - p, n + p - m) for n, m, k, p in axes)
    turned = swap_channels(jnp.flip(W, range(len(kernel))), steps.groups)
    return _convolve(dy, turned, Steps(ones, steps.dilations, pads, steps.groups), steps.strides)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: tuple[int, ...], steps: Steps, sharding: NamedSharding
) -> jax.Array:
    """dW for a kernel of these sizes: the same sum without W.

    For each place of the kernel it is the product of dy with the part of x that the place meets.
    Without groups, XLA's convolution of x with dy computes all places at once.
    """
    groups, channels, features = steps.groups, x.shape[-1], dy.shape[-1]
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    if groups > 1 and math.prod(kernel) <= MANY_PLACES:
        # XLA's CPU compiler makes a convolution of batch_group_count many times slower than this.
        parts = _parts(x, kernel, steps, (1,) * len(kernel))
        dW = jnp.stack([_product_of_groups(part, dy, groups, replicated) for part in parts])
        return dW.swapaxes(1, 2).reshape(*kernel, channels // groups, features)
    axes = _lengths(x.shape[1:-1], dy.shape[1:-1], kernel, steps)
    spatial = range(1, len(kernel) + 1)
    dW = _xla_convolution(
        x.transpose(-1, *spatial, 0),
        dy.transpose(*spatial, 0, -1),
        window_strides=steps.dilations,
        padding=[(p, (k + m - 1) - (n + p)) for n, m, k, p in axes],  # k + ... as for dx above
        rhs_dilation=steps.strides,
        batch_group_count=groups,
        out_sharding=replicated,
    )
    return jnp.moveaxis(dW, 0, -2)


def swap_channels(W: jax.Array, groups: int) -> jax.Array:
    """W (kernel..., in / groups, out) as (kernel..., out / groups, in)."""
    *kernel, channels, features = W.shape
    split = W.reshape(*kernel, channels, groups, features // groups)
    return split.swapaxes(-1, -3).reshape(*kernel, features // groups, groups * channels)


def _convolve(x, W, steps, spread):
    """The convolution of x, with spread - 1 zeros between its places, with W."""
    strides, dilations, pads, groups = steps
    *kernel, channels, features = W.shape
    if channels == 1 and features == groups > 1 and math.prod(kernel) <= MANY_PLACES:
        # Depthwise: each channel by itself. XLA's convolution then takes the CPU ten times as long
        # as these products, which the compiler makes one loop.
        weights = W.reshape(-1, features)
        parts = map(upcast, _parts(x, kernel, steps, spread))
        return sum(
            part * broadcast_last_axis(weight, part)
            for part, weight in zip(parts, weights, strict=True)
        )
    return _xla_convolution(
        x,
        W,
        window_strides=strides,
        padding=pads,
        lhs_dilation=spread,
        rhs_dilation=dilations,
        feature_group_count=groups,
    )


def _xla_convolution(a, b, **settings):
    """a (n, spatial..., c) with b (spatial..., c, o).

    Callers transpose other axis orders into this one. In the body of a scan, XLA's CPU compiler
    does not do it, and the convolution is then up to 30 times slower.
    """
    spatial = "DHW"[5 - a.ndim :]
    return jax.lax.conv_general_dilated(
        a,
        b,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        preferred_element_type=accumulation_dtype(a.dtype),
        **settings,
    )


def _parts(x, kernel, steps, spread):
    """For each place k of the kernel the numbers that it meets: x[s i + d k - p] for all i."""
    gaps = [(*pad, between - 1) for pad, between in zip(steps.pads, spread, strict=True)]
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])
    ends = extents(kernel, steps.dilations)
    parts = []
    for place in product(*map(range, kernel)):
        starts = [k * d for k, d in zip(place, steps.dilations, strict=True)]
        stops = [
            n - (end - 1) + start
            for n, end, start in zip(padded.shape[1:-1], ends, starts, strict=True)
        ]
        starts, stops = (0, *starts, 0), (x.shape[0], *stops, x.shape[-1])
        parts.append(jax.lax.slice(padded, starts, stops, (1, *steps.strides, 1)))
    return parts


def _product_of_groups(x, dy, groups, out_sharding):
    """The sum of x[..., g, c] dy[..., g, o] over all leading axes, (groups, c, o)."""
    leading = tuple(range(x.ndim - 1))
    if x.shape[-1] == dy.shape[-1] == groups:
        return jnp.sum(upcast(x) * upcast(dy), axis=leading).reshape(groups, 1, 1)
    x, dy = (a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups) for a in (x, dy))
    return jax.lax.dot_general(
        x,
        dy,
        ((leading, leading), ((x.ndim - 2,), (x.ndim - 2,))),
        preferred_element_type=accumulation_dtype(x.dtype),
        out_sharding=out_sharding,
    )


def _lengths(sizes, out_sizes, kernel, steps):
    """For each axis (n, m, k, p): as in convolve_transposed."""
    spread = extents(out_sizes, steps.strides)
    before = [before for before, _ in steps.pads]
    return list(zip(sizes, spread, extents(kernel, steps.dilations), before, strict=True))
