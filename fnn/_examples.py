"""The sets of examples of a training, and checks of them on the host before it begins.

The values of an array that several processes share are not looked at.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array
from fnn.layer import Layer
from fnn.losses import Loss
from fnn.preprocessing import split
from fnn.sharding import sharded_axes
from fnn.training import count_examples


def make_sets(
    key: jax.Array, x: Any, target: Any, validation: Any
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """The training set (x, target) and the validation set, () if there is none."""
    train_set = check_examples("fit", x, target)
    if validation is None:
        return train_set, ()
    if isinstance(validation, tuple | list) and len(validation) == 2:
        return train_set, check_examples("fit, validation", *validation)
    if isinstance(validation, numbers.Real) and 0 < validation < 1:  # a NumPy scalar is Real too
        if sharded_axes(train_set[0])[2] > 1:
            raise ValueError("fit: expected validation=(x, target) for an x over several devices")
        return split(key, *train_set, fraction=float(validation))
    raise ValueError(
        "fit: expected validation to be (x, target) or a fraction between 0 and 1, "
        f"got {validation!r:.80}"
    )


def check_examples(name: str, x: Any, target: Any) -> tuple[jax.Array, jax.Array]:
    """x and target as jax arrays, if they have equally many examples and no NaN or infinity."""
    count_examples(name, x, target)
    arrays = as_array(name, "x", x), as_array(name, "target", target)
    for what, array in zip(("x", "target"), arrays, strict=True):
        if not (jnp.issubdtype(array.dtype, jnp.inexact) and array.is_fully_addressable):
            continue
        values = jax.device_get(array)
        bad = ~(abs(values) < math.inf)
        if bad.any():
            place = _first_place(bad)
            raise ValueError(
                f"{name}: expected {what} of finite numbers, got {values[place]} at {place}"
            )
    return arrays


def check_fit(model: Layer, loss: Loss, params: Any, x: jax.Array, target: jax.Array) -> None:
    """Check that model and loss take the examples, and that labels are classes of the model."""
    x_type, target_type = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, target))
    prediction, _ = jax.eval_shape(model.forward, params, x_type)
    jax.eval_shape(loss.forward, prediction, target_type)
    is_label = jnp.issubdtype(target.dtype, jnp.integer) and target.ndim == prediction.ndim - 1
    if not is_label or not target.is_fully_addressable:
        return
    labels, classes = jax.device_get(target), prediction.shape[-1]
    bad = (labels < 0) | (labels >= classes)
    if not bad.any():
        return
    place = _first_place(bad)
    # A loss of one's own may take such a label, for an example without a class. fnn's is NaN.
    scores = jnp.zeros((*[1] * target.ndim, classes), prediction.dtype)
    value, _ = loss.forward(scores, target[place].reshape(scores.shape[:-1]))
    if jnp.isnan(value):
        raise ValueError(
            f"fit: expected labels from 0 to {classes - 1}, the classes of the model, "
            f"got {labels[place]} at {place}"
        )


def _first_place(bad):
    """The indices of the first True in an array on the host."""
    return tuple(int(index) for index in jnp.unravel_index(bad.argmax(), bad.shape))
