"""BatchNorm in both modes, and calibrate, which gives it the statistics of the data."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw
from jax.sharding import AxisType

import fnn

KEY = jax.random.key(0)
mse = fnn.MSELoss()
x, target = 3 * draw(1, (40, 3)) + 1, draw(2, (40, 2))


def make_model():
    block = fnn.Sequential(fnn.Linear(4, 4), fnn.BatchNorm(4), fnn.Tanh(), fnn.Dropout(0.0))
    return fnn.Sequential(
        fnn.Linear(3, 4),
        fnn.BatchNorm(4),
        fnn.repeat(fnn.Residual(fnn.remat(block)), 2),
        fnn.Parallel(fnn.freeze(fnn.BatchNorm(4)), fnn.Identity(), combine="sum"),
        fnn.Linear(4, 2),
    )


model = make_model()
params = model.init(KEY)
calibrate = jax.jit(functools.partial(fnn.calibrate, model), static_argnames="batch_size")


def statistics(tree):
    """The leaves called mean or var."""
    leaves = jax.tree.leaves_with_path(tree)
    return [leaf for path, leaf in leaves if re.search("mean|var", str(path[-1]))]


def test_training_mode_standardises_each_channel_over_all_other_axes():
    layer, images = fnn.BatchNorm(3), 3 + 5 * draw(1, (4, 6, 5, 3))
    given = {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, 0.5), "mean": x[0], "var": x[1]}
    y, _ = layer.forward(given, images, KEY)
    assert jnp.allclose(y.mean(axis=(0, 1, 2)), 0.5, atol=1e-5)
    assert jnp.allclose(y.var(axis=(0, 1, 2)), 4, atol=1e-4)


def test_evaluation_mode_treats_each_example_by_itself():
    layer, given = fnn.BatchNorm(3, 0.0), fnn.BatchNorm(3).init(KEY)
    given |= {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 1.0, 0.25])}
    y, residuals = layer.forward(given, jnp.array([3.0, 2.0, 2.0]))
    assert y.tolist() == [1, 0, -2]
    assert len(jax.tree.leaves(residuals)) == 1
    grads, _ = layer.backward(given, residuals, jnp.ones(3))
    assert not grads["mean"].any()
    assert not grads["var"].any()


def test_a_channel_needs_two_numbers_in_training():
    layer = fnn.BatchNorm(3)
    for shape in ((3,), (1, 3), (0, 3), (1, 1, 1, 3)):
        message = r"BatchNorm\(3\): expected x with at least two numbers for each channel"
        with pytest.raises(ValueError, match=message):
            layer.forward(layer.init(KEY), jnp.ones(shape), KEY)
    layer.forward(layer.init(KEY), jnp.ones((1, 2, 1, 3)), KEY)


def test_huge_numbers_do_not_overflow_in_training():
    layer, scale = fnn.BatchNorm(2), 1e25
    given, numbers, dy = layer.init(KEY), draw(1, (8, 2)), draw(2, (8, 2))

    def passes(numbers):
        y, residuals = layer.forward(given, numbers, KEY)
        return y, layer.backward(given, residuals, dy)

    (y, (grads, dx)), (huge, (huge_grads, huge_dx)) = map(passes, (numbers, scale * numbers))
    chex.assert_trees_all_close((huge, huge_grads), (y, grads), rtol=1e-4, atol=1e-4)
    assert jnp.allclose(scale * huge_dx, dx, rtol=1e-4, atol=1e-4)


def test_after_calibration_evaluation_is_training_on_the_same_data():
    calibrated = calibrate(params, x)
    in_training, _ = model.forward(params, x, KEY)
    assert jnp.allclose(fnn.predict(model, calibrated, x), in_training, atol=1e-5)
    assert not jnp.allclose(fnn.predict(model, params, x), in_training, atol=1e-2)
    others = jax.tree.map(lambda leaf: leaf, calibrated)
    chex.assert_trees_all_equal_shapes_and_dtypes(others, params)
    num_changed = sum(
        bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (params, others)), strict=True)
    )
    assert num_changed == len(statistics(params)) == 6


def test_calibration_in_batches_is_that_of_the_whole():
    chex.assert_trees_all_close(
        calibrate(params, x, batch_size=7), calibrate(params, x), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="expected batch_size to be an integer"):
        fnn.calibrate(model, params, x, batch_size=0)
    with pytest.raises(ValueError, match="calibrate: expected a Layer"):
        fnn.calibrate(params, params, x)


def test_calibration_measures_under_other_precisions_too():
    low = fnn.with_compute_dtype(model, jnp.bfloat16)
    chex.assert_trees_all_equal(jax.jit(functools.partial(fnn.calibrate, low))(params, x),
                                calibrate(params, x))  # fmt: skip
    measured = calibrate(params, x.astype(jnp.bfloat16))
    chex.assert_trees_all_equal_shapes_and_dtypes(measured, params)
    chex.assert_trees_all_close(measured, calibrate(params, x), rtol=0.05, atol=0.05)


def test_weight_decay_and_momentum_leave_the_statistics_alone():
    for optimizer in (fnn.sgd(0.1, 0.9, weight_decay=0.1), fnn.adam(0.1, weight_decay=0.1)):
        state = fnn.init_train_state(model, optimizer, KEY)._replace(params=calibrate(params, x))
        step = fnn.make_train_step(model, mse, optimizer)
        after, _ = step(state, x, target, KEY)
        after, _ = step(after, x, target, KEY)
        chex.assert_trees_all_equal(statistics(after.params), statistics(state.params))
        assert jnp.any(after.params[1]["scale"] != state.params[1]["scale"])


def test_layers_that_couple_examples_have_no_per_example_gradients():
    with pytest.raises(ValueError, match=r"per_example: expected each .* got BatchNorm\(4\)"):
        fnn.per_example(model)
    assert model.couples_examples
    assert not fnn.Linear(2, 3).couples_examples
    assert fnn.observe(model, print).couples_examples
    assert not fnn.BatchNorm(2)._replace(forward=fnn.Tanh().forward).couples_examples


def test_check_layer_accepts_statistics_that_are_not_learned():
    fnn.check_layer(fnn.BatchNorm(3), draw(1, (4, 3)), KEY)
    layer = fnn.BatchNorm(3)

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, dy)
        return {**grads, "mean": grads["bias"]}, dx

    with pytest.raises(AssertionError, match=r"mean'\] disagrees"):
        fnn.check_layer(layer._replace(backward=backward), draw(1, (4, 3)), KEY)


def test_fit_evaluates_and_returns_calibrated_params():
    small = fnn.Sequential(fnn.Linear(3, 4), fnn.BatchNorm(4), fnn.Tanh(), fnn.Linear(4, 2))
    options = {"epochs": 2, "batch_size": 8, "key": KEY, "progress": False}
    result = fnn.fit(small, mse, fnn.sgd(0.1), x, target, **options)
    expected = fnn.calibrate(small, result.state.params, x)
    chex.assert_trees_all_close(result.params, expected, rtol=1e-5, atol=1e-6)
    held_out = draw(3, (10, 3)), draw(4, (10, 2))
    result = fnn.fit(
        small, mse, fnn.sgd(0.1), x, target, validation=held_out, restore_best=False, **options
    )
    value, _ = mse.forward(fnn.predict(small, expected, held_out[0]), held_out[1])
    assert result.history[-1]["validation_loss"] == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_normalizes_by_the_whole_batch(axis_type):
    small, optimizer = fnn.Sequential(fnn.Linear(3, 2), fnn.BatchNorm(2)), fnn.sgd(0.1)
    state = fnn.init_train_state(small, optimizer, KEY)
    step = fnn.make_train_step(small, mse, optimizer)
    devices = jax.devices("cpu")[:4]
    mesh = jax.make_mesh((4,), ("data",), (axis_type,), devices=devices)
    placed = fnn.replicate(mesh, state), *fnn.shard_batch(mesh, (x, target))
    with jax.default_device(devices[0]):
        expected = step(state, x, target, KEY)
    chex.assert_trees_all_close(
        step(*placed, fnn.replicate(mesh, KEY)), expected, rtol=1e-5, atol=1e-6
    )


def test_calibration_changes_no_other_parameter_whatever_a_transform_does_to_grads():
    def doubled(layer):
        def backward(params, residuals, dy):
            grads, dx = layer.backward(params, residuals, dy)
            return jax.tree.map(lambda leaf: 2 * leaf, grads), dx

        return fnn.layer.transformed(layer, doubled, backward=backward)

    plain = fnn.Sequential(fnn.Linear(3, 3), fnn.BatchNorm(3))
    given = plain.init(KEY)
    expected = fnn.calibrate(plain, given, x)
    for wrap in (doubled, fnn.freeze, fnn.per_example):
        wrapped = fnn.Sequential(wrap(fnn.Linear(3, 3)), fnn.BatchNorm(3))
        chex.assert_trees_all_equal(fnn.calibrate(wrapped, given, x), expected)
    hidden = plain._replace(backward=plain.backward)
    with pytest.raises(ValueError, match="calibrate: expected a BatchNorm at '', got Sequential"):
        fnn.calibrate(hidden, given, x)


def test_a_variance_beyond_float16_is_kept():
    numbers = 400 * draw(1, (100, 1))
    for layer in (
        fnn.with_compute_dtype(fnn.BatchNorm(1), jnp.float16),
        fnn.BatchNorm(1, dtype=jnp.float16),
    ):
        measured = fnn.calibrate(layer, layer.init(KEY), numbers)
        assert measured["var"] > 1e5
        y, in_training = (layer.forward(measured, numbers, key)[0] for key in (None, KEY))
        assert jnp.allclose(y, in_training, atol=2e-3)


def test_a_key_that_is_none_of_jaxs_is_refused():
    with pytest.raises(ValueError, match=r"BatchNorm\(3\): expected a key such as"):
        fnn.BatchNorm(3).forward(fnn.BatchNorm(3).init(KEY), x, False)
