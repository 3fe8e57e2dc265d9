"""scripts/grid_search.py as a user runs it."""

import csv
import os
import re

import grid_search
import jax
import jax.numpy as jnp
import pytest
from shared import disk

import fnn

SMALL = [
    *("--epochs", "3", "--batch-size", "10", "--hidden", "6"),
    *("--train-size", "60", "--validation-size", "20", "--test-size", "40"),
]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    options = [*SMALL, "--rates", "0.1", "1", "--seeds", "3", "--output", str(folder)]
    assert grid_search.main(options) == 0
    return folder


def test_tables_have_a_row_a_network(small_run):
    grid, chosen = rows(small_run / "grid.csv"), rows(small_run / "chosen.csv")
    metrics = ["train_loss", "train_accuracy", "{}_loss", "{}_accuracy"]
    for table, unseen in ((grid, "validation"), (chosen, "test")):
        assert list(table[0]) == ["learning_rate", "seed", *(m.format(unseen) for m in metrics)]
    pairs = [(row["learning_rate"], row["seed"]) for row in grid]
    assert pairs == [(rate, seed) for rate in ("0.1", "1.0") for seed in "012"]
    assert [row["seed"] for row in chosen] == list("012")
    by_rate = {
        rate: sum(float(r["validation_accuracy"]) for r in grid if r["learning_rate"] == rate)
        for rate in ("0.1", "1.0")
    }
    assert {row["learning_rate"] for row in chosen} == {max(by_rate, key=by_rate.get)}
    assert (small_run / "curves.svg").exists()


def assert_row_is(row, seed, standardize, encoding, num_train, unseen):
    """The row's metrics are those of one network trained alone, by the public functions."""
    model = disk.make_network([6], "leaky_relu")
    optimizer = fnn.sgd(float(row["learning_rate"]))
    train_epoch = fnn.make_train_epoch(model, fnn.MSELoss("batchmean"), optimizer, 10)

    @jax.jit
    def metrics(key):
        train_key, test_key, init_key, epoch_key = jax.random.split(key, 4)
        sets = []
        for key, size in ((train_key, 60), (test_key, 40)):
            points, labels = fnn.sample_disk(key, size)
            points = (points - 0.5) / (1 / 12) ** 0.5 if standardize else points
            sets.append((points, disk.encode(labels, encoding), labels))
        train, rest = (
            tuple(part[cut] for part in sets[0])
            for cut in (slice(num_train), slice(num_train, None))
        )
        state = fnn.init_train_state(model, optimizer, init_key)
        for number in (1, 2, 3):
            state, _ = train_epoch(state, *train[:2], jax.random.fold_in(epoch_key, number))
        others = rest if unseen == "validation" else sets[1]
        return [disk.evaluate(model, state.params, *part) for part in (train, others)]

    results = metrics(jax.random.key(seed))
    for name, (loss, accuracy) in zip(("train", unseen), results, strict=True):
        assert float(row[f"{name}_loss"]) == pytest.approx(float(loss), rel=1e-4)
        assert float(row[f"{name}_accuracy"]) == pytest.approx(float(accuracy), abs=1e-5)


def test_a_network_of_the_grid_is_the_one_that_is_trained_alone(small_run):
    row = rows(small_run / "grid.csv")[5]
    assert (row["learning_rate"], row["seed"]) == ("1.0", "2")
    assert_row_is(row, 2, False, "one-hot", 40, "validation")


def test_the_chosen_rate_trains_on_all_points_and_meets_new_ones(tmp_path):
    options = [*SMALL, "--rates", "1", "--seeds", "1", "--first-seed", "7"]
    options += ["--encoding", "report", "--standardize", "--output", str(tmp_path)]
    assert grid_search.main(options) == 0
    (row,) = rows(tmp_path / "chosen.csv")
    assert row["seed"] == "7"
    assert_row_is(row, 7, True, "report", 60, "test")


def test_the_rate_is_chosen_by_validation_accuracy(tmp_path, monkeypatch):
    """Of three rates, the one with the better validation accuracy and the worse everything else."""
    chosen = []

    def results(options, rates, num_held_out, title):
        if not num_held_out:
            chosen.extend(rates)
        better = jnp.array([[rate == 2.0] * options.seeds for rate in rates])
        train = jnp.where(better, 0.9, 0.1)
        return grid_search.Results(train[None], 1 - train[None], train, jnp.where(better, 0.8, 0.7))

    monkeypatch.setattr(grid_search, "train_networks", results)
    options = [*SMALL, "--rates", "1", "2", "3", "--seeds", "2", "--output", str(tmp_path)]
    assert grid_search.main(options) == 0
    assert chosen == [2.0]


def test_curves_show_each_rates_mean_and_interval():
    table = jnp.array([[[0.1, 0.3], [0.5, 0.5]]])  # one epoch, two rates, two seeds
    nothing = jnp.zeros((2, 2))
    svg = grid_search.draw_curves([1.0, 2.0], grid_search.Results(table, table, nothing, nothing))
    bands = re.findall(r'<polygon points="([^"]*)"', svg)
    heights = [{float(pair.split(",")[1]) for pair in band.split()} for band in bands]
    assert [len(ys) for ys in heights] == [2, 1, 2, 1]
    assert "over 2 seeds" in svg


def test_chunks_change_nothing(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(grid_search, "MOST_AT_ONCE", 4)
    options = [*SMALL, "--rates", "0.1", "1", "--seeds", "3", "--output", str(tmp_path)]
    assert grid_search.main(options) == 0
    for name in ("grid.csv", "chosen.csv"):
        for row, expected in zip(rows(tmp_path / name), rows(small_run / name), strict=True):
            for column, value in row.items():
                assert float(value) == pytest.approx(float(expected[column]), rel=1e-4)


def test_rates_without_finite_losses_are_never_chosen(tmp_path, capsys):
    options = [*SMALL, "--seeds", "2", "--output", str(tmp_path), "--hidden", "6", "6", "6"]
    assert grid_search.main([*options, "--rates", "1e30", "0.1"]) == 0
    assert {row["learning_rate"] for row in rows(tmp_path / "chosen.csv")} == {"0.1"}
    assert grid_search.main([*options, "--rates", "1e30"]) == 1
    assert "no rate has finite losses: lower --rates" in capsys.readouterr().err


def test_results_are_in_files_before_they_are_shown(tmp_path, monkeypatch):
    def fail(*arguments):
        raise UnicodeEncodeError("ascii", "\xb1", 0, 1, "as a terminal of another encoding")

    monkeypatch.setattr(grid_search, "print_grid", fail)
    options = [*SMALL, "--rates", "0.1", "--seeds", "2", "--output", str(tmp_path)]
    with pytest.raises(UnicodeEncodeError):
        grid_search.main(options)
    assert len(rows(tmp_path / "chosen.csv")) == 2
    assert {path.name for path in tmp_path.iterdir()} == {*grid_search.FILES, ".lock"}


@pytest.mark.parametrize("number", ["300000000", "333334"])
def test_more_networks_than_fit_into_memory_are_refused_at_once(number, tmp_path, capsys):
    with pytest.raises(SystemExit):
        grid_search.main(["--seeds", number, "--output", str(tmp_path)])
    message = f"argument --seeds: expected at most 333333 with 3 rates, got {number}"
    assert message in capsys.readouterr().err


def test_gpu_kernels_are_deterministic(tmp_path, monkeypatch):
    def search(options):
        seen.append(os.environ["XLA_FLAGS"])
        return 0

    seen = []
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setattr(grid_search, "search", search)
    assert grid_search.main(["--output", str(tmp_path)]) == 0
    assert seen == ["--xla_a=1 --xla_gpu_deterministic_ops=true"]
