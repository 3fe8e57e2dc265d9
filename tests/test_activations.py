import functools

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
    ],
)
def test_values_at_minus_2_0_and_2(name, values, derivatives):
    layer, x = ACTIVATIONS[name], jnp.array([-2.0, 0.0, 2.0])
    assert jnp.allclose(layer.forward((), x)[0], jnp.array(values, float), rtol=1e-6)
    assert jnp.allclose(derivative(layer, x), jnp.array(derivatives, float), rtol=1e-5)


@every_activation
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_far_out_derivatives_are_their_limits(layer, dtype):
    with jax.enable_x64(True), jax.debug_nans(True):
        limits = {"ReLU": (0, 1), "LeakyReLU": (0.01, 1), "Tanh": (0, 0), "Sigmoid": (0, 0)}
        limits["LeakyReLU-slope-0"] = limits["ReLU"]
        name = next(name for name, value in ACTIVATIONS.items() if value is layer)
        for x in (1e4, jnp.inf):
            actual = derivative(layer, jnp.array([-x, x], dtype))
            assert not jnp.any(jnp.isnan(layer.forward((), jnp.array([-x, x], dtype))[0]))
            assert jnp.all(actual == jnp.array(limits[name], dtype))


@every_activation
def test_residuals_are_y_alone(layer):
    y, residuals = layer.forward((), jnp.linspace(-1, 1, 5))
    assert residuals is y


@every_activation
def test_nan_stays_nan(layer):
    assert jnp.isnan(layer.forward((), jnp.array(jnp.nan))[0])


@every_activation
def test_derivative_at_kinks_agrees_with_jax(layer):
    x = jnp.array([0.0, -0.0])
    expected = jax.vmap(jax.grad(lambda x: layer.forward((), x)[0]))(x)
    assert jnp.all(derivative(layer, x) == expected)


def test_negative_slope_may_be_traced_and_differs_across_a_vmap():
    derivatives = jax.vmap(lambda slope: derivative(fnn.LeakyReLU(slope), jnp.array(-1.0)))
    assert jnp.allclose(derivatives(jnp.array([0.1, 0.2])), jnp.array([0.1, 0.2]))


def test_params_are_the_empty_tuple():
    assert fnn.Tanh().init(jax.random.key(0)) == ()
    run = functools.partial(fnn.Tanh().forward, {"W": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"Tanh\(\): expected params of shapes \(\), got {'W'"):
        run(jnp.ones(3))
    for scalar in (3.0, jnp.float32(3)):
        with pytest.raises(ValueError, match=r"Tanh\(\): expected params of shapes \(\), got"):
            fnn.Tanh().forward(scalar, jnp.ones(3))
