import functools
import math

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

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
# Each with its limits: y for x = -inf and inf, and there dx for dy = 1.
S, SA = 1.0507009873554805, 1.7580993408473766
WITH_LIMITS = {
    "SELU": (fnn.SELU(), [-SA, math.inf], [0, S]),
    "CELU": (fnn.CELU(2.0), [-2, math.inf], [0, 1]),
    "ReLU6": (fnn.ReLU6(), [0, 6], [0, 0]),
    "Hardtanh": (fnn.Hardtanh(-0.5, 3.0), [-0.5, 3], [0, 0]),
    "Hardsigmoid": (fnn.Hardsigmoid(), [0, 1], [0, 0]),
    "Hardswish": (fnn.Hardswish(), [0, math.inf], [0, 1]),
    "Mish": (fnn.Mish(), [0, math.inf], [0, 1]),
    "Softsign": (fnn.Softsign(), [-1, 1], [0, 0]),
    "LogSigmoid": (fnn.LogSigmoid(), [-math.inf, 0], [1, 0]),
    "Threshold": (fnn.Threshold(-0.25, 2.0), [2, math.inf], [0, 1]),
    "PReLU": (fnn.PReLU(), [-math.inf, math.inf], [0.25, 1]),
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_limits_kinks_and_nan_are_the_same_eager_jitted_and_in_16_bits(dtype):
    def passes(x):
        results = []
        for layer, *_ in WITH_LIMITS.values():
            params = jax.tree.map(
                lambda leaf: jnp.full(leaf.shape, 0.25), layer.init(jax.random.key(0))
            )
            y, residuals = layer.forward(params, x)
            results.append((y, layer.backward(params, residuals, jnp.ones_like(x))[1]))
        return results

    with jax.enable_x64(True):
        kinks = [0.0, -0.0, 3, -3, 6, 0.5, -0.5, -0.25, 1, -1, 9, -9]
        x = jnp.array([-math.inf, math.inf, math.nan, 1e4, -1e4, *kinks], dtype)
        eps = float(jnp.finfo(dtype).eps)
        compiled = jax.device_get(jax.jit(passes)(x))
        chex.assert_trees_all_close(compiled, jax.device_get(passes(x)), rtol=2 * eps, atol=eps)
        exact = jax.device_get(jax.jit(passes)(x.astype(float)))
        rounded = jax.tree.map(lambda leaf: leaf.astype(float), compiled)
        chex.assert_trees_all_close(rounded, exact, rtol=2 * eps, atol=2 * eps)
    for (y, dx), (_, limits, slopes) in zip(exact, WITH_LIMITS.values(), strict=True):
        assert y[:2].tolist() == pytest.approx(limits, rel=1e-12)
        assert dx[:2].tolist() == pytest.approx(slopes, rel=1e-12, abs=1e-15)
        assert (y != y).tolist() == [index == 2 for index in range(len(y))]
        assert not (dx != dx)[[0, 1, *range(3, len(y))]].any()


def test_residuals_of_the_newer_ones_are_y_or_x_or_a_byte():
    x = jnp.linspace(-1, 1, 5)
    for name, (layer, *_) in WITH_LIMITS.items():
        y, residuals = layer.forward(layer.init(jax.random.key(0)), x)
        if name == "Threshold":
            assert [leaf.nbytes for leaf in jax.tree.leaves(residuals)] == [5]
        else:
            assert residuals is (x if name in ("Hardswish", "Mish", "PReLU") else y)


def test_no_nan_is_made_far_out():
    x = jnp.array([math.inf, -math.inf, 1e4, -1e4], jnp.float16)
    with jax.debug_nans(True):
        for layer, *_ in WITH_LIMITS.values():
            params = layer.init(jax.random.key(0))
            _, residuals = layer.forward(params, x)
            layer.backward(params, residuals, jnp.ones_like(x))


@pytest.mark.parametrize("slope", [0.25, -2.0])
def test_a_prelus_slope_is_that_of_its_channel_below_0(slope):
    layer, x = fnn.PReLU(2, slope), jnp.array([[1.0, -2.0], [-3.0, -4.0], [0.0, 5.0]])
    params = layer.init(jax.random.key(0))
    y, residuals = layer.forward(params, x)
    grads, dx = layer.backward(params, residuals, 2 * jnp.ones_like(x))
    assert y.tolist() == [[1, -2 * slope], [-3 * slope, -4 * slope], [0, 5]]
    assert dx.tolist() == [[2, 2 * slope], [2 * slope, 2 * slope], [2 * slope, 2]]
    assert grads["W"].tolist() == [-6, -12]
    shared = fnn.PReLU(init=slope)
    params = shared.init(jax.random.key(0))
    y_shared, residuals = shared.forward(params, x)
    assert (y_shared == y).all()
    assert shared.backward(params, residuals, 2 * jnp.ones_like(x))[0]["W"].tolist() == [-18]
    assert shared.forward(params, jnp.array(-1.0))[0] == -slope


def test_glu_is_one_half_times_the_sigmoid_of_the_other():
    layer, x, dy = fnn.GLU(-2), draw(1, (5, 4, 3)), draw(2, (5, 2, 3))
    y, residuals = layer.forward((), x)
    a, s = x[:, :2], jax.nn.sigmoid(x[:, 2:])
    chex.assert_trees_all_close(y, a * s, rtol=1e-6)
    assert residuals[0] is y
    assert residuals[1].shape == y.shape
    expected = jnp.concatenate([dy * s, dy * a * s * (1 - s)], 1)
    chex.assert_trees_all_close(layer.backward((), residuals, dy)[1], expected, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"GLU\(-1\): expected x of an even length at -1, got \(5,"
    ):
        fnn.GLU().forward((), x)
    with pytest.raises(ValueError, match=r"GLU\(3\): expected x with an axis 3, got shape \(5,"):
        fnn.GLU(3).forward((), x)


def test_glu_of_large_numbers_is_its_limit():
    x = jnp.array([[1e4, 1e4, -math.inf, 3, 3], [1e4, -1e4, 0, math.inf, -math.inf]], "float16")
    with jax.debug_nans(True):
        y, residuals = fnn.GLU(0).forward((), x)
        dx = fnn.GLU(0).backward((), residuals, jnp.ones_like(y))[1]
    assert y.tolist() == [[1e4, 0, -math.inf, 3, 0]]
    assert dx.tolist() == [[1, 0, 0.5, 1, 0], [0, 0, -math.inf, 0, 0]]


def test_maxout_takes_the_largest_of_neighbours_and_the_first_of_equal_ones():
    layer = fnn.Maxout(3)
    x = jnp.array([1, 3, 2, 5, 5, 4, -jnp.inf, -jnp.inf, -jnp.inf, jnp.nan, 9, jnp.nan])
    y, residuals = layer.forward((), x)
    assert y[:3].tolist() == [3, 5, -math.inf]
    assert jnp.isnan(y[3])
    dx = layer.backward((), residuals, jnp.array([1.0, 2.0, 3.0, 4.0]))[1]
    assert dx.tolist() == [0, 1, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0]
    for pieces, num_bytes in ((256, 1), (257, 4)):
        layer, x = fnn.Maxout(pieces), draw(1, (2 * pieces,)).at[-1].set(9)
        y, residuals = layer.forward((), x)
        assert [leaf.nbytes for leaf in jax.tree.leaves(residuals)] == [2 * num_bytes]
        assert layer.backward((), residuals, jnp.ones(2))[1][-1] == 1
    with pytest.raises(
        ValueError, match=r"Maxout\(3\): expected x of shape \(..., 3 \* n\), got \(2, 4"
    ):
        fnn.Maxout(3).forward((), jnp.ones((2, 4)))


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
    for make, message in (
        (lambda: fnn.CELU(0.0), "CELU: expected alpha to be a finite number above 0, got 0.0"),
        (lambda: fnn.Hardtanh(2.0), "Hardtanh: expected low < high, got 2.0 and 1.0"),
        (lambda: fnn.Hardtanh("0"), "Hardtanh: expected low to be a finite number, got '0'"),
        (lambda: fnn.Threshold(0, math.inf), "expected value to be a finite number, got inf"),
        (lambda: fnn.PReLU(0), "PReLU: expected num_parameters to be an integer >= 1, got 0"),
        (lambda: fnn.PReLU(2, None), "PReLU: expected init to be a finite number, got None"),
        (lambda: fnn.GLU(0.5), "GLU: expected axis to be an integer, got 0.5"),
        (lambda: fnn.Maxout(0), "Maxout: expected pieces to be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


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


@pytest.mark.parametrize("alpha", [1e-46, 1e-40])
def test_an_alpha_below_the_numbers_of_float32_gives_no_nan(alpha):
    layer, x = fnn.CELU(alpha), jnp.array([-1.0, 0.0, 1.0])
    y, residuals = layer.forward((), x)
    assert jnp.allclose(y, jnp.array([0.0, 0.0, 1.0]))
    assert jnp.all(jnp.isfinite(layer.backward((), residuals, x)[1]))
