"""fnn follows the trajectories recorded from PyTorch by scripts/compare_pytorch.py --record."""

import json
import pathlib

import disk
import jax
import jax.numpy as jnp
import pytest

import fnn

RECORD = json.loads((pathlib.Path(__file__).parent / "data" / "torch_sgd.json").read_text())


def name(case):
    extras = [key for key in ("momentum", "nesterov", "weight_decay") if case[key]]
    return "-".join([case["activation"], case["reduction"], *extras])


def initial_params(model, dtype):
    weights = [jnp.array(weight, dtype) for weight in RECORD["initial"]]
    structure = jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
    return jax.tree.unflatten(structure, weights)


def assert_close(actual, recorded, tolerance):
    recorded = jnp.array(recorded, jnp.float64)
    difference = jnp.max(jnp.abs(actual.astype(jnp.float64) - recorded))
    assert difference <= tolerance * jnp.max(jnp.abs(recorded))


@pytest.mark.parametrize("case", RECORD["cases"], ids=name)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_training_follows_pytorch(case, dtype, tolerance):
    with jax.enable_x64(True):
        model = disk.make_network(RECORD["widths"][1:-1], case["activation"])
        optimizer = fnn.sgd(
            RECORD["learning_rate"], case["momentum"], case["nesterov"], case["weight_decay"]
        )
        step = fnn.make_train_step(model, fnn.MSELoss(case["reduction"]), optimizer)
        params = initial_params(model, dtype)
        state = fnn.TrainState(params, optimizer.init(params))
        for number, (batch, loss) in enumerate(
            zip(RECORD["batches"], case["losses"], strict=True), 1
        ):
            state, value = step(state, *(jnp.array(part, dtype) for part in batch))
            assert_close(value, loss, tolerance)
            recorded = case["params"].get(str(number), [])
            for leaf, expected in zip(jax.tree.leaves(state.params), recorded, strict=False):
                assert leaf.dtype == dtype
                assert_close(leaf, expected, tolerance)


def test_the_record_covers_every_setting_and_really_trains():
    cases = RECORD["cases"]
    assert {case["activation"] for case in cases} == set(disk.ACTIVATIONS)
    assert {case["reduction"] for case in cases} == {"mean", "sum", "batchmean"}
    for setting in ("momentum", "nesterov", "weight_decay"):
        assert {bool(case[setting]) for case in cases} == {False, True}
    for case in cases:
        assert list(case["params"]) == ["1", "3", "6"]
        for recorded in case["params"].values():
            assert len(recorded) == len(RECORD["initial"]) == 6
            assert recorded != RECORD["initial"]
