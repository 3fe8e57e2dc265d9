"""What every loss is made with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_choice, check_type
from fnn._numerics import upcast


class Loss(NamedTuple):
    """A loss function and its derivative.

    forward:  (prediction, target) -> (value, residuals). The value is a scalar, or, with the
              reduction "none", an array of terms.
    backward: (residuals) -> d_prediction, of the prediction's shape and dtype.
    """

    forward: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
    backward: Callable[[Any], jax.Array]


def check_is_loss(name: str, loss: Any) -> None:
    """Raise ValueError unless `loss` is a Loss."""
    check_type(name, loss, Loss, "a Loss such as fnn.MSELoss()")


def make_loss(
    name: str,
    reduction: str,
    evaluate: Callable[..., tuple[jax.Array, ...]],
    shape: tuple[Any, ...] = (...,),
    convert: Callable[[jax.Array, Any], Any] | None = None,
) -> Loss:
    """Build a Loss from evaluate(prediction, target) -> (terms, their derivatives).

    evaluate gets both arguments in the accumulation dtype. There is a term for each element, or, if
    `shape` names a last axis, for each example. By default the target must have the prediction's
    shape; convert(prediction, target) replaces this check. evaluate may return a third array, the
    number that "mean" divides by in place of the number of terms. Where it is 0, all results are 0.
    """
    check_choice(name, "reduction", reduction, ("mean", "sum", "batchmean", "none"))

    def scale(terms, prediction, count=None):
        if reduction in ("sum", "none"):
            return 1.0
        if prediction.size == 0:
            raise ValueError(f"{name}: expected at least one element, got shape {prediction.shape}")
        if reduction == "batchmean":
            return 1.0 / (len(prediction) if prediction.ndim > 1 else 1)
        if count is None:
            return 1.0 / terms.size
        return jnp.where(count == 0, 0, 1 / jnp.where(count == 0, 1, count))

    def forward(prediction, target):
        prediction = check_array(name, "prediction", prediction, shape)
        wide = upcast(prediction)
        if convert:
            target = convert(wide, target)
        else:
            target = check_array(name, "target", target, wide.shape, wide.dtype)
        terms, derivatives, *count = evaluate(wide, target)
        s = scale(terms, prediction, *count)
        value = terms if reduction == "none" else _scaled_sum(s, terms)
        return value.astype(prediction.dtype), (s * derivatives).astype(prediction.dtype)

    return Loss(forward, lambda d_prediction: d_prediction)


def _scaled_sum(s, terms):
    """s * sum of the terms. A sum that overflows is avoided if s makes it finite."""
    if not isinstance(s, float):  # it is traced; under jax.export it may be symbolic
        return jnp.sum(s * terms)
    if s >= 1:
        return s * jnp.sum(terms)
    half, exponent = math.frexp(s)  # s = half * 2^exponent, and powers of two round nothing
    return 2 * half * jnp.sum(2.0 ** (exponent - 1) * terms)
