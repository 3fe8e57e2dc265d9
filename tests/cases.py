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


def with_key(layer):
    """The layer in training mode, with a key that is always the same."""
    return layer._replace(forward=lambda p, x, key=None: layer.forward(p, x, jax.random.key(0)))


def make_gated_image():
    """Squeeze-and-excitation: a gate for each channel of an image of 4 by 4."""
    squeeze = fnn.AvgPool2d(4), fnn.Flatten()
    excite = fnn.Linear(2, 3), fnn.Tanh(), fnn.Linear(3, 2), fnn.Sigmoid()
    return fnn.Parallel(
        fnn.Identity(), fnn.Sequential(*squeeze, *excite), fnn.Tanh(), combine="product"
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
    "MaxPool2d-padded": LayerCase(
        lambda: fnn.MaxPool2d((3, 2), (2, 1), padding=1), (4, 3, 2), (2, 4, 2)
    ),
    "AvgPool2d": LayerCase(lambda: fnn.AvgPool2d((2, 1)), (5, 4, 2), (2, 4, 2)),
    "GlobalMaxPool": LayerCase(fnn.GlobalMaxPool, (4, 3, 2), (2,)),
    "Upsample": LayerCase(lambda: fnn.Upsample((2, 3), "linear"), (3, 2, 2), (6, 6, 2)),
    "Pad": LayerCase(lambda: fnn.Pad(((1, 2), 1), "reflect"), (3, 4, 2), (6, 6, 2)),
    "Flatten": LayerCase(fnn.Flatten, (2, 3, 4), (24,)),
    "LayerNorm": LayerCase(lambda: fnn.LayerNorm(3), (3,), (3,)),
    "RMSNorm": LayerCase(lambda: fnn.RMSNorm(3), (3,), (3,)),
    "GroupNorm": LayerCase(lambda: fnn.GroupNorm(2, 4), (3, 2, 4), (3, 2, 4)),
    "BatchNorm": LayerCase(lambda: fnn.BatchNorm(3), (3,), (3,)),
    "Standardize": LayerCase(
        lambda: fnn.Standardize([0.5, -2.0, 0.0], [2.0, 0.1, 1.0]), (3,), (3,)
    ),
    "Attention": LayerCase(lambda: fnn.Attention(2), (3, 12), (3, 4)),
    "MultiHeadAttention": LayerCase(
        lambda: fnn.MultiHeadAttention(4, 2, causal=True, rotary_base=10), (3, 4), (3, 4)
    ),
    "PositionalEmbedding": LayerCase(lambda: fnn.PositionalEmbedding(4, 2), (3, 2), (3, 2)),
    "LSTM": LayerCase(lambda: fnn.LSTM(3, 2), (4, 3), (4, 2)),
    "GRU": LayerCase(lambda: fnn.GRU(3, 2), (4, 3), (4, 2)),
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
    "Mish": LayerCase(fnn.Mish, (3,), (3,)),
    "PReLU": LayerCase(lambda: fnn.PReLU(3), (2, 3), (2, 3)),
    "GLU": LayerCase(fnn.GLU, (6,), (3,)),
    "Maxout": LayerCase(lambda: fnn.Maxout(2), (6,), (3,)),
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
    "Parallel-product": LayerCase(
        lambda: fnn.Parallel(fnn.Linear(3, 3), fnn.Tanh(), combine="product"), (3,), (3,)
    ),
    "StochasticDepth-without-a-key": LayerCase(
        lambda: fnn.StochasticDepth(fnn.Linear(3, 4), 0.5), (3,), (4,)
    ),
}

# Layers with options of those above. The tests of exactness and of cost run over them too, and the
# other properties do not.
VARIANTS: dict[str, LayerCase] = {
    "MaxPool1d-overlapping": LayerCase(lambda: fnn.MaxPool1d(3, 1), (6, 2), (4, 2)),
    "MaxPool1d-dilated": LayerCase(
        lambda: fnn.MaxPool1d(3, 2, padding=((0, 2),), dilation=2), (8, 2), (3, 2)
    ),
    "MaxPool2d-ceil": LayerCase(
        lambda: fnn.MaxPool2d((2, 3), (3, 2), padding="SAME", ceil_mode=True), (4, 5, 2), (2, 3, 2)
    ),
    "MaxPool2d-large": LayerCase(lambda: fnn.MaxPool2d((9, 2), (2, 1)), (12, 3, 2), (2, 2, 2)),
    "MaxPool2d-many": LayerCase(lambda: fnn.MaxPool2d(9, 1), (10, 10, 1), (2, 2, 1)),
    "MaxPool3d": LayerCase(lambda: fnn.MaxPool3d((1, 2, 2)), (2, 4, 5, 2), (2, 2, 2, 2)),
    "GlobalMaxPool-large": LayerCase(lambda: fnn.GlobalMaxPool(1), (17, 2), (2,)),
    "AvgPool1d-same": LayerCase(
        lambda: fnn.AvgPool1d(3, 2, padding="SAME", count_include_pad=False), (6, 2), (3, 2)
    ),
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
    "AvgPool2d-padded": LayerCase(
        lambda: fnn.AvgPool2d((3, 9), 2, padding=(1, 4), ceil_mode=True), (5, 9, 2), (3, 5, 2)
    ),
    "AvgPool3d": LayerCase(lambda: fnn.AvgPool3d(2, 1), (3, 2, 4, 2), (2, 1, 3, 2)),
    "GlobalAvgPool": LayerCase(fnn.GlobalAvgPool, (4, 3, 2), (2,)),
    "Upsample-nearest": LayerCase(lambda: fnn.Upsample(2), (2, 3, 2), (4, 6, 2)),
    "Upsample-linear-signal": LayerCase(lambda: fnn.Upsample((4,), "linear"), (3, 2), (12, 2)),
    "Pad-constant": LayerCase(lambda: fnn.Pad(((2, 1),), value=3.0), (4, 2), (7, 2)),
    "Pad-edge": LayerCase(lambda: fnn.Pad(2, "edge"), (3, 2, 2), (7, 6, 2)),
    "Attention-causal": LayerCase(lambda: fnn.Attention(1, causal=True), (5, 6), (5, 2)),
    "Attention-in-blocks": LayerCase(lambda: fnn.Attention(1, causal=True), (130, 6), (130, 2)),
    "RNN": LayerCase(lambda: fnn.RNN(3, 2), (4, 3), (4, 2)),
    "RNN-relu": LayerCase(lambda: fnn.RNN(3, 2, activation="relu"), (4, 3), (4, 2)),
    "LSTM-bidirectional": LayerCase(
        lambda: fnn.Parallel(fnn.LSTM(3, 2), fnn.reverse_time(fnn.LSTM(3, 2))), (4, 3), (4, 4)
    ),
    "LastStep": LayerCase(fnn.LastStep, (4, 3), (3,)),
    "LayerNorm-two-axes": LayerCase(lambda: fnn.LayerNorm((2, 3)), (2, 3), (2, 3)),
    "RMSNorm-two-axes": LayerCase(lambda: fnn.RMSNorm((2, 3)), (2, 3), (2, 3)),
    "GroupNorm-time": LayerCase(lambda: fnn.GroupNorm(2, 4, num_axes=1), (3, 4), (3, 4)),
    "InstanceNorm": LayerCase(lambda: fnn.InstanceNorm(2), (3, 2, 2), (3, 2, 2)),
    "BatchNorm-in-training": LayerCase(lambda: with_key(fnn.BatchNorm(3)), (4, 3), (4, 3)),
    "SELU": LayerCase(fnn.SELU, (3,), (3,)),
    "CELU": LayerCase(lambda: fnn.CELU(2.0), (3,), (3,)),
    "ReLU6": LayerCase(fnn.ReLU6, (3,), (3,)),
    "Hardtanh": LayerCase(lambda: fnn.Hardtanh(-0.5, 2.0), (3,), (3,)),
    "Hardsigmoid": LayerCase(fnn.Hardsigmoid, (3,), (3,)),
    "Hardswish": LayerCase(fnn.Hardswish, (3,), (3,)),
    "Softsign": LayerCase(fnn.Softsign, (3,), (3,)),
    "LogSigmoid": LayerCase(fnn.LogSigmoid, (3,), (3,)),
    "Threshold": LayerCase(lambda: fnn.Threshold(0.25, -1.0), (3,), (3,)),
    "PReLU-shared": LayerCase(fnn.PReLU, (3,), (3,)),
    "GLU-axis-2": LayerCase(lambda: fnn.GLU(-2), (4, 3), (2, 3)),
    "Parallel-axis-2": LayerCase(
        lambda: fnn.Parallel(fnn.Linear(3, 3), fnn.Tanh(), axis=-2), (2, 3), (4, 3)
    ),
    "Parallel-gate": LayerCase(make_gated_image, (4, 4, 2), (4, 4, 2)),
    "Maxout-3": LayerCase(lambda: fnn.Maxout(3), (6,), (2,)),
}


class LossCase(NamedTuple):
    make: Callable[[str], fnn.Loss]  # from a reduction
    target: Callable[..., jax.Array]  # from a seed, the prediction's shape and dtype
    prediction: Callable[..., jax.Array] = lambda *args: draw(*args)  # likewise


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
    "NLLLoss": LossCase(fnn.NLLLoss, draw_labels),
    "KLDivLoss": LossCase(fnn.KLDivLoss, draw_probabilities),
    "SmoothL1Loss": LossCase(lambda reduction: fnn.SmoothL1Loss(0.1, reduction), draw),
    "BCELoss": LossCase(fnn.BCELoss, draw_probabilities, draw_probabilities),
    "CosineDistanceLoss": LossCase(fnn.CosineDistanceLoss, draw),
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
    leaves, structure = jax.tree.flatten_with_path(shapes)
    drawn = [0.5 * _draw(3 + number, leaf.shape) for number, (_, leaf) in enumerate(leaves)]
    for number, (path, _) in enumerate(leaves):
        if "var" in str(path[-1]):
            drawn[number] = 0.5 + abs(drawn[number])
    params = jax.device_put(jax.tree.unflatten(structure, [leaf.astype(dtype) for leaf in drawn]))
    if case.num_indices:
        x = draw_integers(1, leading + case.x, case.num_indices)
    else:
        x = draw(1, leading + case.x, dtype)
    return layer, params, x, draw(2, leading + case.y, dtype)
