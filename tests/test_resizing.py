"""Up-sampling and padding: values by definition, infinities, 16 bits, errors."""

import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn


def run(layer, x):
    return layer.forward((), x)[0]


def test_up_sampling_repeats_or_interpolates():
    x = jnp.array([[0.0], [8.0], [16.0]])
    for layer, expected in (
        (fnn.Upsample((2,)), [0, 0, 8, 8, 16, 16]),
        (fnn.Upsample((2,), "linear"), [0, 2, 6, 10, 14, 16]),
        (fnn.Upsample((1,), "linear"), [0, 8, 16]),
        (fnn.Upsample((4,), "linear"), [0, 0, 1, 3, 5, 7, 9, 11, 13, 15, 16, 16]),
    ):
        assert run(layer, x).ravel().tolist() == expected


@pytest.mark.parametrize("scale", [2, 3])
def test_linear_up_sampling_is_that_of_jax_image(scale):
    x = draw(1, (2, 3, 4, 2))
    y = run(fnn.Upsample(scale, "linear"), x)
    expected = jax.image.resize(x, (2, 3 * scale, 4 * scale, 2), "linear")
    assert jnp.allclose(y, expected, atol=1e-6)


def test_what_a_place_does_not_reach_is_not_made_nan():
    """A weight of 0 times an infinite number would be NaN."""
    layer, x = fnn.Upsample((3,), "linear"), jnp.array([[0.0], [jnp.inf], [0.0], [0.0]])
    y, residuals = layer.forward((), x)
    assert y.ravel()[:2].tolist() == [0, 0]
    assert y.ravel()[-5:].tolist() == [0] * 5
    assert jnp.all(y[2:7] == jnp.inf)
    dx = layer.backward((), residuals, jnp.zeros((12, 1)).at[4].set(jnp.inf))[1]
    assert dx.ravel().tolist() == [0, jnp.inf, 0, 0]


def test_padding_is_that_of_jax_numpy():
    x = draw(1, (2, 4, 3, 2))
    widths = ((3, 1), (0, 2))
    for layer, options in (
        (fnn.Pad(widths, value=-1.5), {"constant_values": -1.5}),
        (fnn.Pad(widths, "reflect"), {"mode": "reflect"}),
        (fnn.Pad(widths, "edge"), {"mode": "edge"}),
    ):
        assert jnp.array_equal(run(layer, x), jnp.pad(x, [(0, 0), *widths, (0, 0)], **options))
    assert run(fnn.Pad(2), x).shape == (2, 8, 7, 2)
    assert run(fnn.Pad((2,)), x).shape == (2, 4, 7, 2)
    assert run(fnn.Pad((0, (1, 0), 2)), x).shape == (2, 5, 7, 2)


def test_sums_of_16_bits_accumulate_in_float32():
    """A sum of 400 ones stops at 256 when it accumulates in bfloat16."""
    for layer in (fnn.Upsample((400,)), fnn.Upsample((400,), "linear"), fnn.Pad((399,), "edge")):
        residuals = layer.forward((), jnp.ones((1, 1), jnp.bfloat16))[1]
        length = 797 + 2 if layer.name.startswith("Pad") else 400
        dx = layer.backward((), residuals, jnp.ones((length, 1), jnp.bfloat16))[1]
        assert dx.item() == jnp.bfloat16(length)
        assert dx.dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", [fnn.Upsample(2), fnn.Upsample(2, "linear"), fnn.Pad(1, "edge")])
def test_nothing_but_the_shape_is_kept(layer):
    assert not jax.tree.leaves(layer.forward((), jnp.ones((2, 2, 1)))[1])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_messages_say_what_was_expected_and_what_came(wrap):
    for layer, x, message in (
        (fnn.Upsample(2), (5, 2), r"expected x of shape \(..., height, width, channels\), got"),
        (fnn.Upsample(2, "linear"), (0, 5, 2), r"expected x of at least \(1, 1\) places, got \(0,"),
        (
            fnn.Pad((3,), "reflect"),
            (3, 2),
            r"Pad.*: expected x of at least \(4,\) places, got \(3,",
        ),
        (fnn.Pad((3,), "edge"), (0, 2), r"Pad.*: expected x of at least \(1,\) places, got \(0, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(lambda x, layer=layer: run(layer, x))(jnp.ones(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.Upsample(0), "Upsample: expected scale to be an integer >= 1, got 0"),
        (lambda: fnn.Upsample(1.5), "Upsample: expected scale to be an integer >= 1, got 1.5"),
        (lambda: fnn.Upsample(()), "Upsample: expected scale for one or more axes, got"),
        (lambda: fnn.Upsample(2, "cubic"), "Upsample: expected method 'nearest' or 'linear', got"),
        (lambda: fnn.Pad(-1), "Pad: expected widths to be an integer >= 0, got -1"),
        (lambda: fnn.Pad(((1, 2, 3),)), "Pad: expected widths to be an integer or 2, got"),
        (lambda: fnn.Pad(()), "Pad: expected widths for one or more axes, got"),
        (lambda: fnn.Pad(1, "wrap"), "Pad: expected mode 'constant', 'reflect' or 'edge', got"),
        (lambda: fnn.Pad(1, value="0"), "Pad: expected value to be a finite number, got '0'"),
    ],
)
def test_constructors_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
