import functools
import math

import jax
import jax.numpy as jnp
import pytest

import fnn

ACTIVATIONS = {
    "ReLU": fnn.ReLU(),
    "LeakyReLU": fnn.LeakyReLU(),
    "LeakyReLU-slope-0": fnn.LeakyReLU(0.0),
    "Tanh": fnn.Tanh(),
    "Sigmoid": fnn.Sigmoid(),
    "ELU": fnn.ELU(2.0),
    "Softplus": fnn.Softplus(),
    "GELU": fnn.GELU(),
    "GELU-tanh": fnn.GELU("tanh"),
    "SiLU": fnn.SiLU(),
}
every_activation = pytest.mark.parametrize("layer", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())


def derivative(layer, x):
    y, residuals = layer.forward((), x)
    return layer.backward((), residuals, jnp.ones_like(y))[1]


@pytest.mark.parametrize(
    ("name", "values", "derivatives"),
    [
        ("ReLU", [0, 0, 2], [0, 0, 1]),
        ("LeakyReLU", [-0.02, 0, 2], [0.01, 0.01, 1]),
        ("Tanh", [-0.964027580, 0, 0.964027580], [0.0706508249, 1, 0.0706508249]),
        ("Sigmoid", [0.119202922, 0.5, 0.880797078], [0.104993585, 0.25, 0.104993585]),
        ("ELU", [-1.72932943, 0, 2], [0.270670566, 2, 1]),
        ("Softplus", [0.126928011, 0.693147181, 2.12692801], [0.119202922, 0.5, 0.880797078]),
        ("GELU", [-0.0455002639, 0, 1.95449974], [-0.0852317858, 0.5, 1.08523179]),
        ("GELU-tanh", [-0.0454023059, 0, 1.95459769], [-0.0860992600, 0.5, 1.08609926]),
        ("SiLU", [-0.238405844, 0, 1.76159416], [-0.0907842413, 0.5, 1.09078424]),
    ],
)
def test_values_at_minus_2_0_and_2(name, values, derivatives):
    with jax.enable_x64(True):
        layer, x = ACTIVATIONS[name], jnp.array([-2.0, 0.0, 2.0])
        assert jnp.allclose(layer.forward((), x)[0], jnp.array(values, float), rtol=1e-8)
        assert jnp.allclose(derivative(layer, x), jnp.array(derivatives, float), rtol=1e-7)


@every_activation
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_far_out_derivatives_are_their_limits(layer, dtype):
    with jax.enable_x64(True), jax.debug_nans(True):
        limits = {"LeakyReLU": (0.01, 1), "Tanh": (0, 0), "Sigmoid": (0, 0)}
        name = next(name for name, value in ACTIVATIONS.items() if value is layer)
        for x in (1e4, jnp.inf):
            array = jnp.array([-x, x], dtype)
            assert not any(map(math.isnan, layer.forward((), array)[0].tolist()))
            slope, limit = limits.get(name, (0, 1))
            assert derivative(layer, array).tolist() == [float(jnp.dtype(dtype).type(slope)), limit]


@every_activation
def test_residuals_are_y_alone_or_x_where_y_does_not_tell_it(layer):
    x = jnp.linspace(-1, 1, 5)
    y, residuals = layer.forward((), x)
    gated = [ACTIVATIONS[name] for name in ("GELU", "GELU-tanh", "SiLU")]
    assert residuals is (x if layer in gated else y)


@every_activation
def test_nan_stays_nan(layer):
    assert jnp.isnan(layer.forward((), jnp.array(jnp.nan))[0])


@every_activation
def test_derivative_at_kinks_agrees_with_jax(layer):

    @jax.jit
    def by_hand_and_by_jax(x):
        return derivative(layer, x), jax.vmap(jax.grad(lambda x: layer.forward((), x)[0]))(x)

    actual, expected = by_hand_and_by_jax(jnp.array([0.0, -0.0]))
    assert actual.tolist() == expected.tolist()


def test_negative_slope_may_be_traced_and_differs_across_a_vmap():
    derivatives = jax.vmap(lambda slope: derivative(fnn.LeakyReLU(slope), jnp.array(-1.0)))
    assert jnp.allclose(derivatives(jnp.array([0.1, 0.2])), jnp.array([0.1, 0.2]))


def test_params_are_the_empty_tuple():
    assert fnn.Tanh().init(jax.random.key(0)) == ()
    run = functools.partial(fnn.Tanh().forward, {"W": jnp.ones(3)})
    with pytest.raises(
        ValueError, match=r"Tanh\(\): expected params of shapes \(\), got a dict: {'W'"
    ):
        run(jnp.ones(3))
    for scalar in (3.0, jnp.float32(3)):
        with pytest.raises(ValueError, match=r"Tanh\(\): expected params of shapes \(\), got"):
            fnn.Tanh().forward(scalar, jnp.ones(3))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_softmax_of_infinite_and_large_numbers_is_its_limit(dtype):
    rows = [[1e4, -1e4, 0], [jnp.inf, 0, -jnp.inf], [-jnp.inf, 0, 0], [1e4, 1e4, -1e4]]
    shares = jnp.array([[1, 0, 0], [1, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]], dtype)
    with jax.debug_nans(True):
        y, kept = fnn.Softmax().forward((), jnp.array(rows, dtype))
        assert jnp.all(y == shares)
        dx = fnn.Softmax().backward((), kept, jnp.array([[1, 2, 3]] * 4, dtype))[1]
        assert jnp.all(
            dx == jnp.array([[0, 0, 0], [0, 0, 0], [0, -0.25, 0.25], [-0.25, 0.25, 0]], dtype)
        )
        y, kept = fnn.LogSoftmax().forward((), jnp.array(rows, dtype))
        assert jnp.allclose(jnp.exp(y), shares)
        assert jnp.all(jnp.isfinite(fnn.LogSoftmax().backward((), kept, jnp.ones_like(y))[1]))


def test_softmax_refuses_an_axis_that_x_has_not():
    for make in (fnn.Softmax, fnn.LogSoftmax):
        with pytest.raises(
            ValueError, match=r"Softmax\(-3\): expected x with an axis -3, got shape"
        ):
            make(-3).forward((), jnp.ones((2, 3)))
        with pytest.raises(ValueError, match="Softmax: expected axis to be an integer"):
            make(1.5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="GELU: expected approximate 'none' or 'tanh', got 'fast'"):
        fnn.GELU("fast")
    for alpha in (-1.0, jnp.nan, "1"):
        with pytest.raises(ValueError, match="ELU: expected alpha to be a finite number >= 0"):
            fnn.ELU(alpha)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("make", [fnn.GELU, lambda: fnn.GELU("tanh"), fnn.SiLU])
def test_gated_units_of_16_bits_are_exact_far_out_too(make, dtype):
    x = jnp.linspace(-6, 6, 201).astype(dtype)
    dy = jnp.ones_like(x)
    with jax.enable_x64(True):
        results = []
        for kind in (dtype, jnp.float64):
            y, residuals = make().forward((), x.astype(kind))
            dx = make().backward((), residuals, dy.astype(kind))[1]
            results.append([a.astype(jnp.float64) for a in (y, dx)])
        for actual, exact in zip(*results, strict=True):
            error = jnp.abs(actual - exact)
            assert jnp.all(error <= float(jnp.finfo(dtype).eps) * jnp.abs(exact) + 1e-6)
