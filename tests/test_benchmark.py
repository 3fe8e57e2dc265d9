"""scripts/benchmark.py runs and records what it measured; what it measures is not asserted."""

import itertools
import json
import time

import benchmark
import chex
import jax
from shared import measure

import fnn


def test_a_group_is_measured_printed_and_recorded(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert benchmark.main(["--groups", "compile", "--rounds", "1", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["machine"]["jax"] == jax.__version__
    assert record["unit"] == "seconds"
    assert set(record["groups"]) == {"compile"}
    tables = record["groups"]["compile"]
    assert [title.split()[0] for title in tables] == ["4", "16", "64"]
    for table in tables.values():
        assert all(value > 0 for values in table.values() for value in values)
    lines = capsys.readouterr().out.splitlines()
    assert any("64 Linear layers" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_step_written_by_hand_is_the_librarys():
    parts, start, (x, target) = benchmark.make_training(benchmark.REPORT, 10)
    state = start(jax.random.key(0))
    with jax.numpy_rank_promotion("allow"):
        actual = jax.jit(benchmark.bare_step)(state, x, target)
    expected = fnn.make_train_step(*parts)(state, x, target)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_candidates_take_turns_and_warm_up():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = measure.take_turns(candidates, 3, 0.02)
    assert [len(values) for values in seconds.values()] == [3, 3]
    turns = [name for name, _ in itertools.groupby(calls)]
    assert turns == ["a", "b"] * 4  # the first of them unmeasured
    assert len(calls) > 2 * len(turns)


def test_a_group_that_fails_is_told_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def nap():
        yield measure.Table("a", "a nap", {"b": lambda: time.sleep(0.001)}, warm_up=0)

    def fail():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore lines")

    monkeypatch.setattr(benchmark, "GROUPS", {"large": fail, "small": nap})
    assert benchmark.main(["--rounds", "1", "--json", str(tmp_path / "figures.json")]) == 1
    expected = "large could not be measured: RESOURCE_EXHAUSTED: out of memory\n"
    assert capsys.readouterr().err.endswith(expected)
    record = json.loads((tmp_path / "figures.json").read_text())
    assert [*record["groups"]] == ["small"]
    assert len(record["groups"]["small"]["a"]["b"]) == 1


def test_a_table_has_the_time_of_one_unit_in_each_round(capsys):
    candidates = {"one": lambda: time.sleep(0.001), "four": lambda: time.sleep(0.004)}
    units = {"one": 1, "four": 4}
    table = measure.measure(measure.Table("Title", "a nap", candidates, units, warm_up=0), 2)
    for values in table.values():
        assert len(values) == 2
        assert min(values) >= 0.001
    assert "Title" in capsys.readouterr().out
