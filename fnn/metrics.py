"""Metrics: what is reported, not what is trained."""

import jax
import jax.numpy as jnp


def accuracy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """The fraction of examples whose highest score is at their label.

    Shapes: scores (..., classes), labels (...) of an integer dtype; the result () is a float.

    Raises:
        ValueError: labels' shape is not that of scores less the last axis; labels are not
            integers; no examples.
    """
    scores, labels = jnp.asarray(scores), jnp.asarray(labels)
    if scores.ndim == 0 or labels.shape != scores.shape[:-1]:
        expected = scores.shape[:-1]
        raise ValueError(
            f"accuracy: expected labels of shape {expected} for scores of shape {scores.shape}, "
            f"got {labels.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"accuracy: expected labels of an integer dtype, got {labels.dtype}")
    if scores.size == 0:
        raise ValueError(f"accuracy: expected at least one example, got shape {scores.shape}")
    predicted = jnp.argmax(scores, axis=-1)
    return jnp.mean(predicted == labels.astype(predicted.dtype))
