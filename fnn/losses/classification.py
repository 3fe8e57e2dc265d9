"""Losses on probabilities and on their logarithms or logits."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_integer, check_number
from fnn._numerics import broadcast_last_axis, mark_invalid, sharding_of
from fnn.layers.softmax import minus_largest
from fnn.losses._frame import Loss, make_loss


def BCELoss(reduction: str = "mean") -> Loss:
    """value = -s * sum(t log p + (1 - t) log(1 - p)) with p = prediction, t = target.

    d_prediction = s (p - t) / (p (1 - p)). As in torch.nn.BCELoss, a logarithm is at least -100 and
    the divisor at least 1e-12. So p = 0 has the value 100 and the derivative -1e12 where t is 1,
    and 0 and 0 where t is 0. A p outside of 0 to 1 gives NaN, where PyTorch raises an error.

    A sigmoid rounds p to 0 or 1. Prefer BCEWithLogitsLoss of the logit, which is exact there.

    Shapes, Raises: as MSELoss; target holds probabilities, from 0 to 1.
    """

    def evaluate(p, target):
        is_probability = (p >= 0) & (p <= 1)
        p = jnp.where(is_probability, p, 0.5)
        if_one, if_zero = target * _log_from_100(p), (1 - target) * _log_from_100(1 - p)
        least = jnp.asarray(jnp.float32(1e-12), p.dtype)  # PyTorch's has float32's digits too
        slopes = (p - target) / jnp.maximum(p * (1 - p), least)
        return tuple(jnp.where(is_probability, a, jnp.nan) for a in (0 - if_one - if_zero, slopes))

    return make_loss("BCELoss", reduction, evaluate)


def _log_from_100(p):
    """max(log(p), -100); a p of fewer bits than a normal number counts as 0."""
    is_normal = p > max(math.exp(-100), float(jnp.finfo(p.dtype).tiny))
    return jnp.where(is_normal, jnp.log(jnp.where(is_normal, p, 1)), -100)


def BCEWithLogitsLoss(reduction: str = "mean", *, pos_weight: Any = None) -> Loss:
    """value = -s * sum(w t log p + (1 - t) log(1 - p)) with p = sigmoid(prediction), t = target.

    d_prediction = s ((1 - t) p - w t (1 - p)), which is s (p - t) for w = 1. -log p is computed as
    softplus(-x) from the logit x, and -log(1 - p) as softplus(x), so that no exponential overflows.

    Shapes, Raises: as MSELoss; target holds probabilities, from 0 to 1.

    Args:
        pos_weight: the weight w of the positive answer: a number, or an array (features,) along the
            prediction's last axis. None is 1.
    """
    name, is_weighted = "BCEWithLogitsLoss", pos_weight is not None
    has_axis = is_weighted and as_array(name, "pos_weight", pos_weight).ndim > 0
    if has_axis:
        check_array(name, "pos_weight", pos_weight, ("features",))
    elif is_weighted:
        check_number(name, "pos_weight", pos_weight)

    def weighted(logit, target):
        """w t and 1 - t."""
        one = target
        if has_axis:
            shape = logit.shape[-1:]
            weights = check_array(name, "pos_weight", pos_weight, shape, logit.dtype)
            one = one * broadcast_last_axis(weights, one)
        elif is_weighted:
            one = one * jnp.asarray(pos_weight, one.dtype)
        return one, 1 - target

    def evaluate(logit, target):
        one, zero = weighted(logit, target)
        if_one = _product(one, jax.nn.softplus(-logit))
        if_zero = _product(zero, jax.nn.softplus(logit))
        if not is_weighted:
            return if_one + if_zero, jax.nn.sigmoid(logit) - target
        return if_one + if_zero, zero * jax.nn.sigmoid(logit) - one * jax.nn.sigmoid(-logit)

    def root(logit, target, v):
        one, zero = weighted(logit, target)
        p, q = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
        return jnp.sqrt((one + zero) * p * q) * v

    return make_loss(name, reduction, evaluate, root=root)


def KLDivLoss(reduction: str = "mean", *, log_target: bool = False) -> Loss:
    """value = s * sum of t (log t - prediction); d_prediction = -s t.

    The prediction is a logarithm of probabilities, such as LogSoftmax's. t is the target, or its
    exponential with log_target=True. A term with t = 0 is 0, also for a prediction of -inf, for
    which PyTorch gives NaN.

    The sum over the classes, averaged over the examples, is the Kullback-Leibler divergence. For
    a batch (batch, classes) that is "batchmean". "mean" averages over the classes too, as in
    torch.nn.KLDivLoss.

    Shapes, Raises: as MSELoss.
    """

    def evaluate(prediction, target):
        t = jnp.exp(target) if log_target else target
        log_t = target if log_target else jnp.log(jnp.where(t == 0, 1, t))
        difference = jnp.where(t == 0, 0, log_t) - jnp.where(t == 0, 0, prediction)
        return t * difference, 0 - t

    return make_loss("KLDivLoss", reduction, evaluate)


def NLLLoss(
    reduction: str = "mean", *, class_weights: Any = None, ignore_index: int | None = None
) -> Loss:
    """value = -s * sum over examples and classes of w t prediction; d_prediction = -s w t.

    The prediction is a logarithm of probabilities, such as LogSoftmax's, and t, w as for
    CrossEntropyLoss, which is NLLLoss after LogSoftmax. Args, Shapes, Raises: as there.

    torch.nn.NLLLoss takes labels alone, and ignores the label -100 by default.
    """

    def evaluate(log_p, t, *count):
        terms = 0 - jnp.sum(_product(t, log_p), axis=-1)
        return terms, 0 - t, *count

    return _class_loss("NLLLoss", reduction, evaluate, class_weights, ignore_index)


def CrossEntropyLoss(
    reduction: str = "mean",
    *,
    class_weights: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    """value = -s * sum over examples and classes of w t log p with p = softmax(prediction).

    d_prediction = s (p sum(w t) - w t). It comes from log p[k] = prediction[k] - log(sum of
    exp(prediction)): the derivative of that by prediction[j] is -p[j], and 1 more where j is k.

    t is 1 for an example's label and 0 for other classes, or the given probabilities. w is the
    weight of the class, 1 by default. s is 1 for the reductions "sum" and "none". For "mean" it is
    1 / the number of examples for probabilities, and for labels 1 / the sum of the labels' weights,
    as in PyTorch.

    Shapes: prediction (..., classes), the logits; target (...) of an integer dtype, each
    example's class, or (..., classes) of a floating one, the probabilities t; value (), or (...)
    with "none".

    An invalid label makes the value and its example's derivatives NaN. Unlike in PyTorch, -100 is
    such a label by default.

    With weights or ignored labels, a mean over a batch is not the mean of its parts' means. So
    accumulate_gradients then needs the reduction "sum".

    Args:
        class_weights: an array (classes,).
        ignore_index: an example with this label has the term and the derivatives 0, and "mean"
            leaves it out. If all are left out, or weigh 0, the value is 0; PyTorch gives NaN.
        label_smoothing: a number a from 0 to 1: t becomes (1 - a) t + a / classes. Szegedy et al.,
            2016.

    Raises:
        ValueError: unknown reduction; a target of another shape or dtype; class_weights of another
            length; a mean over nothing; label_smoothing is not from 0 to 1.
    """
    check_number("CrossEntropyLoss", "label_smoothing", label_smoothing, 0)
    if not isinstance(label_smoothing, jax.core.Tracer) and label_smoothing > 1:
        got = repr(label_smoothing)
        raise ValueError(f"CrossEntropyLoss: expected label_smoothing to be at most 1, got {got}")

    def evaluate(logits, t, *count):
        below = minus_largest(logits, -1)
        powers = jnp.exp(below)
        total = jnp.sum(powers, axis=-1, keepdims=True)
        # 0 - sum, because -sum would be -0.0 for a sum of 0.
        terms = 0 - jnp.sum(_product(t, below - jnp.log(total)), axis=-1)
        weight = jnp.sum(t, axis=-1, keepdims=True)
        slopes = jnp.where(weight == 0, 0, powers * (weight / total)) - t
        return terms, slopes, *count

    def root(logits, t, v):
        p = jax.nn.softmax(logits)
        sqrt_p = jnp.sqrt(p)
        weight = jnp.sum(t, axis=-1, keepdims=True)
        inner = jnp.sum(sqrt_p * v, axis=-1, keepdims=True)
        return jnp.sqrt(weight) * (sqrt_p * v - p * inner)

    options = class_weights, ignore_index, label_smoothing
    return _class_loss("CrossEntropyLoss", reduction, evaluate, *options, root=root)


def _class_loss(
    name, reduction, evaluate, class_weights, ignore_index, label_smoothing=0.0, root=None
):
    """Build a Loss from evaluate(prediction, t, *count), with t of the prediction's shape.

    t is the target's probabilities, smoothed, weighted and 0 for an ignored label. count is what
    "mean" divides by, where that is not the number of examples.
    """
    if class_weights is not None:
        check_array(name, "class_weights", class_weights, ("classes",))
    if ignore_index is not None:
        ignore_index = check_integer(name, "ignore_index", ignore_index, -math.inf)
    is_smooth = isinstance(label_smoothing, jax.core.Tracer) or label_smoothing != 0

    def convert(prediction, target):
        target, classes = as_array(name, "target", target), prediction.shape[-1]
        is_label = jnp.issubdtype(target.dtype, jnp.integer)
        weights = None
        if class_weights is not None:
            weights = check_array(
                name, "class_weights", class_weights, (classes,), prediction.dtype
            )
        if not is_label and target.shape == prediction.shape:
            target = check_array(name, "target", target, prediction.shape, prediction.dtype)
            return (smooth_and_weigh(target, weights),)
        if not is_label or target.shape != prediction.shape[:-1]:
            raise ValueError(
                f"{name}: expected integer labels of shape {prediction.shape[:-1]} or "
                f"probabilities of shape {prediction.shape}, got {target.dtype} of shape "
                f"{target.shape}"
            )
        labels = mark_invalid(target, classes)
        one_hot = jax.nn.one_hot(labels, classes, dtype=prediction.dtype)
        t = smooth_and_weigh(one_hot, weights)
        is_ignored = jnp.zeros_like(labels, bool)
        if ignore_index is not None:
            is_ignored = _equals(target, ignore_index)
            t = jnp.where(jnp.expand_dims(is_ignored, -1), 0, t)
        is_known = (labels < classes) | is_ignored
        t = jnp.where(jnp.expand_dims(is_known, -1), t, jnp.nan)
        if weights is None and ignore_index is None:
            return (t,)
        counted = jnp.ones_like(labels, prediction.dtype)
        if weights is not None:
            sharding = sharding_of(labels)
            counted = weights.at[labels].get(mode="fill", fill_value=0, out_sharding=sharding)
        return t, jnp.sum(jnp.where(is_ignored, 0, counted))

    def smooth_and_weigh(t, weights):
        if is_smooth:
            amount = jnp.asarray(label_smoothing, t.dtype)
            t = (1 - amount) * t + amount / t.shape[-1]
        return t if weights is None else t * broadcast_last_axis(weights, t)

    def unpacked(prediction, target):
        return evaluate(prediction, *target)

    def root_of_t(prediction, target, v):
        return root(prediction, target[0], v)

    options = (..., "classes"), convert, root and root_of_t
    return make_loss(name, reduction, unpacked, *options)


def _equals(labels, index):
    """Which labels are `index`, which their dtype may not hold."""
    if isinstance(index, jax.core.Tracer):
        return labels == index.astype(labels.dtype)
    limits = jnp.iinfo(labels.dtype)
    return labels == index if limits.min <= index <= limits.max else jnp.zeros_like(labels, bool)


def _product(weight, value):
    """weight * value, and 0 where the weight is 0, even if the value is infinite."""
    return weight * jnp.where(weight == 0, 0, value)
