"""What kills, interrupts or starves a run of train_disk.py loses at most what is not stored yet."""

import functools
import io
import itertools
import os
import pathlib
import random
import select
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp
import processes
import pytest
import train_disk
import train_mnist
from shared import training

import fnn

NUM_EPOCHS = 20
SMALL = [
    *("--epochs", str(NUM_EPOCHS), "--train-size", "20", "--test-size", "10"),
    *("--batch-size", "10", "--hidden", "3", "--momentum", "0.5", "--quiet", "--no-page"),
]
EVERY = [*SMALL, "--checkpoint-every", "1"]
HEARD = "finishing this epoch and its results; a Ctrl-C from now on stops at once"
RESULTS = ["metrics.csv", "params.npz", training.CHECKPOINT, *train_disk.FIGURES]


class Run(processes.Process):
    """A run of train_disk.py, as tests/disturbed_train_disk.py has it."""

    def __init__(self, cache, folder, arguments, hold=0, how="wait"):
        events = pathlib.Path(f"{folder}.events")
        if not events.exists():
            os.mkfifo(events)
        self.folder, self.events = folder, os.open(events, os.O_RDWR)
        program = [processes.TESTS / "disturbed_train_disk.py", folder, hold, how]
        files = ".", f"{folder}.out", f"{folder}.err"
        super().__init__([*program, *arguments], cache, *files)

    def wait_for_event(self, number):
        for _ in range(number):
            assert select.select([self.events], [], [], 60)[0]
            os.read(self.events, 1)

    def send(self, number):
        """Send the signal, and wait until it has been heard."""
        os.kill(self.id, number)
        deadline = time.monotonic() + 60
        while "finishing" not in self.errors() and time.monotonic() < deadline:
            time.sleep(0.001)

    def go(self):
        pathlib.Path(f"{self.folder}.go").touch()

    def wait(self):
        status = super().wait()
        os.close(self.events)
        return status


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(folder, arguments, **options) -> Run."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(processes.SCRIPTS),
    }
    return functools.partial(Run, cache)


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def num_stored(folder):
    """The number of epochs that the checkpoint knows."""
    return len(fnn.read_note(folder / training.CHECKPOINT)["table"])


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """The folder of a run that nothing disturbed, and that stored nothing but its end."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert start(folder, [*SMALL, "--checkpoint-every", "1000"]).wait() == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(finished):
    return results(finished)


def assert_resumes(start, folder, undisturbed):
    run = start(folder, [*SMALL, "--resume"])
    assert (run.wait(), run.errors()) == (0, "")
    assert results(folder) == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == sorted([".lock", *RESULTS])


def test_killed_and_resumed_runs_end_with_the_same_bits(start, undisturbed, tmp_path):
    """Each of the runs is killed, resumed and killed again until the fourth time."""
    generator = random.Random(0)
    num_killed = num_in_a_save = num_runs = 0
    while num_killed < 20 and num_runs < 10:  # a few may end before they are killed
        folder = tmp_path / str(num_runs)
        num_runs += 1
        for _ in range(4):
            run = start(folder, [*EVERY, "--resume"], how="slow")
            num_events = generator.randrange(NUM_EPOCHS // 2)
            run.wait_for_event(num_events)
            time.sleep(generator.uniform(0, 0.004 if num_events else 0.5))
            os.kill(run.id, signal.SIGKILL)
            status = run.wait()
            assert status in (0, -signal.SIGKILL)
            if status == 0:
                break
            num_killed += 1
            num_in_a_save += any(folder.glob("*.unfinished"))
        assert_resumes(start, folder, undisturbed)
    assert num_killed >= 20
    assert num_in_a_save > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_epoch_and_tells_how_to_resume(number, start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    run = start(folder, [*SMALL, "--checkpoint-every", "3"], hold=2)
    run.wait_for_event(3)
    run.send(number)
    os.kill(run.id, signal.SIGTERM)  # a second one changes nothing
    run.go()
    assert run.wait() == 128 + number
    assert run.errors().splitlines()[1:] == [
        "train_disk.py: interrupted in epoch 6: the same command with --resume goes on; "
        f"{folder} has the results so far"
    ]
    assert num_stored(folder) == 6
    assert len((folder / "metrics.csv").read_text().splitlines()) == 7
    assert_resumes(start, folder, undisturbed)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_a_signal_stops_at_once(first, start, undisturbed, tmp_path):
    """Even in a computation of minutes, of which Python's main thread waits for the end."""
    folder = tmp_path / "run"
    run = start(folder, EVERY, hold=4, how="deaf")
    run.wait_for_event(7)
    run.send(first)
    os.kill(run.id, signal.SIGINT)
    assert run.wait() == 130
    assert num_stored(folder) == 3
    assert_resumes(start, folder, undisturbed)


@pytest.mark.parametrize(
    ("how", "message"), [("full", "File too large"), ("read-only", "Permission denied")]
)
def test_an_unwritable_checkpoint_ends_the_run_and_the_old_one_stays(
    how, message, start, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    run = start(folder, EVERY, hold=4, how=how)
    assert run.wait() == 1
    assert message in run.errors()
    assert f"{folder / training.CHECKPOINT}" in run.errors()
    assert run.errors().count("\n") == 1
    folder.chmod(0o700)
    assert num_stored(folder) == 3
    assert_resumes(start, folder, undisturbed)


def test_a_killed_fresh_run_leaves_nothing_of_an_older_one(start, finished, tmp_path):
    folder = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    run = start(folder, SMALL, hold=1)
    run.wait_for_event(1)
    os.kill(run.id, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (folder / training.CHECKPOINT).exists()
    run = start(folder, [*SMALL[: SMALL.index("--quiet")], "--resume"])
    assert run.wait() == 0
    assert "\nresumed   nothing: there is no checkpoint\n" in run.output()


def test_a_signal_in_the_last_epoch_does_not_claim_to_stop(start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    run = start(folder, [*SMALL, "--checkpoint-every", "1000"], hold=1)
    run.wait_for_event(1)
    run.send(signal.SIGTERM)
    run.go()
    assert run.wait() == 0
    assert run.errors() == f"train_disk.py: {HEARD}\n"
    assert results(folder) == undisturbed


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda: jax.enable_x64(True), "jax enable x64 unset, not True"),
        (lambda: jax.disable_jit(), "jax disable jit unset, not True"),
        (lambda: jax.default_prng_impl("rbg"), "jax default prng impl unset, not rbg"),
        (lambda: jax.threefry_partitionable(False), "jax threefry partitionable unset, not False"),
    ],
    ids=["x64", "no jit", "rbg", "threefry"],
)
def test_other_settings_of_jax_are_refused(setting, message, finished, tmp_path, capsys):
    shutil.copy(finished / training.CHECKPOINT, tmp_path)
    with setting():
        assert train_disk.main([*SMALL, "--resume", "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_settings_are_those_of_older_checkpoints(finished):
    settings = fnn.read_note(finished / training.CHECKPOINT)["settings"]
    assert [name for name in settings if name not in training.JAX_SETTINGS] == [
        "seed", "learning_rate", "epochs", "batch_size", "schedule", "momentum", "weight_decay",
        "hidden", "activation", "reduction", "train_size", "test_size", "data_checksum",
    ]  # fmt: skip


def test_a_checkpoint_that_is_deleted_is_written_again(start, undisturbed, tmp_path):
    folder = tmp_path / "run"
    run = start(folder, EVERY, hold=4)
    run.wait_for_event(7)
    (folder / training.CHECKPOINT).unlink()
    run.go()
    assert run.wait() == 0
    assert results(folder) == undisturbed


def test_a_folder_in_the_place_of_the_checkpoint_ends_the_run(start, tmp_path):
    folder = tmp_path / "run"
    run = start(folder, EVERY, hold=4)
    run.wait_for_event(7)
    (folder / training.CHECKPOINT).unlink()
    (folder / training.CHECKPOINT).mkdir()
    run.go()
    assert run.wait() == 1
    assert "not a regular file" in run.errors()
    assert run.errors().count("\n") == 1


def test_a_second_run_in_the_same_folder_is_refused(start, undisturbed, tmp_path):
    folder, same = tmp_path / "run", tmp_path / "same"
    same.symlink_to(folder)
    run = start(folder, EVERY, hold=4)
    run.wait_for_event(7)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for arguments in (EVERY, [*EVERY, "--resume"]):
        second = start(same, arguments)
        assert second.wait() == 2
        assert second.errors() == f"train_disk.py: error: another run is writing to {same}\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    run.go()
    assert run.wait() == 0
    assert results(folder) == undisturbed


def test_other_settings_are_refused_and_nothing_is_touched(start, finished, undisturbed):
    changes = ["--epochs", "21", "--momentum", "0.25", "--hidden", "3", "4"]
    run = start(finished, [*EVERY, "--resume", *changes])
    assert run.wait() == 2
    assert run.errors() == (
        f"train_disk.py: error: {finished / training.CHECKPOINT} is from a run with "
        f"epochs {NUM_EPOCHS}, not 21; momentum 0.5, not 0.25; hidden [3], not [3, 4]; "
        "without --resume the run begins anew\n"
    )
    assert results(finished) == undisturbed


@pytest.mark.parametrize("there_is_one", [True, False])
def test_a_run_says_from_where_it_goes_on(there_is_one, start, finished, undisturbed, tmp_path):
    folder = finished if there_is_one else tmp_path / "run"
    run = start(folder, [*EVERY[: EVERY.index("--quiet")], "--resume"])
    assert run.wait() == 0
    where = f"after epoch {NUM_EPOCHS}" if there_is_one else "nothing: there is no checkpoint"
    assert f"\nresumed   {where}\n" in run.output()
    assert results(folder) == undisturbed


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"text"), "File is not a zip file"),
        (lambda path: fnn.save(path, {}), "not the checkpoint of a training"),
        (lambda path: fnn.save(path, (), note={"settings": {}, "table": []}), "seed unset, not 0"),
    ],
    ids=["text", "no note", "no settings"],
)
def test_a_file_that_is_no_checkpoint_is_refused(write, message, start, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / training.CHECKPOINT)
    run = start(folder, [*EVERY, "--resume"])
    assert run.wait() == 2
    assert f"error: {folder / training.CHECKPOINT}" in run.errors()
    assert message in run.errors()
    assert run.errors().count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == [".lock", training.CHECKPOINT]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table * 2,
        lambda table: [row[1:] for row in table],
        lambda table: [list(map(str, row)) for row in table],
        lambda table: [None, *table[1:]],
    ],
    ids=["long", "narrow", "of text", "without a row"],
)
def test_a_checkpoint_with_another_table_is_refused(change, finished, tmp_path, capsys):
    note = fnn.read_note(finished / training.CHECKPOINT)
    changed = {**note, "table": change(note["table"])}
    fnn.save(tmp_path / training.CHECKPOINT, (), note=changed)
    assert train_disk.main([*SMALL, "--resume", "--output", str(tmp_path)]) == 2
    messages = "expected a row of 4 numbers for each epoch", f"expected at most {NUM_EPOCHS}"
    assert messages[len(changed["table"]) > NUM_EPOCHS] in capsys.readouterr().err


def test_other_points_are_refused(finished, tmp_path, capsys):
    shutil.copy(finished / training.CHECKPOINT, tmp_path)
    with jax.default_prng_impl("rbg"):
        assert train_disk.main([*SMALL, "--resume", "--output", str(tmp_path)]) == 2
    assert "is from a run with data checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments"), [(train_disk, []), (train_mnist, ["--data", "."])]
)
def test_every_option_that_changes_the_results_is_a_setting(script, arguments, tmp_path):
    options = script.parse_options([*arguments, "--fast", "--output", str(tmp_path)])
    others = {"data", "output", "quiet", "resume", "checkpoint_every", "no_page"}
    of_many = {"data_parallel", "coordinator", "num_processes", "process_id"}
    timeouts = {"start_timeout", "epoch_timeout"}
    expected = vars(options).keys() - others - of_many - timeouts
    assert training.settings(options).keys() - training.JAX_SETTINGS.keys() == expected


def run_epochs(folder, *arguments, bad_epoch=0, bad_loss=0, interruption=lambda epoch: None):
    """The loop over epochs that only count, one of them with a bad parameter or loss."""
    options = train_disk.parse_options([*SMALL, "--output", str(folder), *arguments])
    ended = itertools.count(1)

    def run_epoch(data, state, key):
        number = state.opt_state + 1
        params = {"W": jnp.ones(2).at[1].set(jnp.where(number == bad_epoch, jnp.inf, 1))}
        losses = jnp.ones(3).at[1].set(jnp.where(number == bad_loss, jnp.nan, 1))
        return fnn.TrainState(params, number), losses, [jnp.ones(())] * 4

    return training.run_epochs(
        options,
        lambda: interruption(next(ended)),
        run_epoch,
        (None, None, None),
        fnn.TrainState({"W": jnp.ones(2)}, jnp.zeros((), jnp.int32)),
        ((jnp.ones((20, 2)), jnp.ones((20, 2))),),
        jax.random.key(0),
        data_checksum=0,
        description="",
        columns=["a", "b", "c", "d"],
        progress="",
        remedy="lower --learning-rate",
    )


@pytest.fixture
def place(monkeypatch):
    """Where the first number that is not finite is said to be."""
    found = "0 Linear(2, 25)", "parameters"
    monkeypatch.setattr(fnn, "find_nonfinite_in_epoch", lambda *arguments, **options: found)


def test_one_loss_that_is_not_finite_ends_the_run(tmp_path, capsys, place):
    status = run_epochs(tmp_path, bad_loss=6).status
    assert status == 1
    assert ": the loss is not finite in epoch 6 (first met" in capsys.readouterr().err
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 7


def test_a_signal_in_the_last_epoch_comes_too_late(tmp_path, capsys):
    def interruption(epoch):
        return signal.SIGTERM if epoch == NUM_EPOCHS else None

    assert run_epochs(tmp_path, interruption=interruption).status == 0
    assert capsys.readouterr().err == ""
    assert num_stored(tmp_path) == NUM_EPOCHS


def test_checkpoints_are_as_frequent_as_asked_and_at_the_end(tmp_path, monkeypatch):
    stored = []
    monkeypatch.setattr(fnn.loop, "save", lambda *_, note: stored.append(len(note["table"])))
    run_epochs(tmp_path, "--checkpoint-every", "8")
    assert stored == [8, 16, NUM_EPOCHS]


def test_an_infinite_parameter_ends_the_run_and_the_checkpoint_stays(tmp_path, capsys, place):
    """Also where the loss is finite: a sigmoid hides an infinite parameter."""
    params, _, status, _ = run_epochs(tmp_path, "--checkpoint-every", "2", bad_epoch=6)
    assert capsys.readouterr().err.endswith(
        ": the parameters are not finite in epoch 6 (first met: layer 0 Linear(2, 25), "
        f"parameters): lower --learning-rate; {tmp_path} has the results so far\n"
    )
    assert status == 1
    assert params["W"].tolist() == [1, 1]
    assert num_stored(tmp_path) == 4


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_open_line_of_progress_on_a_terminal_is_ended(on_terminal, monkeypatch, tmp_path):
    errors = io.StringIO()
    errors.isatty = lambda: on_terminal
    monkeypatch.setattr(sys, "stderr", errors)

    def train(options, run_epochs):
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not errors.getvalue().endswith("at once\n") and time.monotonic() < deadline:
            time.sleep(0.001)
        return training.Trained((), [], 0, 0), None

    options = train_disk.parse_options(["--output", str(tmp_path)])
    assert training.run(train, lambda *results: None, options) == 0
    lines = errors.getvalue().splitlines()
    assert lines[:-1] == [""] * on_terminal
    assert lines[-1].endswith(": " + HEARD)


def test_points_that_are_not_finite_are_told_before_training(tmp_path, capsys, monkeypatch):
    sample = fnn.sample_disk

    def spoilt(*arguments, **kind):
        points, labels = sample(*arguments, **kind)
        return points.at[3, 1].set(jnp.nan), labels

    monkeypatch.setattr(fnn, "sample_disk", spoilt)
    assert train_disk.main([*EVERY, "--output", str(tmp_path)]) == 2
    message = "error: the points have NaN or infinity among their coordinates\n"
    assert capsys.readouterr().err.endswith(message)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
