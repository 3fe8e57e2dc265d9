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


def test_a_mean_of_squares_overflows_only_if_the_mean_does():
    def evaluate(prediction):
        value, residuals = fnn.MSELoss().forward(prediction, -prediction)
        return value, fnn.MSELoss().backward(residuals)[0]

    value, slope = both(evaluate, jnp.zeros(1000).at[0].set(1e19))
    assert value == pytest.approx(4e35)
    assert slope == pytest.approx(4e16)
    assert both(evaluate, jnp.zeros(1000).at[0].set(HUGE))[1] == pytest.approx(1.2e36)


@pytest.mark.parametrize("arguments", [(2,), (2, 1), (9,), (9, 1)], ids=str)
def test_average_pooling_of_huge_numbers_is_finite(arguments):
    x = jnp.full((9, 9, 1), HUGE)
    y = both(lambda x: fnn.AvgPool2d(*arguments).forward((), x)[0], x)
    assert jnp.allclose(y, HUGE)


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
def test_norms_of_the_largest_numbers_are_those_of_1(make):
    """Neither differences nor sums overflow, and no reciprocal is taken for 0."""
    x, dy = jnp.array([3.0, -3.0, -3.0, 1.0]), jnp.array([1.0, 2.0, -3.0, 0.5])
    with jax.enable_x64(True):
        y, dx = (a.astype(jnp.float32) for a in passes(make(4, 0.0), *(x.astype(float), dy)))
    assert jnp.allclose(both(lambda *a: passes(make(4), *a), 1e38 * x, dy)[0], y, rtol=1e-5)
    large = both(lambda *a: passes(make(4, 0.0), *a), x, 1e38 * dy)[1]
    assert jnp.allclose(large, 1e38 * dx, rtol=1e-4, atol=1e32)


def test_layer_norm_of_equal_huge_numbers_is_0():
    for value in (1e20, HUGE):
        y, dx = both(lambda *a: passes(fnn.LayerNorm(4), *a), jnp.full(4, value), jnp.ones(4))
        assert not jnp.any(y)
        assert jnp.allclose(dx, 0)


def test_softmax_of_huge_derivatives_is_finite():
    x, dy = jnp.array([0.0, 2.0]), jnp.array([HUGE, -HUGE])
    assert jnp.isfinite(both(lambda *a: passes(fnn.Softmax(), *a), x, dy)[1]).all()


def test_clipping_bounds_norms_beyond_the_largest_number():
    grads = [jnp.array([HUGE, HUGE]), jnp.array([1.0])]
    sgd = fnn.clip_by_global_norm(fnn.sgd(1.0), 1.0)

    def update(grads):
        return sgd.update(grads, sgd.init(grads), jax.tree.map(jnp.zeros_like, grads))[0]

    assert jnp.allclose(both(update, grads)[0], -(0.5**0.5))
    clipped = fnn.clip_gradient(fnn.Identity(), 1.0).backward
    dx = both(lambda dy: clipped((), (), dy)[1], jnp.full((2, 4), HUGE))
    assert jnp.allclose(dx, 0.5)


def test_squared_norms_do_not_overflow_on_the_way():
    params = fnn.Linear(2, 1).init(jax.random.key(0))
    x, dy = jnp.array([[1e20, 1e20], [0.0, 0.0]]), jnp.array([[1e-20], [1.0]])
    grads, _ = both(lambda *a: fnn.linear_squared_norms(params, *a), x, dy)
    assert jnp.allclose(grads["W"], jnp.array([2.0, 0.0]))


def test_parts_of_huge_gradients_have_a_finite_mean():
    def loss_and_grads(params, x, target):
        return jnp.float32(HUGE), jnp.full(2, HUGE)

    value, grads = fnn.accumulate_gradients(loss_and_grads, 4)(
        jnp.ones(2), jnp.ones(4), jnp.ones(4)
    )
    assert value == pytest.approx(HUGE)
    assert jnp.allclose(grads, HUGE)


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


@pytest.mark.parametrize("step", [2**31, 2**40, numpy_integers([2**40])[0], jnp.uint32(2**32 - 1)])
def test_a_schedule_ends_where_steps_are_beyond_32_bits(step):
    assert fnn.piecewise_constant([10], [1.0, 2.0])(step) == 2


def test_a_counter_of_few_bits_stays_at_its_largest():
    optimizer, p = fnn.sgd(0.1), jnp.array(1.0)
    state = optimizer.init(p)._replace(step=jnp.array(127, jnp.int8))
    assert optimizer.update(p, state, p)[1].step == 127
    assert optimizer.update(p, state._replace(step=1), p)[1].step == 2


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
