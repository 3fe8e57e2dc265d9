"""Networks of torchvision, in fnn's layers, give what tests/record_torchvision.py recorded.

With the same parameters and images, in float64, as tests/architectures.py draws them. A product for
each place of a depthwise kernel makes a program that takes long to compile. Therefore all but
MobileNetV3 in training have XLA's convolution in its place.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from architectures import IMAGES, NUM_CLASSES, SMALL, STATISTICS, digest, draw_images, draw_params
from cases import numpy_array

import fnn
from fnn.layers import _convolve

RECORD = json.loads((pathlib.Path(__file__).parent / "data" / "torchvision.json").read_text())
TOLERANCE = 1e-9
cross_entropy = fnn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def drawn(name):
    """The model, its parameters, and images."""
    model = SMALL[name]()
    like, numbers = draw_params(model)
    leaves, structure = jax.tree.flatten(like)
    arrays = [
        numpy_array(part, "float64").reshape(leaf.shape)
        for part, leaf in zip(numbers, leaves, strict=True)
    ]
    images = numpy_array(draw_images(), "float64").reshape(IMAGES)
    return model, jax.tree.unflatten(structure, arrays), images


@functools.partial(jax.jit, static_argnums=(0, 3))
def passes(model, params, images, training):
    """The outputs, the loss, dx and grads."""
    y, residuals = model.forward(params, images, jax.random.key(0) if training else None)
    value, kept = cross_entropy.forward(y, jnp.arange(len(y)) % NUM_CLASSES)
    grads, dx = model.backward(params, residuals, cross_entropy.backward(kept))
    return y, value, dx, grads


def assert_close(numbers, recorded, scale):
    for number, expected in zip(numbers, recorded, strict=True):
        assert abs(number - expected) <= TOLERANCE * scale


@pytest.mark.parametrize("mode", ["evaluation", "training"])
@pytest.mark.parametrize("name", SMALL)
def test_fnn_gives_what_torchvision_gave(name, mode, monkeypatch):
    if (name, mode) != ("mobilenet_v3_small", "training"):
        monkeypatch.setattr(_convolve, "FEW_PAIRS", 0)
    results = passes(*drawn(name), mode == "training")
    y, value, dx, grads = jax.device_get(results)
    recorded = RECORD[name][mode]
    assert_close(y.ravel().tolist(), recorded["y"], max(map(abs, recorded["y"])))
    assert_close([value.item()], [recorded["loss"]], recorded["loss"])
    assert_close(digest(dx.ravel().tolist()), recorded["dx"], recorded["dx"][0])
    # BatchNorm in training takes away what a bias before it adds. Its derivatives are rounding.
    floor = 1e-6 * max(norm for norm, _ in recorded["grads"])
    expected = iter(recorded["grads"])
    for path, leaf in jax.tree.leaves_with_path(grads):
        if path[-1].key in STATISTICS:
            assert not leaf.any()
            continue
        norm, weighted = next(expected)
        assert_close(digest(leaf.ravel().tolist()), [norm, weighted], max(norm, floor))
    assert not [*expected]


def test_a_calibrated_resnet_evaluates_as_it_trains():
    model, params, images = drawn("resnet18")
    calibrated = jax.jit(functools.partial(fnn.calibrate, model))(params, images)
    y, *_ = passes(model, calibrated, images, False)
    recorded = RECORD["resnet18"]["training"]["y"]
    assert_close(jax.device_get(y).ravel().tolist(), recorded, max(map(abs, recorded)))
