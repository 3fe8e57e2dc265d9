"""Losses: pairs of pure functions, in the style of layers.

Every loss is s times a sum of terms. The reduction gives the scale s:

    "mean"       1 / number of terms, as in torch.nn
    "sum"        1
    "batchmean"  1 / batch size: the length of the first axis, or 1 for a single example, that is a
                 prediction with fewer than two axes

A mean over nothing is refused with a ValueError. The value is a scalar in prediction's dtype. What
forward keeps for backward is the derivative itself, one array of prediction's shape and dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_positive
from fnn._numerics import upcast, valid_or_length
from fnn.layers.activations import log_softmax


class Loss(NamedTuple):
    """forward:  (prediction, target) -> (value, residuals), a scalar and what backward needs;
    backward: (residuals) -> d_prediction, of the prediction's shape and dtype.
    """

    forward: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]
    backward: Callable[[Any], jax.Array]


def MSELoss(reduction: str = "mean") -> Loss:
    """value = s * sum((prediction - target)^2); d_prediction = 2 s (prediction - target).

    Shapes: prediction and target the same, whatever it is; value ().

    Raises:
        ValueError: unknown reduction; target's shape is not prediction's; a mean over nothing.
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
    """value = s * sum(c d - c^2 / 2) with d = prediction - target and c = d clipped to +-delta.

    d_prediction = s c. So a term is d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).
    Huber, 1964. Shapes: as MSELoss.

    Raises:
        ValueError: as MSELoss; delta is not a finite number above 0. A traced one passes.
    """
    check_positive("HuberLoss", "delta", delta)

    def evaluate(prediction, target):
        difference, limit = prediction - target, jnp.asarray(delta, prediction.dtype)
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
        inside = _product(target, jax.nn.softplus(-logit))
        outside = _product(1 - target, jax.nn.softplus(logit))
        return inside + outside, jax.nn.sigmoid(logit) - target

    return _loss("BCEWithLogitsLoss", reduction, evaluate)


def CrossEntropyLoss(reduction: str = "mean") -> Loss:
    """value = -s * sum over examples and classes of t log p with p = softmax(prediction).

    d_prediction = s (p sum(t) - t). The terms are the examples: a mean is over them, as in
    torch.nn.CrossEntropyLoss.

    Shapes: prediction (..., classes), the logits; target (...) of an integer dtype, each
    example's class, or (..., classes) of a floating one, the probabilities t; value ().

    A label that is not from 0 to classes - 1 makes the value NaN, and the derivatives of its
    example. (PyTorch ignores the label -100; fnn ignores none.)

    Raises:
        ValueError: unknown reduction; a target of another shape or dtype; a mean over nothing.
    """

    def evaluate(logits, target):
        log_p, classes = log_softmax(logits, -1), logits.shape[-1]
        is_label = jnp.issubdtype(target.dtype, jnp.integer)
        labels = valid_or_length(target, classes) if is_label else None
        t = jax.nn.one_hot(labels, classes, dtype=logits.dtype) if is_label else target
        terms = 0 - jnp.sum(_product(t, log_p), axis=-1)  # 0 minus, so that it is not -0 if p is 1
        slopes = jnp.exp(log_p) * jnp.sum(t, axis=-1, keepdims=True) - t
        if is_label:
            is_class = labels < classes
            terms = jnp.where(is_class, terms, jnp.nan)
            slopes = jnp.where(jnp.expand_dims(is_class, -1), slopes, jnp.nan)
        return terms, slopes

    def convert(logits, target):
        target = as_array("CrossEntropyLoss", "target", target)
        is_label = jnp.issubdtype(target.dtype, jnp.integer)
        if not is_label and target.shape == logits.shape:
            return check_array("CrossEntropyLoss", "target", target, logits.shape, logits.dtype)
        if not is_label or target.shape != logits.shape[:-1]:
            raise ValueError(
                f"CrossEntropyLoss: expected integer labels of shape {logits.shape[:-1]} or "
                f"probabilities of shape {logits.shape}, got {target.dtype} of shape {target.shape}"
            )
        return target

    return _loss("CrossEntropyLoss", reduction, evaluate, (..., "classes"), convert)


def _product(weight, value):
    """weight * value, and 0 where the weight is 0, even if the value is infinite."""
    return weight * jnp.where(weight == 0, 0, value)


def _loss(name, reduction, evaluate, shape=(...,), convert=None):
    """The frame of every loss: evaluate(prediction, target) -> (terms, their derivatives).

    evaluate gets both in the accumulation dtype. The terms have the prediction's shape, or that of
    its axes before the classes for a prediction of `shape` (..., "classes"). convert(prediction,
    target) checks and converts a target that is not simply an array like the prediction.
    """
    if reduction not in ("mean", "sum", "batchmean"):
        raise ValueError(
            f"{name}: expected reduction 'mean', 'sum' or 'batchmean', got {reduction!r}"
        )

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
        value = s * jnp.sum(terms)
        return value.astype(prediction.dtype), (s * derivatives).astype(prediction.dtype)

    def backward(d_prediction):
        return d_prediction

    return Loss(forward, backward)
