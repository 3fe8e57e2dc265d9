"""Metrics: what is reported, not what is trained.

Those of classes take scores and labels. There are two forms:

    classes   scores (..., classes) with two or more of them, labels (...) of an integer dtype. The
              predicted class is the one with the highest score; of equal scores, the smaller class.
    binary    scores (n,) or (..., 1), the logits, as BCEWithLogitsLoss takes them. Labels have the
              shape of the scores, or (...) for scores (..., 1); they are 0 and 1 of any dtype. The
              predicted class is 1 if the score is above 0, else 0.

An example with NaN among its scores has no predicted class. A label that is no class is invalid.
"""

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_integer, check_integer_array
from fnn._numerics import mark_invalid, upcast


def accuracy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """accuracy = (number of examples i with predicted_i = label_i) / n.

    In the form of classes, predicted_i = argmax_j scores_ij. An example that has NaN among its
    scores, or an invalid label, counts as wrong.

    Under jax.jit, JAX wraps NumPy's 64-bit integers before fnn sees them: the label 2**32 + 1
    becomes 1. Outside of jit it is invalid.

    Shapes: scores and labels in one of the two forms above; the result () is a float.

    Raises:
        ValueError: labels' shape or dtype does not fit the scores; no examples.
    """
    predicted, labels, num_classes, _ = _classify("accuracy", scores, labels)
    return jnp.mean((predicted == labels) & (labels < num_classes))


def top_k_accuracy(scores: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """The fraction of examples whose label is among the k classes with the highest scores.

    Of equal scores, the one of the smaller class counts as higher. With k = 1 it is the accuracy.

    Shapes: scores (..., classes) with two or more classes, labels (...); the result () is a float.

    Raises:
        ValueError: as accuracy; the scores are binary; k is not an integer from 1 to classes.
    """
    name = "top_k_accuracy"
    predicted, labels, num_classes, is_binary = _classify(name, scores, labels)
    if is_binary:
        got = jnp.shape(scores)
        raise ValueError(f"{name}: expected scores of two or more classes, got shape {got}")
    k = check_integer(name, "k", k, 1, num_classes)
    scores = jnp.asarray(scores)
    # top_k puts 0.0 above -0.0, but argmax takes them as equal.
    _, highest = jax.lax.top_k(jnp.where(scores == 0, jnp.zeros_like(scores), scores), k)
    is_among = jnp.any(highest == jnp.expand_dims(labels, -1), axis=-1)
    return jnp.mean(is_among & (predicted < num_classes))


def confusion_matrix(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """matrix[i, j] = the number of examples with label i and predicted class j.

    An example that has NaN among its scores, or an invalid label, is counted nowhere.

    Shapes: scores and labels as in accuracy; the result (classes, classes) is int32. Binary scores
    have two classes.

    Raises:
        ValueError: as accuracy.
    """
    predicted, labels, num_classes, _ = _classify("confusion_matrix", scores, labels)
    matrix = jnp.zeros((num_classes, num_classes), jnp.int32)
    return matrix.at[labels, predicted].add(1, mode="drop")


def f1_score(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """F1 = 2 TP / (predicted + actual), the harmonic mean of precision and recall of a class.

    `predicted` is the number of examples with this predicted class, and `actual` the number with
    this label. TP, the true positives, have both. For binary scores the result is the F1 of class
    1. It is 0 if no label and no predicted class is 1. For two or more classes it is the mean of
    their F1. A class that is never a label and never predicted is left out. So it is scikit-learn's
    f1_score with average="binary" and "macro".

    Shapes: scores and labels as in accuracy; the result () is a float.

    Raises:
        ValueError: as accuracy.
    """
    predicted, labels, num_classes, is_binary = _classify("f1_score", scores, labels)

    def count(classes):
        return jnp.zeros(num_classes, jnp.int32).at[classes].add(1, mode="drop").astype(float)

    true_positives = count(jnp.where(predicted == labels, labels, num_classes))
    predicted_and_actual = count(predicted) + count(labels)
    f1 = 2 * true_positives / jnp.maximum(predicted_and_actual, 1)
    num_counted = jnp.maximum(jnp.sum(predicted_and_actual > 0, dtype=f1.dtype), 1)
    return f1[1] if is_binary else jnp.sum(f1) / num_counted


def r2_score(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """R2 = 1 - sum (target - prediction)^2 / sum (target - mean target)^2, over the examples.

    1 is exact; 0 is as good as the mean of the targets. With several outputs it is the mean of
    their R2. For a constant target it is 1 if the prediction is exact, else 0.

    Shapes: prediction and target have the same shape (n,) or (n, ...), n >= 2; the result is ().

    Raises:
        ValueError: they differ in shape; they are not floating; there are fewer than two examples.
    """
    prediction, target = _check_pair("r2_score", prediction, target)
    if prediction.ndim == 0 or len(prediction) < 2:
        got = prediction.shape
        raise ValueError(f"r2_score: expected shape (n, ...) with two or more examples, got {got}")
    is_constant = jnp.max(target, axis=0) == jnp.min(target, axis=0)
    factor = _factor_against_overflow(jnp.max(jnp.abs(target), axis=0, keepdims=True))
    prediction, target = prediction * factor, target * factor  # which does not change R2
    deviation = target - jnp.mean(target, axis=0, keepdims=True)
    unit = jnp.where(is_constant, 1, jnp.max(jnp.abs(deviation), axis=0))  # no square overflows
    residual, total = (
        jnp.sum(jnp.square(difference / unit[None]), axis=0)
        for difference in (target - prediction, deviation)
    )
    score = 1 - residual / jnp.where(is_constant, 1, total)
    return jnp.mean(jnp.where(is_constant, jnp.where(residual == 0, 1.0, 0.0), score))


def mean_absolute_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """MAE = sum |prediction - target| / n, over all n elements.

    Shapes: prediction and target have the same shape; the result is ().

    Raises:
        ValueError: they differ in shape; they are not floating; they are empty.
    """
    prediction, target = _check_pair("mean_absolute_error", prediction, target)
    largest = jnp.max(jnp.maximum(jnp.abs(prediction), jnp.abs(target)))
    factor = _factor_against_overflow(largest)
    return jnp.mean(jnp.abs(prediction * factor - target * factor)) / factor


def _factor_against_overflow(largest):
    """2^-40 if sums of numbers as large as `largest` could overflow, else 1. Both are exact."""
    return jnp.where(largest > 1e25, 2.0**-40, 1.0).astype(largest.dtype)


def _check_pair(name, prediction, target):
    """Both as arrays of one shape in the accumulation dtype."""
    prediction = upcast(check_array(name, "prediction", prediction, (...,)))
    if prediction.size == 0:
        raise ValueError(f"{name}: expected at least one example, got shape {prediction.shape}")
    return prediction, check_array(name, "target", target, prediction.shape, prediction.dtype)


def _classify(name, scores, labels):
    """(predicted classes, labels, number of classes, whether binary).

    The first two are int32 and of one shape. The number of classes replaces a class that an example
    does not have, and an invalid label.
    """
    scores, labels = as_array(name, "scores", scores), as_array(name, "labels", labels)
    has_one_column = scores.shape[-1:] == (1,)
    if has_one_column and labels.shape == scores.shape[:-1]:
        labels = jnp.expand_dims(labels, -1)
    is_binary = labels.shape == scores.shape and (has_one_column or scores.ndim <= 1)
    if not is_binary:
        labels = check_integer_array(name, "labels", labels)
        if scores.ndim == 0 or labels.shape != scores.shape[:-1]:
            either = f"{scores.shape} or " if has_one_column or scores.ndim <= 1 else ""
            expected = f"expected labels of shape {either}{scores.shape[:-1]}"
            got = f"for scores of shape {scores.shape}, got {labels.shape}"
            raise ValueError(f"{name}: {expected} {got}")
    if scores.size == 0:
        raise ValueError(f"{name}: expected at least one example, got shape {scores.shape}")
    if is_binary:
        num_classes, predicted, is_nan = 2, scores > 0, jnp.isnan(scores)
        labels = labels.astype(jnp.int32) if labels.dtype == bool else labels
        labels = jnp.where((labels == 0) | (labels == 1), labels, 2).astype(jnp.int32)
    else:
        num_classes, predicted = scores.shape[-1], jnp.argmax(scores, axis=-1)
        is_nan = jnp.any(jnp.isnan(scores), axis=-1)
        labels = mark_invalid(labels, num_classes)
    predicted = jnp.where(is_nan, num_classes, predicted.astype(jnp.int32))
    return predicted, labels, num_classes, is_binary
