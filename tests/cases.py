"""The tables of layers and losses that every property in test_layers and test_losses runs over."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fnn


class LayerCase(NamedTuple):
    make: Callable[[], fnn.Layer]
    x: tuple[int, ...]  # shape of one example
    y: tuple[int, ...]
    num_indices: int = 0  # where x has integers, below this


def make_network():
    return fnn.Sequential(
        fnn.Linear(3, 8), fnn.LeakyReLU(), fnn.Linear(8, 5), fnn.Tanh(), fnn.Linear(5, 2)
    )


def make_image_network():
    return fnn.Sequential(
        fnn.Conv2d(2, 4, 3, padding="SAME"),
        fnn.GELU(),
        fnn.AvgPool2d(2),
        fnn.Flatten(),
        fnn.Dropout(0.5),
        fnn.LayerNorm(16),
        fnn.Residual(fnn.Sequential(fnn.Linear(16, 16), fnn.SiLU())),
    )


LAYERS = {
    "Linear": LayerCase(lambda: fnn.Linear(3, 4), (3,), (4,)),
    "Linear-no-bias": LayerCase(lambda: fnn.Linear(3, 4, bias=False), (3,), (4,)),
    "Linear-one-feature": LayerCase(lambda: fnn.Linear(1, 1), (1,), (1,)),
    "Embedding": LayerCase(lambda: fnn.Embedding(5, 3), (2,), (2, 3), num_indices=5),
    "Conv2d": LayerCase(lambda: fnn.Conv2d(2, 3, 3), (5, 4, 2), (3, 2, 3)),
    "Conv2d-same-strided": LayerCase(
        lambda: fnn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding="SAME"), (6, 5, 2), (3, 2, 3)
    ),
    "Conv2d-padded-no-bias": LayerCase(
        lambda: fnn.Conv2d(1, 2, 2, stride=2, padding=(3, 1), bias=False), (3, 4, 1), (4, 3, 2)
    ),
    "ConvTranspose2d": LayerCase(
        lambda: fnn.ConvTranspose2d(
            4, 2, (3, 2), stride=(3, 2), padding=1, output_padding=(2, 0), groups=2
        ),
        (3, 4, 4),
        (9, 6, 2),
    ),
    "MaxPool2d": LayerCase(lambda: fnn.MaxPool2d(2), (5, 4, 2), (2, 2, 2)),
    "MaxPool2d-overlapping": LayerCase(lambda: fnn.MaxPool2d((3, 2), 1), (4, 4, 2), (2, 3, 2)),
    "AvgPool2d": LayerCase(lambda: fnn.AvgPool2d((2, 1)), (5, 4, 2), (2, 4, 2)),
    "Flatten": LayerCase(fnn.Flatten, (2, 3, 4), (24,)),
    "LayerNorm": LayerCase(lambda: fnn.LayerNorm(3), (3,), (3,)),
    "RMSNorm": LayerCase(lambda: fnn.RMSNorm(3), (3,), (3,)),
    "Standardize": LayerCase(
        lambda: fnn.Standardize([0.5, -2.0, 0.0], [2.0, 0.1, 1.0]), (3,), (3,)
    ),
    "Dropout-without-a-key": LayerCase(lambda: fnn.Dropout(0.5), (3,), (3,)),
    "ReLU": LayerCase(fnn.ReLU, (3,), (3,)),
    "LeakyReLU": LayerCase(fnn.LeakyReLU, (3,), (3,)),
    "LeakyReLU-slope-2": LayerCase(lambda: fnn.LeakyReLU(2.0), (3,), (3,)),
    "ELU": LayerCase(fnn.ELU, (3,), (3,)),
    "ELU-alpha-2": LayerCase(lambda: fnn.ELU(2.0), (3,), (3,)),
    "GELU": LayerCase(fnn.GELU, (3,), (3,)),
    "GELU-tanh": LayerCase(lambda: fnn.GELU("tanh"), (3,), (3,)),
    "SiLU": LayerCase(fnn.SiLU, (3,), (3,)),
    "Softplus": LayerCase(fnn.Softplus, (3,), (3,)),
    "Tanh": LayerCase(fnn.Tanh, (3,), (3,)),
    "Sigmoid": LayerCase(fnn.Sigmoid, (3,), (3,)),
    "Softmax": LayerCase(fnn.Softmax, (3,), (3,)),
    "Softmax-axis-2": LayerCase(lambda: fnn.Softmax(-2), (4, 3), (4, 3)),
    "LogSoftmax": LayerCase(fnn.LogSoftmax, (3,), (3,)),
    "LogSoftmax-axis-2": LayerCase(lambda: fnn.LogSoftmax(-2), (4, 3), (4, 3)),
    "Sequential": LayerCase(make_network, (3,), (2,)),
    "Sequential-nested": LayerCase(
        lambda: fnn.Sequential(make_network(), fnn.Sequential(), fnn.Sigmoid()), (3,), (2,)
    ),
    "Sequential-of-images": LayerCase(make_image_network, (4, 4, 2), (16,)),
    "Identity": LayerCase(fnn.Identity, (3,), (3,)),
    "Residual": LayerCase(lambda: fnn.Residual(fnn.Linear(3, 3)), (3,), (3,)),
    "Parallel": LayerCase(lambda: fnn.Parallel(fnn.Linear(3, 2), fnn.Tanh()), (3,), (5,)),
    "Parallel-sum": LayerCase(
        lambda: fnn.Parallel(fnn.Linear(3, 3), fnn.Tanh(), combine="sum"), (3,), (3,)
    ),
}

# Layers with options of those above. The tests of exactness and of cost run over them too, and the
# other properties do not.
VARIANTS: dict[str, LayerCase] = {
    "Conv1d-pairs": LayerCase(lambda: fnn.Conv1d(2, 3, 3, padding=[(2, 0)]), (5, 2), (5, 3)),
    "Conv3d": LayerCase(
        lambda: fnn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0)), (3, 3, 2, 2), (2, 2, 1, 2)
    ),
    "Conv2d-dilated": LayerCase(
        lambda: fnn.Conv2d(2, 3, (2, 3), dilation=(3, 2), padding="SAME"), (5, 4, 2), (5, 4, 3)
    ),
    "Conv2d-groups": LayerCase(
        lambda: fnn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), (5, 4, 6), (3, 2, 8)
    ),
    "Conv2d-depthwise": LayerCase(
        lambda: fnn.Conv2d(4, 4, 3, padding="SAME", groups=4), (5, 4, 4), (5, 4, 4)
    ),
    "Conv2d-depthwise-strided": LayerCase(
        lambda: fnn.Conv2d(3, 6, 2, stride=(2, 1), groups=3), (6, 4, 3), (3, 3, 6)
    ),
    "ConvTranspose1d": LayerCase(
        lambda: fnn.ConvTranspose1d(3, 2, 3, stride=2, dilation=2, padding=[(1, 0)]),
        (4, 3),
        (10, 2),
    ),
    "ConvTranspose3d": LayerCase(
        lambda: fnn.ConvTranspose3d(2, 2, 2, stride=2), (2, 1, 2, 2), (4, 2, 4, 2)
    ),
    "AvgPool2d-overlapping": LayerCase(lambda: fnn.AvgPool2d(2, (1, 3)), (4, 6, 2), (3, 2, 2)),
}


class LossCase(NamedTuple):
    make: Callable[[str], fnn.Loss]  # from a reduction
    target: Callable[..., jax.Array]  # from a seed, the prediction's shape and dtype


MOST_DRAWN = 2**17  # elements of an array


@functools.cache
def _normals(seed):
    with jax.enable_x64(False):
        return jax.device_get(jax.random.normal(jax.random.key(seed), MOST_DRAWN))


def _draw(seed, shape):
    return _normals(seed)[: math.prod(shape)].reshape(shape)


def draw(seed, shape, dtype=jnp.float32):
    """Normal random numbers; of any shape without a program compiled for it."""
    return jax.device_put(_draw(seed, shape).astype(dtype))


def draw_probabilities(seed, shape, dtype=jnp.float32):
    return jax.nn.softmax(draw(seed, shape)).astype(dtype)


def draw_integers(seed, shape, below):
    return jax.device_put((abs(_draw(seed, shape)) * 1e3 % below).astype(jnp.int32))


def numpy_array(values, dtype):
    """NumPy's array of nested lists of numbers; no program is compiled to make it."""
    shape, inside = (), values
    while isinstance(inside, list):
        shape += (len(inside),)
        inside = inside[0] if inside else None
    array = _draw(0, shape).astype(dtype)
    array[...] = values
    return array


def zeros_like(tree):
    """Zeros on the device, for a tree of arrays or of their shapes."""

    def make(leaf):
        return jax.device_put((0 * _draw(0, leaf.shape)).astype(leaf.dtype))

    return jax.tree.map(make, tree)


def draw_labels(seed, shape, dtype=None):
    return draw_integers(seed, shape[:-1], shape[-1])


LOSSES = {
    "MSELoss": LossCase(fnn.MSELoss, draw),
    "L1Loss": LossCase(fnn.L1Loss, draw),
    "HuberLoss": LossCase(lambda reduction: fnn.HuberLoss(1.0, reduction), draw),
    "HuberLoss-narrow": LossCase(lambda reduction: fnn.HuberLoss(0.1, reduction), draw),
    "BCEWithLogitsLoss": LossCase(fnn.BCEWithLogitsLoss, draw_probabilities),
    "CrossEntropyLoss": LossCase(fnn.CrossEntropyLoss, draw_probabilities),
    "CrossEntropyLoss-labels": LossCase(fnn.CrossEntropyLoss, draw_labels),
}
REDUCTIONS = ["mean", "sum", "batchmean"]

LEADING = {"example": (), "batch": (5,), "batch-of-one": (1,), "two-axes": (2, 3)}


def is_floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def cast(tree, dtype):
    """The tree with its floating leaves in `dtype`."""

    def convert(leaf):
        return jax.device_put(jax.device_get(leaf).astype(dtype)) if is_floating(leaf) else leaf

    return jax.tree.map(convert, tree)


@functools.cache
def _make(case):
    """A layer of the table, and the shapes of its parameters."""
    layer = case.make()
    return layer, jax.eval_shape(layer.init, jax.random.key(0))


def layer_inputs(case, leading=(5,), dtype=jnp.float32):
    """A layer of the table; params that hide no error, as initial ones may; x and dy."""
    layer, shapes = _make(case)
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [0.5 * _draw(3 + number, leaf.shape) for number, leaf in enumerate(leaves)]
    params = jax.device_put(jax.tree.unflatten(structure, [leaf.astype(dtype) for leaf in drawn]))
    if case.num_indices:
        x = draw_integers(1, leading + case.x, case.num_indices)
    else:
        x = draw(1, leading + case.x, dtype)
    return layer, params, x, draw(2, leading + case.y, dtype)
