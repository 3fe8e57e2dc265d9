"""Losses: pairs of pure functions, in the style of layers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.layer import check_array, widen


class Loss(NamedTuple):
    """forward:  (prediction, target) -> (value, residuals), a scalar and what backward needs;
    backward: (residuals) -> d_prediction, of the prediction's shape and dtype.
    """

    forward: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
    backward: Callable[[Any], jax.Array]


def MSELoss(reduction: str = "mean") -> Loss:
    """value = s * sum((prediction - target)^2); d_prediction = 2 s (prediction - target).

    The scale s is 1 / number of elements for "mean", as in torch.nn.MSELoss; 1 for "sum"; and
    1 / batch size for "batchmean", where the batch size is the length of the first axis, or 1
    for a single example (prediction with fewer than two axes).

    Shapes: prediction and target the same, whatever it is; value (), in prediction's dtype.

    Raises:
        ValueError: unknown reduction; target's shape is not prediction's; a mean over nothing.
    """
    if reduction not in ("mean", "sum", "batchmean"):
        raise ValueError(
            f"MSELoss: expected reduction 'mean', 'sum' or 'batchmean', got {reduction!r}"
        )

    def scale(array):
        if reduction == "sum":
            return 1.0
        count = array.size if reduction == "mean" else array.shape[0] if array.ndim > 1 else 1
        if array.size == 0:
            raise ValueError(f"MSELoss: expected at least one element, got shape {array.shape}")
        return 1.0 / count

    def forward(prediction, target):
        prediction = check_array("MSELoss", "prediction", prediction, (...,))
        target = check_array("MSELoss", "target", target, prediction.shape, prediction.dtype)
        difference = prediction - target
        value = scale(difference) * jnp.sum(jnp.square(widen(difference)))
        return value.astype(difference.dtype), difference

    def backward(difference):
        return (2 * scale(difference) * widen(difference)).astype(difference.dtype)

    return Loss(forward, backward)
