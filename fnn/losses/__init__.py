"""Losses. A Loss is two pure functions, forward and backward.

Every loss is s times a sum of terms. The reduction gives the scale s:

    "mean"       1 / number of terms, as in torch.nn
    "sum"        1
    "batchmean"  1 / len(prediction); a prediction with fewer than two axes is one example
    "none"       there is no sum: the value is the array of terms

There is a term for each element of the prediction, or, for the losses over its last axis, a term
for each example. "mean" and "batchmean" of an empty prediction raise a ValueError. The value has
prediction's dtype. Residuals: the derivative itself, of prediction's shape and dtype.

With "none", backward gives the derivative of the sum of all terms. A term depends on its own
element or example alone, so d_prediction holds each term's own derivative. To weight the examples
of a loss over the last axis:

    loss = fnn.CrossEntropyLoss("none")
    terms, residuals = loss.forward(prediction, labels)
    value, d_prediction = jnp.sum(weights * terms), weights[..., None] * loss.backward(residuals)
"""

from fnn.losses._frame import Loss, check_is_loss
from fnn.losses.classification import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    NLLLoss,
)
from fnn.losses.regression import CosineDistanceLoss, HuberLoss, L1Loss, MSELoss, SmoothL1Loss

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CosineDistanceLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "Loss",
    "MSELoss",
    "NLLLoss",
    "SmoothL1Loss",
    "check_is_loss",
]
