"""calibrate: the statistics with which BatchNorm evaluates.

The layers inside the model are replaced by ones whose backward gives new params in place of grads.
Then one forward and one backward pass through the model give the params that calibrate returns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_integer
from fnn._numerics import upcast
from fnn.inspection import map_layers
from fnn.layer import Layer, check_is_layer, type_of
from fnn.training import predict

# They would change the params that a layer gives in place of grads, and not what it computes.
LEFT_OUT = ("with_compute_dtype", "per_example")


def calibrate(model: Layer, params: Any, x: jax.Array, *, batch_size: int | None = None) -> Any:
    """params in which the mean and the variance of every BatchNorm are those of x.

    Afterwards the model without a key computes for x what it computes with one, except for Dropout
    and the like: they are in evaluation mode while x is measured. So call it after the training,
    with the training examples, and again after the parameters have changed. The other parameters
    stay as they are. Wu and Johnson, 2021, compare this with running averages. A frozen
    BatchNorm is measured like any other.

    It is one forward pass. Each BatchNorm gets the numbers that the layers before it make of all
    x, normalized by their new statistics. Its variance has the divisor N, as in training, where
    PyTorch's running_var has N - 1. 16-bit numbers are measured in float32.

    Shapes: x (n, ...), as the model takes it.

    Args:
        batch_size: how many examples the layers between the BatchNorms evaluate at a time, as in
            predict. What one layer makes of all x must fit into the memory all the same.

    Raises:
        ValueError: `model` is not a Layer; batch_size is not a positive integer; a channel has
            fewer than two numbers; the examples are coupled by a layer that is not a BatchNorm, or
            that does not show its inside; what the layers raise for this x.

    Before it, "mean" and "var" of a BatchNorm are 0 and 1. After it they are those of the examples:

        >>> model = fnn.Sequential(fnn.Linear(2, 3), fnn.BatchNorm(3), fnn.ReLU(), fnn.Linear(3, 2))
        >>> params = model.init(jax.random.key(0))
        >>> x = 5 + jax.random.normal(jax.random.key(1), (100, 2))
        >>> measured = fnn.calibrate(model, params, x)
        >>> print(params[1]["mean"], measured[1]["mean"])
        [0. 0. 0.] [ 2.28...  1.02... -6.29...]
        >>> fnn.predict(model, measured, x).shape
        (100, 2)
    """
    check_is_layer("calibrate", model)
    if batch_size is not None:
        check_integer("calibrate", "batch_size", batch_size, 1)
    x = as_array("calibrate", "x", x)
    measuring = map_layers(functools.partial(_measuring, batch_size), model)
    y, residuals = measuring.forward(params, x)
    measured, _ = measuring.backward(params, residuals, jnp.zeros_like(y))
    return measured


def _measuring(batch_size, place, layer):
    """The layer in evaluation mode, whose backward gives new params in place of grads."""
    # A transform that changes backward alone would change the params that are given for grads.
    changes_backward_alone = layer.layers and layer.forward is layer.layers[0].forward
    if changes_backward_alone or layer.name in LEFT_OUT:
        return layer.layers[0]
    if layer.layers and layer.rebuild:
        return layer
    if layer.couples_examples and layer.name.startswith("BatchNorm("):
        return _measuring_batch_norm(layer)
    if layer.couples_examples:
        raise ValueError(f"calibrate: expected a BatchNorm at {place!r}, got {layer.name}")

    def forward(params, x, key=None):
        return predict(layer, params, x, batch_size=batch_size), type_of(x)

    def backward(params, x_type, dy):
        return params, jnp.zeros(*x_type)

    return layer._replace(forward=forward, backward=backward)


def _measuring_batch_norm(layer):
    """The BatchNorm in training mode, whose backward gives params with the statistics of x."""

    def forward(params, x, key=None):
        y, _ = layer.forward(params, x, jax.random.key(0))
        wide, axes = upcast(x), tuple(range(x.ndim - 1))
        return y, {"mean": jnp.mean(wide, axes), "var": jnp.var(wide, axes)}

    def backward(params, statistics, dy):
        rounded = {name: a.astype(params[name].dtype) for name, a in statistics.items()}
        return {**params, **rounded}, dy

    return layer._replace(forward=forward, backward=backward)
