"""Metrics: what is reported, not what is trained."""

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_integer_array
from fnn._numerics import mark_invalid


def accuracy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The fraction of examples whose highest score is at their label.

    An example that has NaN among its scores counts as wrong.

    Shapes: scores (..., classes), labels (...) of an integer dtype; the result () is a float.

    Raises:
        ValueError: labels' shape is not that of scores less the last axis; labels are not
            integers; no examples.
    """
    scores = as_array("accuracy", "scores", scores)
    labels = check_integer_array("accuracy", "labels", labels)
    if scores.ndim == 0 or labels.shape != scores.shape[:-1]:
        expected = scores.shape[:-1]
        raise ValueError(
            f"accuracy: expected labels of shape {expected} for scores of shape {scores.shape}, "
            f"got {labels.shape}"
        )
    if scores.size == 0:
        raise ValueError(f"accuracy: expected at least one example, got shape {scores.shape}")
    predicted = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    is_right = predicted == mark_invalid(labels, scores.shape[-1])
    return jnp.mean(is_right & ~jnp.any(jnp.isnan(scores), axis=-1))
