"""Sums, indices, states and files at the edges, for every part of fnn that meets them."""

import contextlib
import types

import jax
import jax.numpy as jnp
import pytest
from shared import training

import fnn

HUGE = 3e38  # twice this is beyond float32
WRONG = 2**32 + 3  # what 32 bits take for 3


def both(function, *args):
    """function(*args), eager and compiled; they must agree."""
    eager, compiled = function(*args), jax.jit(function)(*args)
    for a, b in zip(*map(jax.tree.leaves, (eager, compiled)), strict=True):
        assert jnp.allclose(a, b, rtol=1e-5, atol=0)
    return compiled


def passes(layer, x, dy):
    params = layer.init(jax.random.key(0))
    y, residuals = layer.forward(params, x)
    return y, layer.backward(params, residuals, dy)[1]


def numpy_integers(values, dtype="int64"):
    array = jax.device_get(jnp.zeros(len(values), jnp.int32)).astype(dtype)
    array[:] = values
    return array


@pytest.mark.parametrize(
    "loss", [fnn.L1Loss(), fnn.HuberLoss(), fnn.HuberLoss(HUGE), fnn.BCEWithLogitsLoss()]
)
def test_a_mean_loss_of_huge_terms_is_finite(loss):
    def evaluate(prediction):
        value, residuals = loss.forward(prediction, jnp.zeros_like(prediction))
        return value, loss.backward(residuals)

    prediction = jnp.full(4, 1e19)
    value, d_prediction = both(evaluate, prediction)
    assert jnp.isfinite(value)
    assert jnp.isfinite(d_prediction).all()


@pytest.mark.parametrize("arguments", [(2,), (2, 1), (9,), (9, 1)], ids=str)
def test_average_pooling_of_huge_numbers_is_finite(arguments):
    x = jnp.full((9, 9, 1), HUGE)
    y = both(lambda x: fnn.AvgPool2d(*arguments).forward((), x)[0], x)
    assert jnp.allclose(y, HUGE)


@pytest.mark.parametrize("layer", [fnn.LeakyReLU(1e5), fnn.ELU(1e5)], ids=str)
def test_constants_beyond_16_bits_do_not_overflow(layer):
    x = jnp.array([-1e-3], jnp.float16)
    y, dx = both(lambda *a: passes(layer, *a), x, x)
    assert jnp.allclose(y, -100, rtol=1e-2)
    assert jnp.allclose(dx, -100, rtol=1e-2)


@pytest.mark.parametrize("which", ["b1", "b2"])
def test_adam_can_be_differentiated_by_a_decay_of_0(which):
    def last(decay):
        optimizer, p = fnn.adam(0.1, **{which: decay}), jnp.array(1.0)
        state = optimizer.init(p)
        for grad in (1.0, 0.5):
            p, state = optimizer.update(jnp.array(grad), state, p)
        return p

    with jax.enable_x64(True):
        last = jax.jit(last)
        difference = (last(1e-7) - last(0.0)) / 1e-7
        assert jax.grad(last)(0.0).item() == pytest.approx(difference.item(), rel=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [fnn.remat, lambda layer: fnn.with_compute_dtype(layer, jnp.float16), fnn.per_example],
    ids=["remat", "with_compute_dtype", "per_example"],
)
def test_transforms_do_not_cut_64_bit_indices(wrap):
    layer = wrap(fnn.Embedding(5, 2))
    y, _ = layer.forward(layer.init(jax.random.key(0)), numpy_integers([WRONG, 1]))
    assert jnp.isnan(y).all(axis=-1).tolist() == [True, False]


def test_placing_and_predicting_do_not_cut_64_bit_indices():
    model, indices = fnn.Embedding(5, 2), numpy_integers([WRONG, 1])
    params = model.init(jax.random.key(0))
    mesh = fnn.data_parallel_mesh(jax.devices("cpu")[:1])
    for place in (fnn.shard_batch, fnn.replicate):
        assert (place(mesh, indices) == 3).tolist() == [False, False]
    y = fnn.predict(model, params, indices, batch_size=1)
    assert jnp.isnan(y).all(axis=-1).tolist() == [True, False]
    for entries in ([indices[0]], [numpy_integers([WRONG], "uint64")[0], 1]):
        assert jnp.isnan(model.forward(params, entries)[0][0]).all()


def test_what_was_kept_does_not_change_with_the_callers_memory():
    values = [1.0, 2.0]
    schedule = fnn.piecewise_constant([10], values)
    values[0] = 9.0
    assert schedule(0) == 1
    weights = jax.device_get(jnp.zeros((1024, 64))).copy()
    model = fnn.Identity()._replace(init=lambda key: weights)
    state = fnn.init_train_state(model, fnn.sgd(0.1), jax.random.key(0))
    weights[:] = 1
    assert not jnp.any(state.params)


def test_a_loss_whose_derivative_has_another_shape_is_refused():
    for wrong in (lambda d: d[:, :1], jnp.sum, lambda d: d[None]):
        loss = fnn.MSELoss()._replace(backward=wrong)
        with pytest.raises(ValueError, match=r"expected d_prediction of shape \(4, 3\)"):
            fnn.loss_and_grads(fnn.Identity(), loss)((), jnp.ones((4, 3)), jnp.ones((4, 3)))


def test_columns_may_be_an_iterator():
    def run_epoch(state, number):
        return state, jnp.ones(1), iter([0.5])

    *_, last = fnn.run_epochs(run_epoch, {"p": 1.0}, 2, iter(["accuracy"]))
    assert last.history == [{"accuracy": 0.5}] * 2


def test_a_state_that_is_none_is_named():
    step = fnn.make_train_step(fnn.Linear(2, 2), fnn.MSELoss(), fnn.sgd(0.1))
    for state in (None, {"W": jnp.ones((2, 2))}, (1.0, 2.0)):
        with pytest.raises(ValueError, match="expected a TrainState first, got a"):
            step(state, jnp.ones((1, 2)), jnp.ones((1, 2)))


def test_a_forged_table_of_a_checkpoint_is_refused(tmp_path):
    path, state = tmp_path / "run.npz", jnp.ones(2)
    for value in (float("nan"), float("inf")):
        fnn.save(path, state, note={"settings": None, "table": [[value]]})
        with pytest.raises(ValueError, match="expected a row of 1 numbers"):
            fnn.load_checkpoint(path, state, 1, ["loss"])
    fnn.save(path, state, note={"settings": {"a\x1b[31m": "\x1b[32m"}, "table": []})
    with pytest.raises(ValueError) as info:  # noqa: PT011
        fnn.load_checkpoint(path, state, 1, ["loss"])
    assert "\x1b" not in str(info.value)


def test_an_error_brings_a_hidden_checkpoint_back(tmp_path):
    options = types.SimpleNamespace(output=tmp_path, resume=False)
    path = tmp_path / training.CHECKPOINT
    path.write_text("older")
    with contextlib.suppress(OSError), training.older_checkpoint_hidden(options):
        assert not path.exists()
        raise OSError
    assert path.read_text() == "older"
    with training.older_checkpoint_hidden(options):
        pass  # as if the process were killed here
    assert not path.exists()
    with fnn.files.sole_use(tmp_path):
        assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


def test_a_note_nested_too_deep_is_refused(tmp_path):
    note = []
    for _ in range(100_000):
        note = [note]
    with pytest.raises(ValueError, match="nested too deep"):
        fnn.save(tmp_path / "file.npz", jnp.ones(1), note=note)
