"""Losses that compare numbers with numbers."""

import math

import jax.numpy as jnp

from fnn._checks import check_nonnegative, check_positive
from fnn._numerics import at_least_tiny, norm
from fnn.losses._frame import Loss, make_loss


def MSELoss(reduction: str = "mean") -> Loss:
    """value = s * sum((prediction - target)^2); d_prediction = 2 s (prediction - target).

    s is 1 / number of elements for the reduction "mean", 1 for "sum", and 1 / len(prediction) for
    "batchmean", where a prediction with fewer than two axes is one example. With "none" the value
    is the array of terms, and s is 1.

    Shapes: prediction and target have the same, arbitrary shape; value (), or the prediction's
    with "none".

    Raises:
        ValueError: unknown reduction; target's shape is not prediction's; either is not floating;
            a mean over nothing.
    """

    def evaluate(prediction, target):
        difference = prediction - target
        return jnp.square(difference), 2 * difference

    def root(prediction, target, v):
        return math.sqrt(2) * v

    return make_loss("MSELoss", reduction, evaluate, root=root)


def L1Loss(reduction: str = "mean") -> Loss:
    """value = s * sum(|prediction - target|); d_prediction = s sign(prediction - target).

    Where the two are equal, the derivative is 0. Shapes, Raises: as MSELoss.
    """

    def evaluate(prediction, target):
        difference = prediction - target
        return jnp.abs(difference), jnp.sign(difference)

    return make_loss("L1Loss", reduction, evaluate)


def HuberLoss(delta: float = 1.0, reduction: str = "mean") -> Loss:
    """value = s * sum of d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).

    d = prediction - target; d_prediction = s c, with c = d clipped to +-delta. A term is then
    c d - c^2 / 2. Huber, 1964. Shapes: as MSELoss.

    Unlike in torch.nn.HuberLoss, delta comes before the reduction.

    Raises:
        ValueError: as MSELoss; delta is not a finite number above 0. A traced one passes.
    """
    check_positive("HuberLoss", "delta", delta)

    def evaluate(prediction, target):
        difference, limit = prediction - target, at_least_tiny(delta, prediction.dtype)
        clipped = jnp.clip(difference, -limit, limit)
        return clipped * (difference - clipped / 2), clipped

    return make_loss("HuberLoss", reduction, evaluate)


def SmoothL1Loss(beta: float = 1.0, reduction: str = "mean") -> Loss:
    """value = s * sum of d^2 / (2 beta) where |d| <= beta, else |d| - beta / 2.

    d = prediction - target; d_prediction = s c, with c = d / beta clipped to +-1. It is
    HuberLoss(beta) / beta, so far from 0 its slope is 1 whatever beta is. With beta = 0 it is
    L1Loss. Girshick, 2015. Shapes: as MSELoss.

    Unlike in torch.nn.SmoothL1Loss, beta comes before the reduction.

    Raises:
        ValueError: as MSELoss; beta is negative or not a finite number. A traced one passes.
    """
    check_nonnegative("SmoothL1Loss", "beta", beta)

    def evaluate(prediction, target):
        difference, limit = prediction - target, at_least_tiny(beta, prediction.dtype)
        slope = jnp.clip(difference / limit, -1, 1)
        return slope * (difference - limit * slope / 2), slope

    return make_loss("SmoothL1Loss", reduction, evaluate)


def CosineDistanceLoss(reduction: str = "mean") -> Loss:
    """value = s * sum over examples of 1 - cos, with cos = x . t / (|x| |t|).

    x is an example's prediction and t its target. d_prediction = s (cos x / |x| - t / |t|) / |x|.
    The term is 0 for vectors of one direction, and 2 for opposite ones. Where x or t is 0, cos and
    the derivative are 0.

    It is torch.nn.CosineEmbeddingLoss(prediction, target, 1) without its eps, and 1 more than
    keras.losses.CosineSimilarity.

    Shapes: prediction and target (..., features); value (), or (...) with "none". The terms are the
    examples: "mean" is the mean over them.

    Raises:
        ValueError: as MSELoss.
    """

    def evaluate(prediction, target):
        prediction, target = map(_of_infinities, (prediction, target))
        length, other = norm(prediction, -1), norm(target, -1)
        length, other = (jnp.where(a == 0, 1, a) for a in (length, other))
        x, t = prediction / length, target / other  # of length 1, or 0
        cos = jnp.sum(x * t, axis=-1, keepdims=True)
        is_zero = jnp.all(x == 0, axis=-1, keepdims=True)
        return 1 - jnp.squeeze(cos, -1), jnp.where(is_zero, 0, cos * x - t) / length

    return make_loss("CosineDistanceLoss", reduction, evaluate, (..., "features"))


def _of_infinities(vectors):
    """The vectors; those with infinities as the direction in which they point, of huge length."""
    infinite = jnp.isinf(vectors)
    has_infinities = jnp.any(infinite, axis=-1, keepdims=True)
    huge = jnp.finfo(vectors.dtype).max / 8
    directions = jnp.where(infinite, jnp.sign(vectors) * huge, 0)
    return jnp.where(has_infinities & ~jnp.isnan(vectors), directions, vectors)
