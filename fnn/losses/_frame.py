"""What every loss is made with."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_choice, check_type
from fnn._numerics import upcast


class _Pair(NamedTuple):
    forward: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
    backward: Callable[[Any], jax.Array]


class Loss(_Pair):
    """A loss function and its derivative.

    forward:  (prediction, target) -> (value, residuals). The value is a scalar, or, with the
              reduction "none", an array of terms.
    backward: (residuals) -> d_prediction, of the prediction's shape and dtype.

    hessian_root, an attribute: (prediction, target, v) -> S v, for v of the prediction's shape,
    where S S^T is the second derivative of the value by the prediction. None where a loss does not
    say it. ggn_diagonal needs it.
    """

    def __new__(cls, forward, backward, *, hessian_root=None) -> "Loss":
        loss = super().__new__(cls, forward, backward)
        vars(loss)["hessian_root"] = hessian_root  # not by assignment, which __setattr__ forbids
        return loss

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Loss cannot be changed: {name} is given to Loss or _replace")

    @classmethod
    def _make(cls, functions) -> "Loss":
        return cls(*functions)


def check_is_loss(name: str, loss: Any) -> None:
    """Raise ValueError unless `loss` is a Loss."""
    check_type(name, loss, Loss, "a Loss such as fnn.MSELoss()")


def make_loss(
    name: str,
    reduction: str,
    evaluate: Callable[..., tuple[jax.Array, ...]],
    shape: tuple[Any, ...] = (...,),
    convert: Callable[[jax.Array, Any], Any] | None = None,
    root: Callable[..., jax.Array] | None = None,
) -> Loss:
    """Build a Loss from evaluate(prediction, target) -> (terms, their derivatives).

    evaluate gets both arguments in the accumulation dtype. There is a term for each element, or, if
    `shape` names a last axis, for each example. By default the target must have the prediction's
    shape; convert(prediction, target) replaces this check. evaluate may return a third array, the
    number that "mean" divides by in place of the number of terms. Where it is 0, all results are 0.
    root(prediction, target, v) is hessian_root of the sum of the terms.
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

    def checked(prediction, target):
        prediction = check_array(name, "prediction", prediction, shape)
        wide = upcast(prediction)
        if convert:
            return prediction, wide, convert(wide, target)
        return prediction, wide, check_array(name, "target", target, wide.shape, wide.dtype)

    def forward(prediction, target):
        prediction, wide, target = checked(prediction, target)
        terms, derivatives, *count = evaluate(wide, target)
        s = scale(terms, prediction, *count)
        value = terms if reduction == "none" else _scaled_sum(s, terms)
        return value.astype(prediction.dtype), (s * derivatives).astype(prediction.dtype)

    def hessian_root(prediction, target, v):
        prediction, wide, target = checked(prediction, target)
        terms, _, *count = evaluate(wide, target)
        s = jnp.asarray(scale(terms, prediction, *count), wide.dtype)
        return (jnp.sqrt(s) * root(wide, target, upcast(v))).astype(prediction.dtype)

    return Loss(forward, lambda d_prediction: d_prediction, hessian_root=root and hessian_root)


def _scaled_sum(s, terms):
    """s * sum of the terms. A sum that overflows is avoided if s makes it finite."""
    if not isinstance(s, float):  # it is traced; under jax.export it may be symbolic
        return jnp.sum(s * terms)
    if s >= 1:
        return s * jnp.sum(terms)
    half, exponent = math.frexp(s)  # s = half * 2^exponent, and powers of two round nothing
    return 2 * half * jnp.sum(2.0 ** (exponent - 1) * terms)
