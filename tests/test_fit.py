"""fit: a training in one call, its pieces, its checkpoints and its errors."""

import functools
import signal
import sys
import threading
import time

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

KEY = jax.random.key(0)
mse = fnn.MSELoss()
model = fnn.Sequential(fnn.Linear(3, 8), fnn.Tanh(), fnn.Linear(8, 2))
x, target = draw(1, (23, 3)), draw(2, (23, 2))
held_out = draw(3, (7, 3)), draw(4, (7, 2))
run = functools.partial(
    fnn.fit, model, mse, fnn.sgd(0.1), x, target, epochs=4, batch_size=5, key=KEY, progress=False
)


def by_hand(model, loss, optimizer, epochs):
    """The training as fit's docstring describes it: the states after each epoch."""
    _, init_key, epoch_key = jax.random.split(KEY, 3)
    state = fnn.init_train_state(model, optimizer, init_key)
    epoch = fnn.make_train_epoch(model, loss, optimizer, 5)
    for number in range(1, epochs + 1):
        state, losses = epoch(state, x, target, jax.random.fold_in(epoch_key, number))
        yield state, losses


def test_fit_is_the_loop_that_its_docstring_describes():
    metrics = {"error": fnn.mean_absolute_error}
    result = run(validation=held_out, metrics=metrics, restore_best=False)
    evaluate = jax.jit(lambda params, x: fnn.predict(model, params, x))
    states = [*by_hand(model, mse, fnn.sgd(0.1), 4)]
    for row, (state, losses) in zip(result.history, states, strict=True):
        prediction = evaluate(state.params, held_out[0])
        mean = (5 * losses[:4].sum() + 3 * losses[4]) / 23
        assert row["train_loss"] == pytest.approx(float(mean), rel=1e-5)
        value, _ = mse.forward(prediction, held_out[1])
        assert row["validation_loss"] == pytest.approx(float(value), rel=1e-5)
        error = fnn.mean_absolute_error(prediction, held_out[1])
        assert row["validation_error"] == pytest.approx(float(error), rel=1e-5)
    chex.assert_trees_all_close(result.state, states[-1][0], rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(result.params, result.state.params)


def test_without_validation_a_metric_is_that_of_the_training_examples():
    result = run(metrics={"error": fnn.mean_absolute_error}, epochs=2)
    assert [[*row] for row in result.history] == [["train_loss", "train_error"]] * 2
    error = fnn.mean_absolute_error(fnn.predict(model, result.params, x), target)
    assert result.history[-1]["train_error"] == pytest.approx(float(error), rel=1e-5)


def test_the_optimizer_may_be_told_the_number_of_steps():
    told = []

    def make(steps):
        told.append(steps)
        return fnn.adam(fnn.cosine_decay(0.01, steps))

    by_name = fnn.fit(model, mse, make, x, target, epochs=3, batch_size=5, key=KEY, progress=False)
    assert told == [15]
    assert by_name.state.opt_state.step == 15


def test_a_fraction_is_held_out_by_split():
    split_key, *_ = jax.random.split(KEY, 3)
    (part_x, part_target), validation = fnn.split(split_key, x, target, fraction=0.3)
    expected = fnn.fit(
        model, mse, fnn.sgd(0.1), part_x, part_target, epochs=2, batch_size=5, key=KEY,
        validation=validation, progress=False,
    )  # fmt: skip
    chex.assert_trees_all_equal(run(validation=0.3, epochs=2), expected)


def pull_to(value):
    """A model of one parameter, a loss, and data that pull it to `value`, and beyond after that."""
    one = fnn.Linear(1, 1, bias=False, weight_init=jax.nn.initializers.zeros)
    return one, mse, fnn.sgd(0.02), jnp.ones((4, 1)), jnp.full((4, 1), value)


def test_the_best_parameters_come_back_and_patience_stops(tmp_path):
    one, *others = pull_to(5.0)
    validation = jnp.ones((2, 1)), jnp.full((2, 1), 2.0)
    options = {"epochs": 50, "batch_size": 4, "key": KEY, "progress": False}
    options |= {"validation": validation}
    result = fnn.fit(one, *others, **options, patience=3)
    losses = [row["validation_loss"] for row in result.history]
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 4
    value, _ = mse.forward(fnn.predict(one, result.params, validation[0]), validation[1])
    assert float(value) == pytest.approx(min(losses), rel=1e-6)
    assert result.state.params["W"] > result.params["W"]
    path = tmp_path / "run.npz"
    options |= {"checkpoint": path, "checkpoint_every": 99}
    last = fnn.fit(one, *others, **options, patience=3, restore_best=False)
    assert len(fnn.read_note(path)["table"]) == len(losses)
    chex.assert_trees_all_equal(last.params, result.state.params)
    assert len(fnn.fit(one, *others, **options).history) == 50


def test_of_equally_good_epochs_the_first_is_the_best():
    def forward(prediction, target):
        return jnp.zeros(()), jnp.ones_like(prediction)

    loss = fnn.Loss(forward, lambda dy: dy)  # always 0, but the parameters move
    options = {"batch_size": 5, "key": KEY, "validation": held_out, "progress": False}
    one, three = (
        fnn.fit(model, loss, fnn.sgd(0.1), x, target, epochs=epochs, **options) for epochs in (1, 3)
    )
    assert [row["validation_loss"] for row in three.history] == [0, 0, 0]
    chex.assert_trees_all_equal(three.params, one.params)
    assert (three.state.params[0]["W"] != one.params[0]["W"]).any()


@pytest.mark.parametrize("stops_at", [1, 4, 7])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(stops_at, tmp_path):
    one, *others = pull_to(5.0)
    options = {"epochs": 50, "batch_size": 3, "key": KEY, "progress": False, "patience": 3}
    options |= {"validation": (jnp.ones((2, 1)), jnp.full((2, 1), 2.0))}
    expected = fnn.fit(one, *others, **options)
    assert len(expected.history) > 7

    def stop(epoch):
        if epoch.number == stops_at:
            raise RuntimeError

    options |= {"checkpoint": tmp_path / "run.npz", "resume": True}
    with pytest.raises(RuntimeError):
        fnn.fit(one, *others, **options, callback=stop)
    numbers = []
    result = fnn.fit(one, *others, **options, callback=lambda epoch: numbers.append(epoch.number))
    chex.assert_trees_all_equal(result, expected)
    assert numbers == [*range(stops_at + 1, len(expected.history) + 1)]
    chex.assert_trees_all_equal(fnn.fit(one, *others, **options, callback=stop), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, "is from a run with batch size 5, not 6"),
        ({"key": jax.random.key(1)}, "is from a run with key "),
        ({"x": x + 1}, "is from a run with data checksum "),
        (
            {"metrics": {"error": fnn.mean_absolute_error}},
            r"expected \[.train_loss., .train_error.\]",
        ),
        ({"optimizer": fnn.sgd}, "expected an Optimizer such as fnn.sgd"),
    ],
)
def test_another_run_is_not_resumed(change, message, tmp_path):
    path = tmp_path / "run.npz"
    run(epochs=1, checkpoint=path)
    given = {"optimizer": fnn.sgd(0.1), "x": x, "batch_size": 5, "key": KEY, **change}
    with pytest.raises(ValueError, match=message):
        fnn.fit(
            model, mse, target=target, **given, epochs=2, progress=False, checkpoint=path,
            resume=True,
        )  # fmt: skip


def test_a_run_can_be_made_longer_unless_the_steps_decide(tmp_path):
    path = tmp_path / "run.npz"
    run(epochs=2, checkpoint=path)
    chex.assert_trees_all_equal(run(epochs=4, checkpoint=path, resume=True), run(epochs=4))
    scheduled = functools.partial(
        fnn.fit, model, mse, lambda steps: fnn.sgd(fnn.cosine_decay(0.1, steps)), x, target,
        batch_size=5, key=KEY, progress=False, checkpoint=path,
    )  # fmt: skip
    scheduled(epochs=2)
    with pytest.raises(ValueError, match="is from a run with steps 10, not 20"):
        scheduled(epochs=4, resume=True)


def interrupt(epoch):
    if epoch.number == 2:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)  # another thread hears it


def test_ctrl_c_with_a_checkpoint_stores_the_epoch_and_is_told(tmp_path, capsys):
    path = tmp_path / "run.npz"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(fnn.Interrupted, match="interrupted in epoch ") as caught:
        run(epochs=99, checkpoint=path, checkpoint_every=100, callback=interrupt)
    assert caught.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert "finishing this epoch" in capsys.readouterr().err
    assert 2 < len(fnn.read_note(path)["table"]) < 99
    resumed = run(epochs=99, checkpoint=path, resume=True)
    chex.assert_trees_all_equal(resumed, run(epochs=99))


def test_ctrl_c_without_a_checkpoint_is_pythons():
    with pytest.raises(KeyboardInterrupt):
        run(callback=interrupt)


def test_fit_runs_in_another_thread_too(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(checkpoint=tmp_path / "a.npz")))
    thread.start()
    thread.join()
    chex.assert_trees_all_equal(results, [run()])


def test_the_callback_sees_every_epoch():
    epochs = []
    result = run(validation=held_out, callback=epochs.append)
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    chex.assert_trees_all_equal(epochs[-1].state, result.state)
    assert epochs[-1].history is result.history


def test_progress_is_shown_in_columns_or_not_at_all(capsys):
    run(epochs=10, progress=False)
    assert capsys.readouterr().out == ""
    run(epochs=10, progress=True, metrics={"error": fnn.mean_absolute_error})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("epoch  1/10  train loss ")
    assert len({line.index("train error") for line in lines}) == 1
    one, *others = pull_to(5.0)
    validation = jnp.ones((2, 1)), jnp.full((2, 1), 2.0)
    result = fnn.fit(
        one, *others, epochs=50, batch_size=4, key=KEY, validation=validation, patience=3
    )
    stopped = f"the validation loss was lowest after epoch {len(result.history) - 3}"
    assert capsys.readouterr().out.endswith(f"stopped: {stopped}\n")


def test_numbers_that_are_not_finite_stop_with_the_layers_name():
    inner = fnn.Linear(8, 2)

    def forward(params, x, key=None):
        y, kept = inner.forward(params, x)
        return jnp.where(jnp.any(x > 0.9), jnp.inf, 1.0) * y, kept

    broken = fnn.Sequential(fnn.Linear(3, 8), fnn.Tanh(), inner._replace(forward=forward))
    with pytest.raises(fnn.NotFiniteError, match=r"first met: layer 2 Linear\(8, 2\), forward"):
        fnn.fit(
            broken, mse, fnn.sgd(0.1), 100 * x, target, epochs=4, batch_size=5, key=KEY,
            progress=False,
        )  # fmt: skip


def test_everything_is_compiled_once():
    traces = []

    def metric(prediction, target):
        traces.append(prediction.shape)
        return jnp.mean(prediction)

    run(epochs=5, validation=held_out, metrics={"mean": metric})
    assert traces == [(7, 2)]


def test_validation_in_batches_weighs_every_example_equally(monkeypatch):
    expected = run(validation=held_out, metrics={"error": fnn.mean_absolute_error})
    monkeypatch.setattr(sys.modules["fnn.fitting"], "EVALUATED_AT_ONCE", 3)
    actual = run(validation=held_out, metrics={"error": fnn.mean_absolute_error})
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)


@pytest.mark.usefixtures("on_the_cpu")
def test_examples_may_lie_on_a_mesh():
    mesh = fnn.data_parallel_mesh(jax.devices("cpu")[:4])
    examples = x[:20], target[:20]
    options = {"epochs": 2, "batch_size": 4, "key": KEY, "progress": False, "validation": held_out}
    result = fnn.fit(model, mse, fnn.sgd(0.1), *fnn.shard_batch(mesh, examples), **options)
    assert len(result.history) == 2
    assert result.params[0]["W"].sharding.is_fully_replicated
    with pytest.raises(
        ValueError, match=r"expected validation=\(x, target\) for an x over several"
    ):
        fnn.fit(
            model, mse, fnn.sgd(0.1), *fnn.shard_batch(mesh, examples),
            **{**options, "validation": 0.2},
        )  # fmt: skip
