"""scripts/train_disk.py as a user runs it."""

import contextlib
import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import chex
import jax
import jax.numpy as jnp
import processes
import pytest
import train_disk
from processes import SCRIPTS
from shared import command_line, disk, training
from shared.backprop import snapshots

import fnn

SIZES = ["--epochs", "3", "--train-size", "60", "--test-size", "40", "--hidden", "6", "--quiet"]
SMALL = [*SIZES, "--no-page"]
SCRIPT = SCRIPTS / "train_disk.py"


def run(*arguments, **options):
    return processes.run([SCRIPT, *arguments], **options)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The main job, with no arguments, in an empty folder, as a user starts it."""
    folder = tmp_path_factory.mktemp("default")
    command = [sys.executable, SCRIPT]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result, folder / "runs" / "disk"


def test_the_main_job_learns_the_disk(default_run):
    result, folder = default_run
    last = rows(folder)[-1]
    assert float(last["test_accuracy"]) > 0.975
    assert float(last["test_loss"]) < 0.02
    summary = result.stdout.splitlines()[-1]
    assert summary.startswith(
        f"test accuracy {float(last['test_accuracy']):.2%}, "
        f"test MSE {float(last['test_loss']):.5f}, 150 epochs, 30000 steps, "
    )
    assert summary.endswith(" seconds")
    assert result.stderr == ""


def test_the_main_job_says_what_it_runs_and_shows_progress(default_run):
    lines = default_run[0].stdout.splitlines()
    text = "\n".join(lines)
    for expected in ("2-25-25-25-2", "1427 parameters", "learning rate", "device", "seed 0"):
        assert expected in text
    assert sum(line.startswith("epoch ") for line in lines) == 10
    assert max(map(len, lines)) <= 80


def test_metrics_have_a_row_an_epoch(default_run):
    table = rows(default_run[1])
    assert list(table[0]) == [
        "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"
    ]  # fmt: skip
    assert [int(row["epoch"]) for row in table] == list(range(1, 151))
    for row in table:
        assert 0 <= float(row["train_accuracy"]) <= 1
        assert float(row["train_loss"]) > 0


def test_parameters_are_those_of_the_trained_network(default_run):
    model = disk.make_network([25, 25, 25], "leaky_relu")
    like = jax.jit(model.init)(jax.random.key(1))
    params = fnn.load(default_run[1] / "params.npz", like)

    @jax.jit
    def accuracy(params, key):
        points, labels = fnn.sample_disk(key, 2000)
        return fnn.accuracy(fnn.predict(model, params, points), labels)

    assert accuracy(params, jax.random.key(12345)) > 0.97


def test_figures_are_drawn(default_run):
    for name in train_disk.FIGURES:
        root = xml.etree.ElementTree.parse(default_run[1] / name).getroot()
        assert root.tag.endswith("svg")
    regions = (default_run[1] / "decision_regions.svg").read_text()
    wrong = 1000 - round(1000 * float(rows(default_run[1])[-1]["test_accuracy"]))
    assert sum(map(int, re.findall(r"missed: (\d+)", regions))) == wrong > 0
    network = (default_run[1] / "network.svg").read_text()
    assert "The network 2-25-25-25-2" in network


def numbers_of_page(folder):
    text = (folder / train_disk.PAGE).read_text()
    (data,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', text)
    return text, json.loads(data)


def test_a_page_plays_the_training_back(default_run):
    text, numbers = numbers_of_page(default_run[1])
    assert len(text) < 3e6
    title = "Backpropagation: 2-25-25-25-2, leaky_relu, sigmoid at the end"
    assert f"<title>{title}</title>" in text
    assert numbers["classes"] == ["outside", "inside"]
    assert [numbers["epochs"][0], numbers["epochs"][-1]] == [0, 150]
    assert len(numbers["epochs"]) > 55
    for number, epoch in enumerate(numbers["epochs"][1:], 1):
        row = rows(default_run[1])[epoch - 1]
        assert numbers["losses"][number] == pytest.approx(float(row["train_loss"]), rel=1e-3)
        accuracy = float(row["train_accuracy"])
        assert numbers["accuracies"][number] == pytest.approx(accuracy, abs=0.0011)  # one point


def test_the_page_can_be_declined(tmp_path):
    assert train_disk.main([*SMALL, "--output", str(tmp_path)]) == 0
    assert not (tmp_path / train_disk.PAGE).exists()


def interrupted_after(num_epochs):
    """fnn.interruptions with a SIGTERM in that epoch."""

    @contextlib.contextmanager
    def interruptions(heard):
        asked = itertools.count(1)
        yield lambda: signal.SIGTERM if next(asked) == num_epochs else None

    return interruptions


def test_the_page_of_a_resumed_run_is_whole(tmp_path, monkeypatch):
    def run_once(folder, *options):
        return train_disk.main([*SIZES, *options, "--output", str(tmp_path / folder)])

    def page_of(folder):
        return (tmp_path / folder / train_disk.PAGE).read_bytes()

    assert run_once("at once") == 0
    with monkeypatch.context() as patch:
        patch.setattr(fnn, "interruptions", interrupted_after(1))
        assert run_once("resumed") == 128 + signal.SIGTERM
    assert numbers_of_page(tmp_path / "resumed")[1]["epochs"] == [0, 1]
    for _ in range(2):  # the second time there is nothing left to do
        assert run_once("resumed", "--resume") == 0
        assert page_of("resumed") == page_of("at once")
    # It dies after the checkpoint of the second epoch, before the params are stored for the page.
    save = snapshots.save
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save", lambda *args: save(*args) if len(args[1]) < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_once("killed", "--checkpoint-every", "1")
    assert run_once("killed", "--resume") == 0
    assert page_of("killed") == page_of("at once")


def test_a_page_has_the_params_of_its_own_run_alone(tmp_path, monkeypatch):
    """It begins where the run is resumed if there are no others."""
    options = [*SIZES, "--epochs", "100", "--checkpoint-every", "1", "--output", str(tmp_path)]
    settings = training.settings(train_disk.parse_options(options))
    saved, save = [], snapshots.save
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save", lambda *args: (saved.append(args), save(*args)))
        patch.setattr(fnn, "interruptions", interrupted_after(71))
        assert train_disk.main(options) == 128 + signal.SIGTERM
    page = (tmp_path / train_disk.PAGE).read_bytes()
    epochs = numbers_of_page(tmp_path)[1]["epochs"]
    assert 71 not in epochs
    assert len(saved) == len(epochs) + 1  # not at each of the 71 checkpoints; and at the end
    zeros = jax.tree.map(jnp.zeros_like, saved[0][1][0])
    for store_others in (
        lambda: save(tmp_path, {0: zeros}, settings | {"seed": 1}),
        lambda: save(tmp_path, {0: ()}, settings),
        lambda: (tmp_path / snapshots.FILE).write_bytes(b"no such file"),
    ):
        store_others()
        assert train_disk.main([*options, "--resume"]) == 0
        assert numbers_of_page(tmp_path)[1]["epochs"][0] == 71
        # A fresh run uses none, not even those of its settings.
        save(tmp_path, {99: zeros}, settings)
        with monkeypatch.context() as patch:
            patch.setattr(fnn, "interruptions", interrupted_after(71))
            assert train_disk.main(options) == 128 + signal.SIGTERM
        assert (tmp_path / train_disk.PAGE).read_bytes() == page


def test_the_same_seed_gives_the_same_bits_in_another_process(tmp_path):
    options = [*SIZES, "--seed", "3", "--output"]
    assert run(*options, tmp_path / "one")[0] == 0
    subprocess.run([sys.executable, SCRIPT, *options, tmp_path / "same"], check=True)
    for file in ("metrics.csv", "params.npz", train_disk.PAGE):
        one, same = ((tmp_path / name / file).read_bytes() for name in ("one", "same"))
        assert one == same


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    assert train_disk.main([*SMALL, "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [
        "--momentum 0.5",
        "--weight-decay 0.1",
        "--schedule constant",
        "--reduction sum",
        "--activation tanh",
        "--learning-rate 0.1",
        "--batch-size 7",
        "--train-size 59",
        "--hidden 6 6",
        "--epochs 2",
        "--seed 1",
    ],
)
def test_every_option_takes_effect(change, small_run, tmp_path):
    options = train_disk.parse_options([*SMALL, *change.split(), "--output", str(tmp_path)])
    assert training.run(train_disk.train, lambda *results: None, options) == 0
    trained, base = ((f / "params.npz").read_bytes() for f in (tmp_path, small_run))
    assert trained != base


def test_results_are_those_of_the_library_by_hand(small_run):
    """Data, batches and metrics of a small run, from the public functions alone."""
    model = fnn.Sequential(fnn.Linear(2, 6), fnn.LeakyReLU(), fnn.Linear(6, 2), fnn.Sigmoid())
    optimizer = fnn.sgd(fnn.cosine_decay(0.5, 3 * 12))

    @jax.jit
    def start(key):
        train_key, test_key, init_key, epoch_key = jax.random.split(key, 4)
        state = fnn.init_train_state(model, optimizer, init_key)
        return fnn.sample_disk(train_key, 60), fnn.sample_disk(test_key, 40), state, epoch_key

    (points, labels), unseen, state, epoch_key = start(jax.random.key(0))
    train_epoch = fnn.make_train_epoch(model, fnn.MSELoss(), optimizer, 5)

    @jax.jit
    def epoch(state, key):
        state, _ = train_epoch(state, points, jax.nn.one_hot(labels, 2), key)
        metrics = []
        for x, label in ((points, labels), unseen):
            scores = fnn.predict(model, state.params, x)
            mse = jnp.mean(jnp.square(scores - jax.nn.one_hot(label, 2)))
            metrics += [mse, fnn.accuracy(scores, label)]
        return state, metrics

    for number, row in enumerate(rows(small_run), 1):
        state, metrics = epoch(state, jax.random.fold_in(epoch_key, number))
        for column, value in zip([*row][1:], metrics, strict=True):
            digits = 1e-5 if column.endswith("accuracy") else 1e-4
            assert float(row[column]) == pytest.approx(float(value), rel=digits)
    saved = fnn.load(small_run / "params.npz", state.params)
    chex.assert_trees_all_close(saved, state.params, rtol=1e-4, atol=1e-6)


def test_what_is_about_to_run_is_said(tmp_path, capsys):
    options = "--epochs 3 --batch-size 30 --hidden 7 5 --activation tanh --train-size 100"
    folder = tmp_path / "new" / "folder"
    options = [*options.split(), "--test-size", "50", "--output", str(folder)]
    assert train_disk.main(options) == 0
    output = capsys.readouterr().out
    for expected in ("2-7-5-2", "tanh", "73 parameters", "100 training points", "50 test points"):
        assert expected in output
    assert "12 steps" in output.splitlines()[-1]
    assert len(rows(folder)) == 3


def test_quiet_prints_the_summary_alone(tmp_path, capsys):
    """And, being called here, runs in the tests' strict configuration of JAX."""
    options = ["--epochs", "1", "--hidden", "6", "--quiet", "--output", str(tmp_path)]
    assert train_disk.main(options) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_help_gives_every_option_and_its_default():
    _, text, _ = run("--help")
    for option in (
        "--seed", "--epochs", "--batch-size", "--learning-rate", "--schedule", "--momentum",
        "--weight-decay", "--hidden", "--activation", "--reduction", "--train-size",
        "--test-size", "--output", "--checkpoint-every", "--resume", "--data-parallel",
        "--coordinator", "--num-processes", "--process-id", "--start-timeout", "--epoch-timeout",
        "--fast", "--quiet", "--no-page",
    ):  # fmt: skip
        assert f"  {option}" in text
    assert " ".join(text.split()).count("(default: ") == 24


def test_a_folder_in_place_of_a_file_is_found_before_training(tmp_path):
    (tmp_path / "params.npz").mkdir()
    status, output, errors = run("--output", tmp_path)
    assert (status, output) == (2, "")
    assert "params.npz: Is a directory" in errors


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert train_disk.main([*SMALL, "--learning-rate", "1e30", "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    place = "first met: layer 2 Linear(6, 2), forward"
    assert f"the loss is not finite in epoch 1 ({place}): lower --learning-rate" in error
    assert error.count("\n") == 1
    assert len(rows(tmp_path)) == 1
    assert (tmp_path / "params.npz").exists()


def test_a_run_over_all_devices_says_where_numbers_fail(tmp_path):
    options = [*SMALL, "--batch-size", "8", "--train-size", "64", "--data-parallel"]
    options += ["--learning-rate", "1e30", "--output", tmp_path]
    status, _, errors = run(*options, JAX_NUM_CPU_DEVICES="4")
    assert status == 1
    assert "(first met: layer 2 Linear(6, 2), forward)" in errors


def test_a_run_that_diverges_later_keeps_the_epoch_before(tmp_path, capsys):
    options = [*SMALL, "--schedule", "constant", "--momentum", "2", "--epochs"]
    assert train_disk.main([*options, "50", "--output", str(tmp_path / "diverged")]) == 1
    (epoch,) = re.findall(r"not finite in epoch (\d+)", capsys.readouterr().err)
    assert int(epoch) > 2
    last = str(int(epoch) - 1)
    assert train_disk.main([*options, last, "--output", str(tmp_path / "stopped")]) == 0
    kept, expected = ((tmp_path / f / "params.npz").read_bytes() for f in ("diverged", "stopped"))
    assert kept == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stores_what_there_is_if_nobody_reads(number, tmp_path):
    """As in `train_disk.py 2>&1 | tee log`, where Ctrl-C ends tee too."""
    out = tmp_path / "pipe"
    os.mkfifo(out)
    options = ["--epochs", 10**6, "--output", tmp_path]
    process = processes.start([SCRIPT, *options], out=out, err=out)
    with open(out) as reader:
        assert any(line.startswith("output") for line in reader)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert fnn.read_note(tmp_path / "checkpoint.npz")["table"]


def test_an_interrupt_writes_what_there_is(tmp_path):
    process = processes.start([SCRIPT, "--epochs", 10**6, "--output", tmp_path])
    deadline = time.monotonic() + 60
    metrics = tmp_path / "metrics.csv"
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "interrupted in epoch" in process.errors()
    assert "--resume" in process.errors()
    assert "Traceback" not in process.errors()
    assert (tmp_path / "params.npz").exists()


def test_an_interrupt_before_the_first_epoch_waits_for_its_end(tmp_path, capsys, monkeypatch):
    make_train_epoch = fnn.make_train_epoch

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return make_train_epoch(*arguments)

    monkeypatch.setattr(fnn, "make_train_epoch", interrupted)
    assert train_disk.main([*SMALL, "--epochs", "3", "--output", str(tmp_path)]) == 130
    assert "interrupted in epoch 1: the same command with --resume" in capsys.readouterr().err
    assert len(fnn.read_note(tmp_path / "checkpoint.npz")["table"]) == 1


@pytest.mark.parametrize(
    ("given", "arguments", "expected"),
    [
        ("", [], "--xla_gpu_deterministic_ops=true"),
        ("--xla_a=1", [], "--xla_a=1 --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", [], "--xla_gpu_deterministic_ops=false"),
        ("--xla_a=1", ["--fast"], "--xla_a=1"),
    ],
)
def test_gpu_kernels_are_deterministic_unless_told_otherwise(
    given, arguments, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", given)
    seen = []

    def train(options, run_epochs):
        seen.append(os.environ["XLA_FLAGS"])
        return training.Trained((), [], 0, 0), None

    options = train_disk.parse_options([*arguments, "--output", str(tmp_path)])
    assert training.run(train, lambda *results: None, options) == 0
    assert seen == [expected]


def test_a_network_that_says_one_class_for_all_is_told(tmp_path, capsys):
    options = [*SMALL, "--momentum", "1", "--epochs", "30", "--output", str(tmp_path)]
    assert train_disk.main(options) == 0
    (summary,) = capsys.readouterr().out.splitlines()
    end = r" seconds; the network has collapsed: it says class [01] for all test examples$"
    assert re.search(end, summary)


def test_classes_are_compared_with_the_labels():
    assert command_line.collapse([1, 1], [0, 1])
    assert not command_line.collapse([1, 1], [1, 1])
    assert not command_line.collapse([0, 1], [0, 1])


def test_no_option_is_changed(tmp_path, monkeypatch):
    options = train_disk.parse_options([*SMALL, "--epochs", "1", "--output", str(tmp_path)])
    before = dict(vars(options))
    monkeypatch.setattr(train_disk, "parse_options", lambda arguments: options)
    assert train_disk.main() == 0
    assert vars(options) == before
