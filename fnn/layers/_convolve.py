"""The three linear maps that convolutions and transposed convolutions are made of.

A convolution joins x, a kernel W and dy in one sum:

    sum over places i, k and channels c, o of dy[i, o] W[k, c, o] x[s i + d k - p, c]

It is linear in each of the three. Its derivative by dy is y, the one by W is dW, and the one by x
is dx. Here s is the stride, d the
dilation, and p the number of zeros before x. With groups, c and o run over the channels of one
group, and the groups stand side by side along the last axis.

A transposed convolution is the same sum with x and dy in each other's place: its y is the dx of
the convolution, and its dx is the y.

Shapes in the maps: x (n, spatial..., in), W (kernel..., in / groups, out), y and dy
(n, out spatial..., out). Their results have the accumulation dtype.
"""

import math
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fnn._numerics import accumulation_dtype, sharding_of, upcast
from fnn.layers._windows import Pads

# Groups of up to this many pairs of channels are narrow; a depthwise convolution has one pair in
# each. On a CPU XLA's convolution of them takes up to twenty times as long as a multiplication and
# a sum for each place of the kernel. Such a program grows with the places.
FEW_PAIRS, MANY_PLACES = 4, 64


class Steps(NamedTuple):
    """How a kernel moves over x, for each spatial axis, and the number of groups."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads
    groups: int


def extents(kernel: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[int, ...]:
    """The length of a kernel along each axis, with the dilation's gaps: d (k - 1) + 1."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))


def convolve(
    x: jax.Array, W: jax.Array, steps: Steps, spread: tuple[int, ...] | None = None
) -> jax.Array:
    """y: the sum of dy[i, o] W[k, c, o] x[s i + d k - p, c], without dy.

    `spread` puts spread - 1 zeros between the places of x first. The strides are then 1.
    """
    groups, c, o = steps.groups, W.shape[-2], W.shape[-1] // steps.groups
    kernel = W.shape[:-2]
    if _is_narrow(kernel, c, o, groups):
        x, W = _groups_last(groups, x, W)
        weights = upcast(W).reshape(-1, *(1,) * (x.ndim - 2), c, o, groups)
        places = list(product(*map(range, kernel)))

        def weighted(x, weight):
            """The sum of x[..., c, g] weight[c, o, g] over c, (..., o, g)."""
            return jnp.sum(jnp.expand_dims(upcast(x), -2) * weight, -3)

        # A place's weights multiply the smaller array: x before it is spread out, or what strides
        # leave of it. The compiler makes one loop of all places.
        if spread:
            terms = [weighted(x, weight) for weight in weights]
            terms = [
                moved(*pair, kernel, steps, spread) for pair in zip(terms, places, strict=True)
            ]
        else:
            met = [moved(x, place, kernel, steps) for place in places]
            terms = list(map(weighted, met, weights))
        return sum(terms).swapaxes(-1, -2).reshape(*terms[0].shape[:-2], groups * o)
    return _xla_convolution(
        x,
        W,
        window_strides=steps.strides,
        padding=steps.pads,
        lhs_dilation=spread,
        rhs_dilation=steps.dilations,
        feature_group_count=groups,
    )


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
    # The flip comes last. So XLA recognizes a convolution's dx, and calls cuDNN's program for it.
    turned = jax.lax.rev(swap_channels(W, steps.groups), range(len(kernel)))
    return convolve(dy, turned, Steps(ones, steps.dilations, pads, steps.groups), steps.strides)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: tuple[int, ...], steps: Steps, sharding: NamedSharding
) -> jax.Array:
    """dW for a kernel of these sizes: the same sum without W. It is the convolution of x with dy.

    Args:
        sharding: that of W. On a mesh of Explicit axes dW is replicated over its mesh.
    """
    groups, c, o = steps.groups, x.shape[-1] // steps.groups, dy.shape[-1] // steps.groups
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    if _is_narrow(kernel, c, o, groups):
        x, dy = _groups_last(groups, x, dy)
        leading = tuple(range(x.ndim - 2))
        dy = jnp.expand_dims(upcast(dy), -3)

        def product_at(place):
            """The sum of x[..., c, g] dy[..., o, g] over all leading axes, as (c, g, o)."""
            part = jnp.expand_dims(upcast(moved(x, place, kernel, steps)), -2)
            return jnp.sum(part * dy, leading).swapaxes(-1, -2)

        dW = jnp.stack([product_at(place) for place in product(*map(range, kernel))])
        return dW.reshape(*kernel, c, groups * o)

    axes, spatial = _lengths(x.shape[1:-1], dy.shape[1:-1], kernel, steps), range(1, x.ndim - 1)

    def convolve_with_dy(x, dy, **group_count):
        """x is (channels, spatial..., examples), or as by_feature_groups makes it."""
        dW = _xla_convolution(
            x,
            dy.transpose(*spatial, 0, -1),
            window_strides=steps.dilations,
            padding=[(p, (k + m - 1) - (n + p)) for n, m, k, p in axes],  # as for dx: k values
            rhs_dilation=steps.strides,
            out_sharding=replicated,
            **group_count,
        )
        return jnp.moveaxis(dW, 0, -2)

    def by_batch_groups(x, dy):
        return convolve_with_dy(x.transpose(-1, *spatial, 0), dy, batch_group_count=groups)

    def by_feature_groups(x, dy):
        """x becomes (channels of one group, spatial..., groups times examples)."""
        x = x.reshape(*x.shape[:-1], groups, c).transpose(-1, *spatial, -2, 0)
        x = x.reshape(*x.shape[:-2], groups * x.shape[-1])
        return convolve_with_dy(x, dy, feature_group_count=groups)

    if groups == 1 or any(sharding_of(x).spec):  # JAX joins no axis with one that is sharded
        return by_batch_groups(x, dy)
    # On a CPU batch groups are up to ten times slower. Elsewhere they are what autodiff uses.
    return jax.lax.platform_dependent(x, dy, cpu=by_feature_groups, default=by_batch_groups)


def swap_channels(W: jax.Array, groups: int) -> jax.Array:
    """W (kernel..., in / groups, out) as (kernel..., out / groups, in)."""
    swapped = W.reshape(*W.shape[:-1], groups, W.shape[-1] // groups).swapaxes(-1, -3)
    return swapped.reshape(*swapped.shape[:-2], groups * W.shape[-2])


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


def moved(
    x: jax.Array,
    place: tuple[int, ...],
    kernel: tuple[int, ...],
    steps: Steps,
    spread: tuple[int, ...] | None = None,
) -> jax.Array:
    """The numbers that place k of the kernel meets: x[s i + d k - p] for all i.

    x is (n, spatial..., channel axes...), with spread - 1 zeros put between its places.
    """
    rest = x.ndim - 1 - len(kernel)
    spread = spread or (1,) * len(kernel)
    axes = zip(steps.pads, place, kernel, steps.dilations, spread, strict=True)
    widths = [
        (before - d * k, after - d * (length - 1 - k), between - 1)
        for (before, after), k, length, d, between in axes
    ]
    nothing = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, nothing, [(0, 0, 0), *widths, *[(0, 0, 0)] * rest])
    return jax.lax.slice(x, (0,) * x.ndim, x.shape, (1, *steps.strides, *(1,) * rest))


def _is_narrow(kernel, c, o, groups):
    """Whether a product for each place of the kernel is faster than XLA's convolution."""
    return groups > 1 and c * o <= FEW_PAIRS and math.prod(kernel) <= MANY_PLACES


def _groups_last(groups, *arrays):
    """Arrays (..., channels) as (..., channels of one group, groups).

    A loop over the groups then has neighbours in memory.
    """
    split = [a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups) for a in arrays]
    return [a.swapaxes(-1, -2) for a in split]


def _lengths(sizes, out_sizes, kernel, steps):
    """For each axis (n, m, k, p): as in convolve_transposed."""
    spread = extents(out_sizes, steps.strides)
    before = [before for before, _ in steps.pads]
    return list(zip(sizes, spread, extents(kernel, steps.dilations), before, strict=True))
