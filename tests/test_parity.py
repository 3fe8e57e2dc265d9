"""fnn gives the numbers that tests/record_pytorch.py recorded from PyTorch."""

import functools
import json
import pathlib
import re

import chex
import jax
import pytest
from cases import numpy_array, with_key

import fnn

RECORD = json.loads((pathlib.Path(__file__).parent / "data" / "pytorch.json").read_text())


def layers(layer, params, x, dy):
    y, residuals = layer.forward(params, x)
    grads, dx = layer.backward(params, residuals, dy)
    return {"y": y, "grads": grads, "dx": dx}


def losses(loss, prediction, target):
    value, residuals = loss.forward(prediction, target)
    return {"value": value, "d_prediction": loss.backward(residuals)}


def optimizers(optimizer, params, grads):
    def update(carry, grads):
        params, state = optimizer.update(grads, carry[1], carry[0])
        return (params, state), params

    _, params = jax.lax.scan(update, (params, optimizer.init(params)), grads)
    return {"params": params}


def trainings(parts, params, x, target):
    train_step = fnn.make_train_step(*parts)

    def step(state, batch):
        state, value = train_step(state, *batch)
        return state, (value, state.params)

    state = fnn.TrainState(params, parts[-1].init(params))
    state, (values, params) = jax.lax.scan(step, state, (x, target))
    first = jax.tree.map(lambda leaf: leaf[0], params)
    return {"losses": values, "first": first, "last": state.params}


def schedules(schedule, steps):
    return {"rates": jax.vmap(schedule)(steps)}


KINDS = (layers, losses, optimizers, trainings, schedules)


def make(case):
    return eval(case["expression"], vars(fnn) | {"in_training": with_key})


def arrays(recorded, dtype):
    """Dictionaries of arrays, in tuples for the parameters of several layers."""
    if isinstance(recorded, dict):
        return {name: arrays(part, dtype) for name, part in recorded.items()}
    if recorded == [] or (isinstance(recorded, list) and isinstance(recorded[0], dict)):
        return tuple(arrays(part, dtype) for part in recorded)
    are_integers = all(isinstance(number, int) for number in jax.tree.leaves(recorded))
    return numpy_array(recorded, dtype.replace("float", "int") if are_integers else dtype)


@functools.cache
def outputs(kind, dtype):
    """What fnn computes for all recorded cases of a kind, by one program."""
    cases = RECORD[kind.__name__]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def compute(inputs):
        return [kind(make(case), **part) for case, part in zip(cases, inputs, strict=True)]

    return compute([arrays(case["inputs"], dtype) for case in cases])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param(kind, number, id=case["expression"])
        for kind in KINDS
        for number, case in enumerate(RECORD[kind.__name__])
    ],
)
def test_fnn_gives_what_pytorch_gave(kind, number, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        actual = outputs(kind, dtype)[number]
        recorded = arrays(RECORD[kind.__name__][number]["outputs"], dtype)
        chex.assert_trees_all_equal_shapes_and_dtypes(actual, recorded)
        pairs = zip(*map(jax.tree.leaves, (jax.device_get(actual), recorded)), strict=True)
        for ours, theirs in pairs:
            assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()


def names(kind):
    return {name for case in RECORD[kind] for name in re.findall(r"(\w+)\(", case["expression"])}


def test_the_record_covers_every_layer_loss_optimizer_and_schedule():
    types = {"Layer", "Loss", "Optimizer", "TrainState"}
    types |= {"Epoch", "Fit", "Interrupted", "NotFiniteError"}
    not_in_pytorch = {"Standardize", "PositionalEmbedding", "LastStep"}
    constructors = {name for name in fnn.__all__ if name[0].isupper()} - types - not_in_pytorch
    assert names("layers") | names("losses") == constructors | {"in_training", "reverse_time"}
    assert names("optimizers") | names("trainings") >= {
        "adagrad", "adam", "clip_by_global_norm", "only", "rmsprop", "sgd", "with_l2",
    }  # fmt: skip
    assert names("schedules") == {
        "constant", "cosine_decay", "exponential_decay", "linear_decay", "one_cycle",
        "piecewise_constant", "warmup",
    }  # fmt: skip
    for name in names("losses"):
        expressions = [case["expression"] for case in RECORD["losses"]]
        reductions = {re.search(f"^{name}.*reduction='(\\w+)'", text) for text in expressions}
        assert {match[1] for match in reductions - {None}} >= {"mean", "sum"}


def test_the_recorded_trainings_cover_sgd_and_really_train():
    for case in RECORD["trainings"]:
        first, last = case["outputs"]["first"], case["outputs"]["last"]
        assert case["inputs"]["params"] != first != last
    expressions = " ".join(case["expression"] for case in RECORD["trainings"])
    assert set(re.findall(r"MSELoss\('(\w+)'\)", expressions)) == {"mean", "sum", "batchmean"}
    assert {"momentum", "nesterov", "weight_decay"} == set(re.findall(r"(\w+)=", expressions))
