"""What convolution, pooling and resizing share: windows along the spatial axes of x."""

from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer

NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
Pads = tuple[tuple[int, int], ...]  # for each spatial axis the places added (before, after) it


def check_places(name: str, x: Any, least: tuple[int, ...]) -> jax.Array:
    """Return x (..., spatial axes, channels) as a jax array, of at least these spatial lengths."""
    num_axes = len(least)
    x = check_array(name, "x", x, (..., *NAMES.get(num_axes, ("n",) * num_axes), "channels"))
    if any(n < low for n, low in zip(x.shape[-1 - num_axes : -1], least, strict=True)):
        raise ValueError(f"{name}: expected x of at least {least} places, got {x.shape}")
    return x


def check_padding(
    name: str, padding: Any, num_axes: int, words: tuple[str, ...] = ("VALID", "SAME")
) -> str | Pads:
    """Return one of `words` as it is, and others as a pair (before, after) for each axis.

    Others are an integer for all axes, or for each axis an integer or a pair of them, all >= 0.
    """
    if isinstance(padding, str):
        if padding in words:
            return padding
    elif not isinstance(padding, tuple | list):
        return ((check_integer(name, "padding", padding, 0),) * 2,) * num_axes
    elif len(padding) == num_axes:
        pairs = [pair if isinstance(pair, tuple | list) else (pair, pair) for pair in padding]
        if all(len(pair) == 2 for pair in pairs):
            return tuple(
                tuple(check_integer(name, "padding", size, 0) for size in pair) for pair in pairs
            )
    expected = ", ".join([*map(repr, words), "an integer"])
    raise ValueError(
        f"{name}: expected padding {expected}, or {num_axes} integers or pairs, got {padding!r}"
    )


def pads_of(
    padding: str | Pads, sizes: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, ...]
) -> Pads:
    """The pairs that a checked padding means for spatial axes of these sizes.

    `window` holds the extent of the window, which with a dilation d is d (k - 1) + 1.
    """
    if not isinstance(padding, str):
        return padding
    return tuple(jax.lax.padtype_to_pads(sizes, window, strides, padding))


def output_sizes(
    sizes: tuple[int, ...], pads: Pads, window: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...]:
    """How many windows fit along each axis: floor((n + zeros - k) / s) + 1, below 1 for none."""
    return tuple(
        (n + sum(pad) - k) // s + 1
        for n, pad, k, s in zip(sizes, pads, window, strides, strict=True)
    )


def split_axis(array: jax.Array, axis: int, size: int) -> jax.Array:
    """(..., n * size, ...) -> (..., n, size, ...): an axis, counted from the end, in blocks."""
    at = axis % array.ndim
    n = array.shape[at] // size
    return array.reshape(*array.shape[:at], n, size, *array.shape[at + 1 :])


def merge_axis(blocks: jax.Array, axis: int) -> jax.Array:
    """(..., n, size, ...) -> (..., n * size, ...): the inverse of split_axis.

    XLA merges two neighbouring axes without a copy.
    """
    at = axis % (blocks.ndim - 1)
    n, size = blocks.shape[at : at + 2]
    return blocks.reshape(*blocks.shape[:at], n * size, *blocks.shape[at + 2 :])


def spread(
    array: jax.Array, axis: int, start: int, length: int, stride: int = 1, fill: Any = 0
) -> jax.Array:
    """The array with `stride` from place to place, the first at `start`, `length` in all.

    `fill` is everywhere else. What would be outside of the length is cut off.
    """
    end = start + (array.shape[axis] - 1) * stride + 1
    if (start, end, stride) == (0, length, 1):
        return array
    config = [(0, 0, 0)] * array.ndim
    config[axis] = (start, length - end, stride - 1)
    return jax.lax.pad(array, jnp.asarray(fill, array.dtype), config)


def options_in_name(**options: Any) -> str:
    """ ", padding=1, groups=2": the options that are not the usual ones, for a layer's name.

    Equal sizes of all axes are one number.
    """
    usual = {"stride": 1, "dilation": 1, "groups": 1, "bias": True}

    def short(value):
        if not isinstance(value, tuple):
            return value
        first, *others = map(short, value)
        return first if all(other == first for other in others) else (first, *others)

    texts = []
    for what, value in options.items():
        if short(value) not in ("VALID", usual.get(what, 0)):
            texts.append(f", {what}={short(value)!r}")
    return "".join(texts)
