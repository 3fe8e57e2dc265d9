"""What convolution and pooling share: windows that move along the spatial axes of x."""

from typing import Any

import jax

from fnn._checks import check_integer

Pads = tuple[tuple[int, int], ...]  # for each spatial axis the places added (before, after) it


def check_padding(
    name: str, padding: Any, num_axes: int, words: tuple[str, ...] = ("VALID", "SAME")
) -> str | Pads:
    """Return one of `words` as it is, and other paddings as the pair (before, after) of each axis.

    Those are an integer for all axes, or for each axis an integer or a pair of them, all >= 0.
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
