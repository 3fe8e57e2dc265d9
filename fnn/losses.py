"""Losses. A Loss is two pure functions, forward and backward.

Every loss is s times a sum of terms. The reduction gives the scale s:

    "mean"       1 / number of terms, as in torch.nn
    "sum"        1
    "batchmean"  1 / len(prediction); a prediction with fewer than two axes is one example

"mean" and "batchmean" of an empty prediction raise a ValueError. The value is a scalar in
prediction's dtype. Residuals: the derivative itself, of prediction's shape and dtype.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_choice, check_positive, check_type
from fnn._numerics import mark_invalid, upcast
from fnn.layers.softmax import log_softmax


class Loss(NamedTuple):
    """A loss function and its derivative.

    forward:  (prediction, target) -> (value, residuals). The value is a scalar.
    backward: (residuals) -> d_prediction, of the prediction's shape and dtype.
    """

    forward: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
    backward: Callable[[Any], jax.Array]


def MSELoss(reduction: str = "mean") -> Loss:
    """value = s * sum((prediction - target)^2); d_prediction = 2 s (prediction - target).

    s is 1 / number of elements for the reduction "mean", 1 for "sum", and 1 / len(prediction) for
    "batchmean", where a prediction with fewer than two axes is one example.

    Shapes: prediction and target have the same, arbitrary shape; value ().

    Raises:
        ValueError: unknown reduction; target's shape is not prediction's; either is not floating;
            a mean over nothing.
    """

    def evaluate(prediction, target):
        difference = prediction - target
        return jnp.square(difference), 2 * difference

    return _loss("MSELoss", reduction, evaluate)


def L1Loss(reduction: str = "mean") -> Loss:
    """value = s * sum(|prediction - target|); d_prediction = s sign(prediction - target).

    Where the two are equal, the derivative is 0. Shapes, Raises: as MSELoss.
    """

    def evaluate(prediction, target):
        difference = prediction - target
        return jnp.abs(difference), jnp.sign(difference)

    return _loss("L1Loss", reduction, evaluate)


def HuberLoss(delta: float = 1.0, reduction: str = "mean") -> Loss:
    """value = s * sum of d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).

    d = prediction - target; d_prediction = s c, with c = d clipped to +-delta. A term is then
    c d - c^2 / 2. Huber, 1964. Shapes: as MSELoss.

    Raises:
        ValueError: as MSELoss; delta is not a finite number above 0. A traced one passes.
    """
    check_positive("HuberLoss", "delta", delta)

    def evaluate(prediction, target):
        difference, limit = prediction - target, jnp.asarray(delta, prediction.dtype)
        limit = jnp.maximum(limit, jnp.finfo(limit.dtype).tiny)  # where delta is rounded to 0
        clipped = jnp.clip(difference, -limit, limit)
        return clipped * (difference - clipped / 2), clipped

    return _loss("HuberLoss", reduction, evaluate)


def BCEWithLogitsLoss(reduction: str = "mean") -> Loss:
    """value = -s * sum(t log p + (1 - t) log(1 - p)) with p = sigmoid(prediction), t = target.

    d_prediction = s (p - t). -log p is computed as softplus(-x) from the logit x, and -log(1 - p)
    as softplus(x), so that no exponential overflows.

    Shapes, Raises: as MSELoss; target holds probabilities, from 0 to 1.
    """

    def evaluate(logit, target):
        if_one = _product(target, jax.nn.softplus(-logit))
        if_zero = _product(1 - target, jax.nn.softplus(logit))
        return if_one + if_zero, jax.nn.sigmoid(logit) - target

    return _loss("BCEWithLogitsLoss", reduction, evaluate)


def CrossEntropyLoss(reduction: str = "mean") -> Loss:
    """value = -s * sum over examples and classes of t log p with p = softmax(prediction).

    d_prediction = s (p sum(t) - t). It comes from log p[k] = prediction[k] - log(sum of
    exp(prediction)): the derivative of that by prediction[j] is -p[j], and 1 more where j is k.

    The terms are the examples: "mean" is the mean over them, as in torch.nn.CrossEntropyLoss.

    Shapes: prediction (..., classes), the logits; target (...) of an integer dtype, each
    example's class, or (..., classes) of a floating one, the probabilities t; value ().

    An invalid label makes the value and its example's derivatives NaN. Unlike PyTorch, -100 is not
    ignored.

    Raises:
        ValueError: unknown reduction; a target of another shape or dtype; a mean over nothing.
    """

    def evaluate(logits, t):
        log_p = log_softmax(logits, -1)
        # 0 - sum, because -sum would be -0.0 for a sum of 0.
        terms = 0 - jnp.sum(_product(t, log_p), axis=-1)
        return terms, jnp.exp(log_p) * jnp.sum(t, axis=-1, keepdims=True) - t

    def probabilities(logits, target):
        target = as_array("CrossEntropyLoss", "target", target)
        is_label = jnp.issubdtype(target.dtype, jnp.integer)
        if not is_label and target.shape == logits.shape:
            return check_array("CrossEntropyLoss", "target", target, logits.shape, logits.dtype)
        if not is_label or target.shape != logits.shape[:-1]:
            raise ValueError(
                f"CrossEntropyLoss: expected integer labels of shape {logits.shape[:-1]} or "
                f"probabilities of shape {logits.shape}, got {target.dtype} of shape {target.shape}"
            )
        classes = logits.shape[-1]
        labels = mark_invalid(target, classes)
        one_hot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
        return jnp.where(jnp.expand_dims(labels < classes, -1), one_hot, jnp.nan)

    return _loss("CrossEntropyLoss", reduction, evaluate, (..., "classes"), probabilities)


def _product(weight, value):
    """weight * value, and 0 where the weight is 0, even if the value is infinite."""
    return weight * jnp.where(weight == 0, 0, value)


def _loss(name, reduction, evaluate, shape=(...,), convert=None):
    """Build a Loss from evaluate(prediction, target) -> (terms, their derivatives).

    evaluate gets both arguments in the accumulation dtype. There is a term for each element, or, if
    `shape` has classes, for each example. By default the target must have the prediction's shape;
    convert(prediction, target) replaces this check.
    """
    check_choice(name, "reduction", reduction, ("mean", "sum", "batchmean"))

    def scale(terms, prediction):
        if reduction == "sum":
            return 1.0
        if prediction.size == 0:
            raise ValueError(f"{name}: expected at least one element, got shape {prediction.shape}")
        if reduction == "mean":
            return 1.0 / terms.size
        return 1.0 / (len(prediction) if prediction.ndim > 1 else 1)

    def forward(prediction, target):
        prediction = check_array(name, "prediction", prediction, shape)
        wide = upcast(prediction)
        if convert:
            target = convert(wide, target)
        else:
            target = check_array(name, "target", target, wide.shape, wide.dtype)
        terms, derivatives = evaluate(wide, target)
        s = scale(terms, prediction)
        value = _scaled_sum(s, terms)
        return value.astype(prediction.dtype), (s * derivatives).astype(prediction.dtype)

    return Loss(forward, lambda d_prediction: d_prediction)


def _scaled_sum(s, terms):
    """s * sum of the terms. A sum that overflows is avoided if s makes it finite."""
    if not isinstance(s, float) or s >= 1:  # under jax.export s may be symbolic
        return s * jnp.sum(terms)
    half, exponent = math.frexp(s)  # s = half * 2^exponent, and powers of two round nothing
    return 2 * half * jnp.sum(2.0 ** (exponent - 1) * terms)


def check_is_loss(name: str, loss: Any) -> None:
    """Raise ValueError unless `loss` is a Loss."""
    check_type(name, loss, Loss, "a Loss such as fnn.MSELoss()")
