"""The properties that every loss has, and the values of each."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LEADING, LOSSES, draw

import fnn

every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES.keys())
every_leading = pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING.keys())


def pass_through(loss, prediction, target):
    value, residuals = loss.forward(prediction, target)
    return value, loss.backward(residuals)


@every_loss
@every_leading
def test_backward_matches_jax_grad(make, leading):
    with jax.enable_x64(True):
        loss = make()
        prediction, target = (draw(seed, (*leading, 3), jnp.float64) for seed in (1, 2))
        expected = jax.value_and_grad(lambda p: loss.forward(p, target)[0])(prediction)
        actual = pass_through(loss, prediction, target)
        chex.assert_trees_all_close(actual, expected, rtol=1e-10)


@every_loss
def test_backward_matches_finite_differences(make):
    fnn.check_loss(make(), draw(1, (5, 3)), draw(2, (5, 3)))


@every_loss
def test_jit_vmap_and_eager_agree(make):
    loss = make()
    prediction, target = draw(1, (4, 5, 3)), draw(2, (4, 5, 3))
    many = jax.jit(jax.vmap(lambda p, t: pass_through(loss, p, t)))(prediction, target)
    each = [pass_through(loss, p, t) for p, t in zip(prediction, target, strict=True)]
    chex.assert_trees_all_close(many, jax.tree.map(lambda *a: jnp.stack(a), *each), rtol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes_are_preserved(make, dtype):
    with jax.enable_x64(True):
        value, d_prediction = pass_through(make(), draw(1, (5, 2), dtype), draw(2, (5, 2)))
        assert value.shape == ()
        assert value.dtype == d_prediction.dtype == dtype


@every_loss
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_wrong_targets_are_refused(make, wrap):
    run = wrap(lambda prediction, target: pass_through(make(), prediction, target))
    for shape in ((5,), (1, 2), (5, 1), (5, 2, 1), ()):
        with pytest.raises(ValueError, match=r"expected target of shape \(5, 2\), got"):
            run(jnp.ones((5, 2)), jnp.ones(shape))
    with pytest.raises(ValueError, match=r"expected target of shape \(5, 1\), got \(5,\)"):
        run(jnp.ones((5, 1)), jnp.ones(5))
    with pytest.raises(ValueError, match="expected target of a floating dtype, got int32"):
        run(jnp.ones((5, 2)), jnp.ones((5, 2), jnp.int32))
    with pytest.raises(ValueError, match="expected prediction of a floating dtype, got int32"):
        run(jnp.ones((5, 2), jnp.int32), jnp.ones((5, 2)))


@pytest.mark.parametrize(
    ("reduction", "scale", "derivative"), [("mean", 6, 6), ("sum", 1, 1), ("batchmean", 3, 3)]
)
def test_mse_values(reduction, scale, derivative):
    prediction = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    target = jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    value, d_prediction = pass_through(fnn.MSELoss(reduction), prediction, target)
    chex.assert_trees_all_close(value, (1 + 4 + 4 + 9 + 16 + 16) / scale)
    expected = 2 * jnp.array([[1.0, 2.0], [2.0, 3.0], [4.0, 4.0]]) / derivative
    chex.assert_trees_all_close(d_prediction, expected)


def test_mse_batchmean_of_one_example_is_its_sum():
    for shape in ((3,), (1, 3)):
        value, _ = fnn.MSELoss("batchmean").forward(jnp.ones(shape), jnp.zeros(shape))
        assert value == 3


def test_mse_in_float16_does_not_overflow_on_the_way():
    prediction = jnp.full((4, 2), 200, jnp.float16)  # the sum of squares is beyond float16
    value, _ = fnn.MSELoss().forward(prediction, jnp.zeros((4, 2), jnp.float16))
    assert value == 40000


def test_mse_derivative_in_float16_is_exact_where_its_scale_is_tiny():
    prediction = jnp.full((2000, 2000), 200, jnp.float16)
    _, d_prediction = pass_through(fnn.MSELoss(), prediction, jnp.zeros_like(prediction))
    assert jnp.allclose(d_prediction.astype(float), 2 * 200 / 4e6, rtol=1e-3)


def test_mse_refuses_a_mean_over_nothing():
    nothing = jnp.zeros((0, 2))
    assert fnn.MSELoss("sum").forward(nothing, nothing)[0] == 0
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match="expected at least one element"):
            fnn.MSELoss(reduction).forward(nothing, nothing)


def test_mse_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="expected reduction 'mean', 'sum' or 'batchmean', got"):
        fnn.MSELoss("none")
