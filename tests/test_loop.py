"""The loop over epochs, its checkpoints, and what ends it early."""

import itertools
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

COLUMNS = ["loss", "number"]


def run_epoch(state, number):
    """An epoch that adds its number to the state."""
    state = {"sum": state["sum"] + number}
    return state, jnp.ones(3), (1 / state["sum"], number)


START = {"sum": jnp.zeros(())}


def run(num_epochs, state=START, run_epoch=run_epoch, **options):
    return [*fnn.run_epochs(run_epoch, state, num_epochs, COLUMNS, **options)]


def test_an_epoch_has_its_number_its_state_and_a_row_of_metrics():
    epochs = run(4)
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert [float(epoch.state["sum"]) for epoch in epochs] == [1, 3, 6, 10]
    assert epochs[-1].history[1] == {"loss": float(1 / jnp.float32(3)), "number": 2.0}
    assert len(epochs[-1].history) == 4


def test_a_run_that_is_resumed_runs_the_epochs_that_are_missing(tmp_path):
    path, settings = tmp_path / "run.npz", {"seed": 1}
    assert fnn.load_checkpoint(path, START, 5, COLUMNS, settings=settings) == (START, [])
    epochs = fnn.run_epochs(run_epoch, START, 5, COLUMNS, checkpoint=path, settings=settings)
    while next(epochs).number < 3:
        pass
    state, history = fnn.load_checkpoint(path, START, 5, COLUMNS, settings=settings)
    assert float(state["sum"]) == 6
    rest = run(5, state, history=history, checkpoint=path, settings=settings)
    assert [epoch.number for epoch in rest] == [4, 5]
    assert rest[-1].history == run(5)[-1].history
    assert len(history) == 3


@pytest.mark.parametrize(
    ("num_epochs", "columns", "settings", "message"),
    [
        (3, COLUMNS, {"seed": 2}, "is from a run with seed 1, not 2$"),
        (3, COLUMNS, {}, "is from a run with seed 1, not unset$"),
        (2, COLUMNS, {"seed": 1}, "run.npz has 3 epochs, expected at most 2$"),
        (3, ["loss"], {"seed": 1}, r"has the columns \['loss', 'number'\], expected \['loss'\]$"),
        (3, COLUMNS[::-1], {"seed": 1}, r"expected \['number', 'loss'\]$"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(num_epochs, columns, settings, message, tmp_path):
    path = tmp_path / "run.npz"
    run(3, checkpoint=path, settings={"seed": 1})
    with pytest.raises(ValueError, match=message):
        fnn.load_checkpoint(path, START, num_epochs, columns, settings=settings)


def test_an_older_checkpoint_which_has_no_columns_is_loaded(tmp_path):
    path = tmp_path / "run.npz"
    table = [[0.5, 1.0], [0.25, 2.0]]
    fnn.save(path, START, note={"settings": None, "table": table})
    _, history = fnn.load_checkpoint(path, START, 2, COLUMNS)
    assert [[*row.values()] for row in history] == table
    with pytest.raises(ValueError, match="expected a row of 1 numbers for each epoch"):
        fnn.load_checkpoint(path, START, 2, ["loss"])


def test_what_is_added_to_a_row_is_not_stored(tmp_path):
    path = tmp_path / "run.npz"
    for epoch in fnn.run_epochs(run_epoch, START, 3, COLUMNS, checkpoint=path):
        epoch.history[-1] |= {"seconds": 1.0}
    _, history = fnn.load_checkpoint(path, START, 3, COLUMNS)
    assert history == run(3)[-1].history


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"settings": {"shape": (1, 2)}}, TypeError),
        ({"settings": {"key": object()}}, TypeError),
        ({"columns": ["loss", ("a", "b")]}, TypeError),
        ({"columns": ["loss", "loss"]}, ValueError),
    ],
)
def test_a_refused_run_leaves_the_older_checkpoint(options, error, tmp_path):
    path = tmp_path / "run.npz"
    run(3, checkpoint=path)
    options = {"columns": COLUMNS, "checkpoint": path, **options}
    with pytest.raises(error, match=r"run_epochs: expected .*columns"):
        next(fnn.run_epochs(run_epoch, START, 3, **options))
    assert len(fnn.read_note(path)["table"]) == 3


def test_a_run_that_is_over_early_is_stored_and_stays_over(tmp_path):
    path = tmp_path / "run.npz"
    options = {"checkpoint": path, "checkpoint_every": 10, "is_over": lambda rows: len(rows) >= 3}
    assert (
        len(run(9, interruption=lambda: signal.SIGINT if path.exists() else None, **options)) == 3
    )
    state, history = fnn.load_checkpoint(path, START, 9, COLUMNS)
    assert len(history) == 3
    assert run(9, state, history=history, **options) == []


def test_a_fresh_run_first_removes_the_older_checkpoint(tmp_path):
    path = tmp_path / "run.npz"
    run(3, checkpoint=path)

    def killed(state, number):
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(3, run_epoch=killed, checkpoint=path)
    assert fnn.load_checkpoint(path, START, 3, COLUMNS) == (START, [])


@pytest.mark.parametrize("what", ["loss", "metric", "parameter"])
def test_numbers_that_are_not_finite_stop_the_run(what, tmp_path):
    def spoilt(state, number):
        new_state, losses, metrics = run_epoch(state, number)
        if number == 3:
            infinite = jnp.array(jnp.inf)
            new_state = {"sum": infinite} if what == "parameter" else new_state
            losses = losses.at[1].set(jnp.nan) if what == "loss" else losses
            metrics = (1.0, -infinite) if what == "metric" else (1.0, number)
        return new_state, losses, metrics

    path = tmp_path / "run.npz"
    asked = []

    def diagnose(state, number):
        asked.append((float(state["sum"]), number))
        return "2 Linear(2, 3)", "backward"

    subject = "parameters are" if what == "parameter" else "loss is"
    message = (
        rf"the {subject} not finite in epoch 3 \(first met: layer 2 Linear\(2, 3\), backward\)$"
    )
    with pytest.raises(fnn.NotFiniteError, match=message) as caught:
        run(5, run_epoch=spoilt, checkpoint=path, diagnose=diagnose)
    assert asked == [(3.0, 3)]
    assert len(caught.value.history) == 3
    assert isinstance(caught.value, FloatingPointError)
    assert len(fnn.read_note(path)["table"]) == 2


def test_an_interrupted_epoch_is_stored_and_yielded_first(tmp_path):
    path, numbers = tmp_path / "run.npz", []
    epochs = fnn.run_epochs(
        run_epoch,
        START,
        9,
        COLUMNS,
        checkpoint=path,
        checkpoint_every=4,
        interruption=lambda: signal.SIGTERM if numbers == [1, 2] else None,
    )
    numbers += (epoch.number for epoch in itertools.islice(epochs, 2))
    numbers.append(next(epochs).number)
    with pytest.raises(fnn.Interrupted, match="interrupted in epoch 3") as caught:
        next(epochs)
    assert numbers == [1, 2, 3]
    assert caught.value.number == signal.SIGTERM
    assert len(fnn.read_note(path)["table"]) == 3


def test_the_last_epoch_is_not_interrupted():
    assert len(run(1, interruption=lambda: signal.SIGINT)) == 1


def test_numbers_of_epochs_are_checked():
    for options in ({"num_epochs": 0}, {"num_epochs": 1, "checkpoint_every": 0}):
        with pytest.raises(ValueError, match="run_epochs: expected"):
            run(**options)


def test_predictions_in_batches_are_those_of_the_whole():
    model = fnn.Sequential(fnn.Linear(3, 4), fnn.Tanh(), fnn.Linear(4, 2))
    params, x = model.init(jax.random.key(0)), draw(1, (10, 3))
    expected = fnn.predict(model, params, x)
    for batch_size in (1, 4, 10, 20):
        result = fnn.predict(model, params, x, batch_size=batch_size)
        assert jnp.allclose(result, expected, atol=1e-6)


def test_the_layer_named_is_the_one_where_it_began():
    linear, mse, optimizer = fnn.Linear(3, 3), fnn.MSELoss(), fnn.sgd(0.1, momentum=0.5)

    def backward(params, x, dy):
        grads, dx = linear.backward(params, x, dy)
        return grads, jnp.where(jnp.any(x > 50), jnp.inf, 1) * dx

    layers = [fnn.Linear(3, 3), fnn.LeakyReLU(), linear._replace(backward=backward)]
    model = fnn.Sequential(*layers, fnn.Linear(3, 2))
    x, target = draw(1, (40, 3)).at[27].set(1000), draw(2, (40, 2))
    start, key = fnn.init_train_state(model, optimizer, jax.random.key(0)), jax.random.key(1)
    end, _ = fnn.make_train_epoch(model, mse, optimizer, 4)(start, x, target, key)
    assert fnn.find_nonfinite(model, mse, end.params, x, target)[0] == "0 Linear(3, 3)"
    found = fnn.find_nonfinite_in_epoch(model, mse, optimizer, 4, start, x, target, key)
    assert found == ("2 Linear(3, 3)", "backward")


def test_signals_are_handled_as_before_when_the_work_is_done():
    def handler(*arguments):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with fnn.interruptions() as interruption:
            assert interruption() is None
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 60
            while interruption() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            assert interruption() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with fnn.interruptions() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert interruption() is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_interruptions_outside_the_main_thread_are_refused(capsys):
    errors = []

    def enter():
        try:
            with fnn.interruptions():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=lambda: [enter() for _ in range(20)])
    thread.start()
    thread.join()
    assert len(errors) == 20
    assert capsys.readouterr().err == ""


def test_the_time_left_is_unknown_before_any_work_is_done():
    assert fnn.time_left(time.monotonic(), 0, 10) == "? left"
    assert fnn.time_left(time.monotonic() - 20, 1, 4) == "1:00 left"


def test_python_numbers_are_looked_at_as_they_are():
    assert fnn.is_finite([1e39, 10**400, True, 1e39j])
    for value in (float("nan"), float("inf"), complex(0, float("-inf"))):
        assert not fnn.is_finite({"a": 1.0, "b": value})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_value_that_is_not_finite_is_found(dtype):
    finite = (jnp.array([1, 3e4], dtype), jnp.arange(3), jax.random.key(0), jnp.zeros(0), ())
    assert fnn.is_finite(finite)
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        assert not fnn.is_finite((*finite, jnp.array([1, value], dtype)))
        assert not fnn.is_finite((*finite, jnp.array(value, dtype)))
