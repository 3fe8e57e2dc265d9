"""split_backward: a backward pass in two halves, which may run at different times."""

from collections.abc import Callable
from typing import Any

import jax

from fnn.inspection import map_layers, opens
from fnn.layer import Layer, check_is_layer

# They pass dy on to the layers inside, and compute nothing for grads themselves.
OPENED = ("Sequential", "Residual", "Parallel", "repeat", "StochasticDepth", "reverse_time")
OPENED += ("scale_gradient", "clip_gradient")
_is_opened = opens(OPENED)


def split_backward(layer: Layer) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(backward_input, backward_params), two halves of layer.backward.

        backward_input(params, residuals, dy) -> (dx, kept)
        backward_params(params, residuals, kept) -> grads

    The first half computes what the layers before wait for. The second computes the rest, at any
    later time. Together they compute, under jit, what layer.backward computes. Schedules of
    pipelines fill idle time with the second half: Qi et al., 2023.

    kept: the dy of each layer inside that has parameters, in the place of its params; and the dy of
    the whole, whose shape the second half needs.

    Sequential, Residual, Parallel, repeat, StochasticDepth, reverse_time, scale_gradient and
    clip_gradient are looked into. Another layer with layers inside, such as remat, is one layer:
    its two halves both compute what they share.

    Raises:
        ValueError: `layer` is not a Layer.

    dx is there before the gradients are:

        >>> layer = fnn.Sequential(fnn.Linear(2, 3), fnn.Tanh())
        >>> backward_input, backward_params = fnn.split_backward(layer)
        >>> params = layer.init(jax.random.key(0))
        >>> y, residuals = layer.forward(params, jnp.ones((4, 2)))
        >>> dx, kept = backward_input(params, residuals, dy=jnp.ones_like(y))
        >>> grads = backward_params(params, residuals, kept)
        >>> dx.shape, grads[0]["W"].shape
        ((4, 2), (3, 2))
    """
    check_is_layer("split_backward", layer)
    recording = map_layers(_recording, layer, opened=_is_opened)
    replaying = map_layers(_replaying, layer, opened=_is_opened)

    def backward_input(params, residuals, dy):
        kept, dx = recording.backward(params, residuals, dy)
        return dx, (dy, kept)

    def backward_params(params, residuals, kept):
        dy, inside = kept
        pairs = jax.tree.map(lambda dy, part: (part, dy), inside, params)
        return replaying.backward(pairs, residuals, dy)[0]

    return backward_input, backward_params


def _recording(place, layer):
    """The layer with its dy in place of grads."""
    if _is_opened(layer):
        return layer

    def backward(params, residuals, dy):
        _, dx = layer.backward(params, residuals, dy)
        return (dy if jax.tree.leaves(params) else params), dx

    return layer._replace(backward=backward)


def _replaying(place, layer):
    """The layer whose params are (params, dy), and which ignores the dy that it is given."""
    if _is_opened(layer):
        return layer

    def backward(params, residuals, dy):
        own, dy = params if jax.tree.leaves(params) else (params, dy)
        return layer.backward(own, residuals, dy)

    return layer._replace(backward=backward)
