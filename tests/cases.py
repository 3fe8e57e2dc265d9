"""The tables of layers and losses that every property in test_layers and test_losses runs over."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fnn


class LayerCase(NamedTuple):
    make: Callable[[], fnn.Layer]
    x: tuple[int, ...]  # shape of one example
    y: tuple[int, ...]


def make_network():
    return fnn.Sequential(
        fnn.Linear(3, 8), fnn.LeakyReLU(), fnn.Linear(8, 5), fnn.Tanh(), fnn.Linear(5, 2)
    )


LAYERS = {
    "Linear": LayerCase(lambda: fnn.Linear(3, 4), (3,), (4,)),
    "Linear-no-bias": LayerCase(lambda: fnn.Linear(3, 4, bias=False), (3,), (4,)),
    "Linear-one-feature": LayerCase(lambda: fnn.Linear(1, 1), (1,), (1,)),
    "ReLU": LayerCase(fnn.ReLU, (3,), (3,)),
    "LeakyReLU": LayerCase(fnn.LeakyReLU, (3,), (3,)),
    "LeakyReLU-slope-2": LayerCase(lambda: fnn.LeakyReLU(2.0), (3,), (3,)),
    "Tanh": LayerCase(fnn.Tanh, (3,), (3,)),
    "Sigmoid": LayerCase(fnn.Sigmoid, (3,), (3,)),
    "Sequential": LayerCase(make_network, (3,), (2,)),
    "Sequential-nested": LayerCase(
        lambda: fnn.Sequential(make_network(), fnn.Sequential(), fnn.Sigmoid()), (3,), (2,)
    ),
    "Sequential-empty": LayerCase(fnn.Sequential, (3,), (3,)),
}

LOSSES = {
    f"MSELoss-{reduction}": lambda reduction=reduction: fnn.MSELoss(reduction)
    for reduction in ("mean", "sum", "batchmean")
}

LEADING = {"example": (), "batch": (5,), "batch-of-one": (1,), "two-axes": (2, 3)}


def draw(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def layer_inputs(case, leading=(5,), dtype=jnp.float32):
    """A layer of the table with parameters that are not at their initial values, x and dy."""
    layer = case.make()
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * draw(leaf.size, leaf.shape), layer.init(jax.random.key(0))
    )
    x, dy = draw(1, leading + case.x, dtype), draw(2, leading + case.y, dtype)
    return layer, cast(params, dtype), x, dy
