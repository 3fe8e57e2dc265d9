"""ResNet-18, MobileNetV3-small and EfficientNet-B0 of torchvision, in fnn's layers.

tests/record_torchvision.py records what torchvision computes with the parameters and images that
are drawn here. tests/test_architectures.py holds fnn to it. Images are (..., 32, 32, 3).

Of the 80 classification models of torchvision 0.28 fnn's layers can say 64. They cannot say ViT,
which makes a sequence of an image. They cannot say Swin and MaxViT, which attend in windows, nor
ShuffleNet, which shuffles channels.
"""

import functools
import math
import random

import jax

from fnn import (
    BatchNorm,
    Conv2d,
    Dropout,
    GlobalAvgPool,
    Hardsigmoid,
    Hardswish,
    Identity,
    Linear,
    MaxPool2d,
    Parallel,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    SiLU,
    StochasticDepth,
)

NUM_CLASSES, IMAGES = 5, (4, 32, 32, 3)
STATISTICS = "mean", "var"


def conv_norm(c_in, c_out, kernel, *after, stride=1, groups=1, eps=1e-5):
    """A convolution that keeps the size or divides it by the stride, BatchNorm, and `after`."""
    options = {"stride": stride, "padding": kernel // 2, "groups": groups, "bias": False}
    return Sequential(Conv2d(c_in, c_out, kernel, **options), BatchNorm(c_out, eps), *after)


def resnet18(width):
    """He et al., 2016. The published network has a width of 64 channels."""

    def block(c_in, c_out, stride):
        first, second = conv_norm(c_in, c_out, 3, ReLU(), stride=stride), conv_norm(c_out, c_out, 3)
        branch = Sequential(first, second)
        if c_in == c_out:
            return Sequential(Residual(branch), ReLU())
        shortcut = conv_norm(c_in, c_out, 1, stride=stride)
        return Sequential(Parallel(branch, shortcut, combine="sum"), ReLU())

    def stage(c_in, c_out, stride):
        return Sequential(block(c_in, c_out, stride), block(c_out, c_out, 1))

    return Sequential(
        conv_norm(3, width, 7, ReLU(), stride=2),
        MaxPool2d(3, stride=2, padding=1),
        stage(width, width, 1),
        stage(width, 2 * width, 2),
        stage(2 * width, 4 * width, 2),
        stage(4 * width, 8 * width, 2),
        GlobalAvgPool(),
        Linear(8 * width, NUM_CLASSES),
    )


def inverted_residual(channels, kernel, stride, act, gate=None, *, eps=1e-5, drop_rate=None):
    """Expand the channels, convolve each alone, gate them, and project. Sandler et al., 2018.

    Args:
        channels: the numbers of channels (before, expanded, after).
        act: the activation after the first two convolutions.
        gate: (hidden features, hidden activation, last activation) of squeeze-and-excitation, Hu et
            al., 2018; None for no gate.
        drop_rate: the rate of StochasticDepth; None for none.
    """
    c_in, expanded, c_out = channels
    depthwise = {"stride": stride, "groups": expanded, "eps": eps}
    layers = [] if c_in == expanded else [conv_norm(c_in, expanded, 1, act, eps=eps)]
    layers.append(conv_norm(expanded, expanded, kernel, act, **depthwise))
    if gate:
        hidden, *acts = gate
        squeeze = GlobalAvgPool(), Linear(expanded, hidden), acts[0]
        excite = Linear(hidden, expanded), acts[1]
        layers.append(Parallel(Identity(), Sequential(*squeeze, *excite), combine="product"))
    branch = Sequential(*layers, conv_norm(expanded, c_out, 1, eps=eps))
    if stride != 1 or c_in != c_out:
        return branch
    return Residual(branch if drop_rate is None else StochasticDepth(branch, drop_rate))


def divisible(channels):
    """The multiple of 8 nearest to `channels`, at least 8 and at least 90 % of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def mobilenet_v3_small(width, dropout=0.2):
    """Howard et al., 2019. `width` multiplies the published numbers of channels."""
    blocks = [  # kernel, expanded channels, channels, whether there is a gate, activation, stride
        (3, 16, 16, True, ReLU(), 2),
        (3, 72, 24, False, ReLU(), 2),
        (3, 88, 24, False, ReLU(), 1),
        (5, 96, 40, True, Hardswish(), 2),
        (5, 240, 40, True, Hardswish(), 1),
        (5, 240, 40, True, Hardswish(), 1),
        (5, 120, 48, True, Hardswish(), 1),
        (5, 144, 48, True, Hardswish(), 1),
        (5, 288, 96, True, Hardswish(), 2),
        (5, 576, 96, True, Hardswish(), 1),
        (5, 576, 96, True, Hardswish(), 1),
    ]
    eps, c_in, hidden = 0.001, divisible(16 * width), divisible(1024 * width)
    layers = [conv_norm(3, c_in, 3, Hardswish(), stride=2, eps=eps)]
    for kernel, expanded, c_out, is_gated, act, stride in blocks:
        channels = c_in, divisible(expanded * width), divisible(c_out * width)
        gate = (divisible(channels[1] // 4), ReLU(), Hardsigmoid()) if is_gated else None
        layers.append(inverted_residual(channels, kernel, stride, act, gate, eps=eps))
        c_in = channels[-1]
    return Sequential(
        *layers,
        conv_norm(c_in, 6 * c_in, 1, Hardswish(), eps=eps),
        GlobalAvgPool(),
        Linear(6 * c_in, hidden),
        Hardswish(),
        Dropout(dropout),
        Linear(hidden, NUM_CLASSES),
    )


def efficientnet_b0(width, dropout=0.2, drop_rate=0.2):
    """Tan and Le, 2019. `width` multiplies the published numbers of channels.

    The rate of StochasticDepth grows from 0 in the first block towards `drop_rate`.
    """
    stages = [  # expanded / input channels, kernel, stride of the first block, channels, blocks
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ]
    c_in, total = divisible(32 * width), sum(stage[-1] for stage in stages)
    layers = [conv_norm(3, c_in, 3, SiLU(), stride=2)]
    for ratio, kernel, stride, c_out, num_blocks in stages:
        for number in range(num_blocks):
            channels = c_in, divisible(c_in * ratio), divisible(c_out * width)
            gate, rate = (
                (max(1, c_in // 4), SiLU(), Sigmoid()),
                drop_rate * (len(layers) - 1) / total,
            )
            step = stride if number == 0 else 1
            layers.append(inverted_residual(channels, kernel, step, SiLU(), gate, drop_rate=rate))
            c_in = channels[-1]
    return Sequential(
        *layers,
        conv_norm(c_in, 4 * c_in, 1, SiLU()),
        GlobalAvgPool(),
        Dropout(dropout),
        Linear(4 * c_in, NUM_CLASSES),
    )


SMALL = {  # with few channels, and without what is random
    "resnet18": functools.partial(resnet18, 8),
    "mobilenet_v3_small": functools.partial(mobilenet_v3_small, 0.25, 0.0),
    "efficientnet_b0": functools.partial(efficientnet_b0, 0.25, 0.0, 0.0),
}


def draw(size, seed, low=-1.0, high=1.0):
    """A list of numbers. Python gives the same ones for a seed in every version."""
    generator = random.Random(seed)
    return [low + (high - low) * generator.random() for _ in range(size)]


def draw_params(model):
    """The parameters of a model: their shapes, and a list of numbers for each leaf."""
    like = jax.eval_shape(model.init, jax.random.key(0))
    numbers = []
    for seed, (path, leaf) in enumerate(jax.tree.leaves_with_path(like)):
        center, bound = 1.0 if path[-1].key in ("scale", "var") else 0.0, 0.25
        if path[-1].key == "W":  # (height, width, in, out) or (out, in)
            fan_in = leaf.shape[-1] if leaf.ndim == 2 else math.prod(leaf.shape[:-1])
            bound = math.sqrt(6 / fan_in)
        numbers.append(draw(leaf.size, seed, center - bound, center + bound))
    return like, numbers


def draw_images():
    return draw(math.prod(IMAGES), "images")


def digest(numbers):
    """[norm, weighted sum] of a list of derivatives."""
    weights = draw(len(numbers), "weights")
    return [math.hypot(*numbers), math.fsum(a * b for a, b in zip(numbers, weights, strict=True))]
