"""Losses: pairs of pure functions, in the style of layers.

Every loss is s times a sum of terms. The scale s is 1 / number of terms for the reduction "mean",
as in torch.nn; 1 for "sum"; and for "batchmean" 1 / batch size, where the batch size is the length
of the first axis, or 1 for a single example (prediction with fewer than two axes). A mean over
nothing is refused with a ValueError. The value is a scalar in prediction's dtype.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.activations import log_softmax
from fnn.layer import check_array, check_positive, checked_indices, widen


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
        return jnp.square(difference), difference

    return _loss("MSELoss", reduction, evaluate, factor=2)


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

    d_prediction = s (p - t). No exponential overflows, because -log p is computed from the logit
    x as softplus(-x), and -log(1 - p) as softplus(x).

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

    A class that is not from 0 to classes - 1 makes the value and its example's derivatives NaN:
    unlike PyTorch, which passes over -100, this passes over none.

    Raises:
        ValueError: unknown reduction; a target of another shape or dtype; a mean over nothing.
    """

    def probabilities(logits, target):
        target, expected = jnp.asarray(target), logits.shape[:-1]
        is_label = jnp.issubdtype(target.dtype, jnp.integer)
        if not is_label and target.shape == logits.shape:
            return check_array("CrossEntropyLoss", "target", target, logits.shape, logits.dtype)
        if not is_label or target.shape != expected:
            raise ValueError(
                f"CrossEntropyLoss: expected integer labels of shape {expected} or probabilities "
                f"of shape {logits.shape}, got {target.dtype} of shape {target.shape}"
            )
        classes = logits.shape[-1]
        target = checked_indices(target, classes)
        is_class = (target < classes).astype(logits.dtype)
        return jax.nn.one_hot(target, classes, dtype=logits.dtype) / is_class[..., None]

    def evaluate(logits, target):
        log_p = log_softmax(logits, -1)
        terms = 0 - jnp.sum(_product(target, log_p), axis=-1)  # 0, and not -0, where p is 1
        return terms, jnp.exp(log_p) * jnp.sum(target, axis=-1, keepdims=True) - target

    return _loss("CrossEntropyLoss", reduction, evaluate, probabilities)


def _product(weight, value):
    """weight * value, 0 where the weight is, however large the value."""
    return weight * jnp.where(weight == 0, 0, value)


def _loss(name, reduction, evaluate, probabilities=None, factor=1):
    """The loss s * sum(terms), d_prediction = s factor slopes: evaluate(prediction, target), in
    their accumulation dtype, is (terms, slopes). The slopes are the residuals.

    With probabilities(prediction, target), which converts the target, the terms are examples,
    else elements.
    """
    if reduction not in ("mean", "sum", "batchmean"):
        raise ValueError(
            f"{name}: expected reduction 'mean', 'sum' or 'batchmean', got {reduction!r}"
        )
    shape = (..., "classes") if probabilities else (...,)

    def scale(shape):
        if reduction == "sum":
            return 1.0
        if math.prod(shape) == 0:
            raise ValueError(f"{name}: expected at least one element, got shape {shape}")
        if reduction == "mean":
            return 1.0 / math.prod(shape[:-1] if probabilities else shape)
        return 1.0 / (shape[0] if len(shape) > 1 else 1)

    def forward(prediction, target):
        prediction = check_array(name, "prediction", prediction, shape)
        wide = widen(prediction)
        if probabilities:
            target = probabilities(wide, target)
        terms, slopes = evaluate(wide, check_array(name, "target", target, wide.shape, wide.dtype))
        value = scale(wide.shape) * jnp.sum(terms)
        return value.astype(prediction.dtype), slopes.astype(prediction.dtype)

    def backward(slopes):
        return (factor * scale(slopes.shape) * widen(slopes)).astype(slopes.dtype)

    return Loss(forward, backward)
