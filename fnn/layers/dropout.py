"""Zeros while training: at random places, or in place of a layer's y for random examples."""

import functools
import math

import jax
import jax.numpy as jnp

from fnn._checks import (
    check_array,
    check_integer,
    check_key,
    check_nonnegative,
    note_on_error,
)
from fnn._numerics import sharding_of, upcast
from fnn.layer import Layer, check_is_layer, fold_key, type_of
from fnn.layers._frame import without_params


def Dropout(rate: float) -> Layer:
    """y = x m / (1 - rate), dx = dy m / (1 - rate), with m = 0 with probability `rate`, else 1.

    Without a key, in evaluation mode, y = x and dx = dy. make_train_step and make_train_epoch ask
    for a key. Srivastava et al., 2014. Unlike torch.nn.Dropout's 0.5, the rate has no default.

    Residuals: the mask m, a byte for each element, because drawing it again would be slow.

    Any shape; params ().

    Raises:
        ValueError: rate is not a number from 0 to 1. A traced one passes.
    """
    rate = _check_rate("Dropout", rate)
    name = f"Dropout({rate})"

    def forward(x, key):
        x = check_array(name, "x", x, (...,))
        if key is None:
            return x, (None, type_of(x))
        check_key(name, key)
        mask = _draw_mask(key, rate, x)
        return _drop(mask, x, rate), (mask, type_of(x))

    def backward(residuals, dy):
        mask, x_type = residuals
        dy = check_array(name, "dy", dy, *x_type)
        return dy if mask is None else _drop(mask, dy, rate)

    return without_params(name, forward, backward, uses_key=True)


def StochasticDepth(
    layer: Layer, rate: float | jax.Array, *, axis: int | tuple[int, ...] | None = None
) -> Layer:
    """y = f(x) m / (1 - rate), with m = 0 with probability `rate`, else 1, drawn for each example.

    grads and dx are f's for the derivative dy m / (1 - rate). Without a key it is the layer. In
    Residual(StochasticDepth(layer, rate)) an example of m = 0 skips the layer. Huang et al., 2016.
    It is torchvision.ops.StochasticDepth with mode="row".

    The layer draws from fold_in(key, 0), m from fold_in(key, 1). Residuals: the layer's, and m, a
    byte for each example.

    Shapes: those of the layer. params and grads are the layer's.

    Args:
        axis: the axes of one example in y, which share one m. By default all axes but the first,
            which is the batch; if y has only one axis, that one. For an example without a batch
            axis, as under jax.vmap or per_example, name its axes: (-3, -2, -1) for an image
            (height, width, channels).

    Raises:
        ValueError: `layer` is not a Layer; rate is not a number from 0 to 1 (a traced one passes);
            axis is not an integer or a tuple of integers, or y has no such axis.
    """
    check_is_layer("StochasticDepth", layer)
    rate = _check_rate("StochasticDepth", rate)
    if axis is not None:
        for number in axis if isinstance(axis, tuple) else (axis,):
            check_integer("StochasticDepth", "axis", number, -math.inf)

    def one_an_example(y):
        """An array with the shape and the sharding of m; its numbers do not matter."""
        own_axes = tuple(range(1 if y.ndim > 1 else 0, y.ndim)) if axis is None else axis
        return jnp.any(y, own_axes, keepdims=True)

    def forward(params, x, key=None):
        if key is not None:
            check_key("StochasticDepth", key)
        with note_on_error("in StochasticDepth, forward"):
            y, residuals = layer.forward(params, x, fold_key(key, 0))
        if key is None:
            return y, (residuals, None, type_of(y))
        y = check_array("StochasticDepth", "the layer's y", y, (...,))
        with note_on_error(f"in StochasticDepth, for its axis={axis}"):
            mask = _draw_mask(fold_key(key, 1), rate, one_an_example(y))
        return _drop(mask, y, rate), (residuals, mask, type_of(y))

    def backward(params, residuals, dy):
        residuals, mask, y_type = residuals
        dy = check_array("StochasticDepth", "dy", dy, *y_type)
        with note_on_error("in StochasticDepth, backward"):
            return layer.backward(params, residuals, dy if mask is None else _drop(mask, dy, rate))

    settings = {"rate": rate, "axis": axis}
    return Layer(
        layer.init,
        forward,
        backward,
        name="StochasticDepth",
        layers=(layer,),
        rebuild=functools.partial(StochasticDepth, **settings),
        settings=settings,
        uses_key=True,
    )


def _check_rate(name, rate):
    """Return `rate` as a float from 0 to 1. A traced one passes as it is."""
    check_nonnegative(name, "rate", rate)
    if isinstance(rate, jax.core.Tracer):
        return rate
    if rate > 1:
        raise ValueError(f"{name}: expected rate to be a number from 0 to 1, got {float(rate)!r}")
    return float(rate)


def _draw_mask(key, rate, like):
    """False with probability `rate`, else True, of the shape and sharding of `like`."""
    numbers = jax.random.uniform(key, like.shape, jnp.float32, out_sharding=sharding_of(like))
    return numbers < jnp.asarray(1 - rate, jnp.float32)


def _drop(mask, values, rate):
    """values / (1 - rate) where the mask is True, else 0."""
    wide = upcast(values)
    keep_rate = jnp.asarray(1 - rate, wide.dtype)
    # At rate 1 nothing is kept. The inner where avoids 0 / 0.
    kept = wide / jnp.where(keep_rate > 0, keep_rate, 1)
    return jnp.where(mask, kept.astype(values.dtype), 0)
