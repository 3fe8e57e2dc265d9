"""Data parallelism on CPU devices: the same numbers, the work divided, one all-reduce a step."""

import argparse
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, LOSSES, VARIANTS, cast, draw, draw_integers, is_floating, layer_inputs
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from shared import distributed, mnist

import fnn
from fnn import epoch as epoch_module

pytestmark = pytest.mark.usefixtures("on_the_cpu")

AXIS_TYPES = [AxisType.Auto, AxisType.Explicit]
COLLECTIVES = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
model = fnn.Sequential(fnn.Linear(6, 8), fnn.LeakyReLU(), fnn.Linear(8, 3))
mse, optimizer = fnn.MSELoss(), fnn.sgd(fnn.cosine_decay(0.1, 200), momentum=0.5)
step = fnn.make_train_step(model, mse, optimizer)
start = fnn.init_train_state(model, optimizer, jax.random.key(0))
x, target = draw(1, (1600, 6)), draw(2, (1600, 3))


def make_mesh(num_devices, axis_type=AxisType.Auto):
    devices = jax.devices("cpu")[:num_devices]
    return jax.make_mesh((num_devices,), ("data",), (axis_type,), devices=devices)


def place(mesh, state, *arrays):
    """By way of the host, where no program is compiled for the parts."""
    state, arrays = jax.device_get((state, arrays))
    return fnn.replicate(mesh, state), *fnn.shard_batch(mesh, arrays)


def run_steps(state, batch, count):
    """Waits for each step: with more devices than cores, many under way at once could dead-lock."""
    for _ in range(count):
        state, value = jax.block_until_ready(step(state, *batch))
    return jax.device_get((state.params, value))


def assert_close(actual, expected, rtol):
    """Each leaf to rtol of its largest element."""
    actual, expected = jax.device_get((actual, expected))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        chex.assert_trees_all_close(a, b, rtol=0, atol=rtol * abs(b).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_hundred_steps_end_where_one_device_ends(dtype):
    with jax.enable_x64(dtype == "float64"):
        state, *batch = cast((start, x[:48], target[:48]), dtype)
        expected = run_steps(state, batch, 100)
        for mesh in (make_mesh(1), *map(make_mesh, (2, 4, 8), [*AXIS_TYPES, AXIS_TYPES[0]])):
            sharded, *parts = place(mesh, state, *batch)
            actual = run_steps(sharded, parts, 100)
            assert_close(actual, expected, 1e-6 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_a_batch_over_explicit_axes(name):
    layer, params, array, dy = layer_inputs(LAYERS[name], (40,))

    def passes(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    mesh = make_mesh(4, AxisType.Explicit)
    y, (grads, dx) = jax.eval_shape(passes, *place(mesh, params, array, dy))
    assert y.sharding.spec[0] == "data"
    assert not is_floating(dx) or dx.sharding.spec[0] == "data"
    # Constant zeros, which BatchNorm has for the grads of its statistics, may have no sharding.
    shardings = [leaf.sharding for leaf in jax.tree.leaves(grads) if leaf.sharding]
    assert not any(any(sharding.spec) for sharding in shardings)


ON_A_MESH = ["Conv2d-same-strided", "Embedding", "LayerNorm", "Parallel-gate", "LSTM"]


@pytest.mark.parametrize("name", [*ON_A_MESH, "Attention-in-blocks"])
def test_gradients_over_a_mesh_are_those_of_one_device(name):
    layer, params, array, dy = layer_inputs({**LAYERS, **VARIANTS}[name], (8,))

    @jax.jit
    def passes(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    expected = passes(params, array, dy)
    for axis_type in AXIS_TYPES:
        actual = passes(*place(make_mesh(4, axis_type), params, array, dy))
        assert_close(actual, expected, 1e-6)


def test_transforms_run_over_a_mesh():
    block = fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh(), fnn.Dropout(0.5))
    frozen = fnn.Sequential(fnn.clip_gradient(block, 0.1), fnn.freeze(block))
    transformed = [fnn.repeat(fnn.remat(block), 3), fnn.per_example(block), frozen]
    transformed.append(fnn.Residual(fnn.StochasticDepth(block, 0.5)))
    evaluate = {layer: fnn.loss_and_grads(layer, mse) for layer in transformed}
    evaluate[block] = fnn.accumulate_gradients(fnn.loss_and_grads(block, mse), 2)

    @jax.jit
    def run(params, x, target, key):
        return [f(p, x, target, key) for f, p in zip(evaluate.values(), params, strict=True)]

    params = jax.jit(lambda key: [layer.init(key) for layer in evaluate])(jax.random.key(0))
    batch, key = (draw(1, (16, 3)), draw(2, (16, 3))), jax.random.key(1)
    expected = run(params, *batch, key)
    for mesh in (make_mesh(4, axis_type) for axis_type in AXIS_TYPES):
        actual = run(*place(mesh, params, *batch), fnn.replicate(mesh, key))
        assert_close(actual, expected, 1e-6)


def test_parts_of_a_batch_are_taken_where_they_are():
    run = jax.jit(fnn.accumulate_gradients(fnn.loss_and_grads(model, mse), 4))
    args = place(make_mesh(4), start.params, x[:64], target[:64])
    collectives = re.findall(COLLECTIVES, run.lower(*args).compile().as_text())
    assert set(collectives) == {"all-reduce"}


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_takes_a_batch_over_explicit_axes(name, reduction):
    loss = LOSSES[name].make(reduction)

    def passes(prediction, target):
        value, residuals = loss.forward(prediction, target)
        return value, loss.backward(residuals)

    batch = draw(1, (8, 3)), LOSSES[name].target(2, (8, 3))
    value, slopes = jax.eval_shape(passes, *fnn.shard_batch(make_mesh(4, AxisType.Explicit), batch))
    assert (value.sharding.spec, slopes.sharding.spec[0]) == (jax.P(), "data")


def test_an_unshuffled_epoch_takes_every_shard_in_order():
    epoch = fnn.make_train_epoch(model, mse, optimizer, 24, shuffle=False)
    arrays = jax.device_get((x[:80], target[:80]))
    order = [
        20 * shard + i
        for batch in range(4)
        for shard in range(4)
        for i in range(6 * batch, min(6 * batch + 6, 20))
    ]
    expected = epoch(start, *(array[order] for array in arrays))
    for axis_type in AXIS_TYPES:
        actual = epoch(*place(make_mesh(4, axis_type), start, *arrays))
        assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
@pytest.mark.parametrize("most_bytes_to_copy", [0, 2**24])
def test_a_shuffled_epoch_sees_every_example_once(axis_type, most_bytes_to_copy, monkeypatch):
    """The loss of a batch is a number whose bits are the examples in it."""
    monkeypatch.setattr(epoch_module, "MOST_BYTES_TO_COPY", most_bytes_to_copy)
    layer = fnn.Layer(
        lambda key: jnp.zeros(1), lambda p, x, key=None: (x, x), lambda p, x, dy: (0 * p, dy)
    )
    loss = fnn.Loss(lambda y, t: (jnp.sum(jnp.where(y == t, y, 0)), y), jnp.ones_like)
    with jax.enable_x64(True):
        numbers = 2.0 ** jnp.arange(48, dtype=jnp.float64)[:, None]
        epoch = fnn.make_train_epoch(layer, loss, fnn.sgd(0.1), 20)
        state = fnn.init_train_state(layer, fnn.sgd(0.1), jax.random.key(0))
        state, *arrays = place(make_mesh(4, axis_type), state, numbers, numbers)
        runs = [
            [int(value) for value in epoch(state, *arrays, jax.random.key(seed))[1].tolist()]
            for seed in (0, 0, 1)
        ]
    for batches in runs:
        assert sum(batches) == 2**48 - 1
        for batch, size in zip(batches, (5, 5, 2), strict=True):
            shards = [batch >> 12 * shard & 0xFFF for shard in range(4)]
            assert [shard.bit_count() for shard in shards] == [size] * 4
            assert len(set(shards)) > 1
    assert runs[0] == runs[1] != runs[2]


def test_an_epoch_over_a_mesh_of_one_device_is_the_one_without():
    epoch = fnn.make_train_epoch(model, mse, optimizer, 5)
    arguments = start, x[:23], target[:23]
    expected = jax.device_get(epoch(*arguments, jax.random.key(0)))
    for axis_type in AXIS_TYPES:
        actual = epoch(*place(make_mesh(1, axis_type), *arguments), jax.random.key(0))
        chex.assert_trees_all_equal(jax.device_get(actual), expected)


@pytest.fixture(scope="module")
def epoch():
    return fnn.make_train_epoch(model, mse, optimizer, 400)


@pytest.fixture(scope="module")
def flops_of_one(epoch):
    programs = step.lower(start, x, target), epoch.lower(start, x, target, jax.random.key(0))
    return [program.compile().cost_analysis()["flops"] for program in programs]


@pytest.mark.parametrize(("num_devices", "axis_type"), [(2, 0), (4, 1), (8, 0), (8, 1)])
def test_devices_share_the_work_and_exchange_gradients_alone(
    num_devices, axis_type, epoch, flops_of_one
):
    arguments = place(make_mesh(num_devices, AXIS_TYPES[axis_type]), start, x, target)
    programs = step.lower(*arguments), epoch.lower(*arguments, jax.random.key(0))
    for program, alone in zip(programs, flops_of_one, strict=True):
        compiled = program.compile()
        text = compiled.as_text()
        assert compiled.cost_analysis()["flops"] <= 1.1 / num_devices * alone
        assert re.findall(COLLECTIVES, text) == ["all-reduce"]
        (reduced,) = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
        assert count_elements(reduced) == fnn.count_params(start.params) + 1
        sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", text)]
        assert max(sizes) < x.size
        held = compiled.memory_analysis().argument_size_in_bytes
        assert held < (x.nbytes + target.nbytes) / num_devices + 4096


def test_each_device_draws_its_part_of_a_dropout_mask():
    dropout = fnn.Sequential(fnn.Linear(6, 64), fnn.Dropout(0.3), fnn.Linear(64, 3))
    train_step = fnn.make_train_step(dropout, mse, optimizer)
    state = fnn.init_train_state(dropout, optimizer, jax.random.key(0))
    key = jax.random.key(1)
    alone = train_step.lower(state, x, target, key).compile().cost_analysis()["flops"]
    for mesh in (make_mesh(8, axis_type) for axis_type in AXIS_TYPES):
        arguments = (*place(mesh, state, x, target), fnn.replicate(mesh, key))
        compiled = train_step.lower(*arguments).compile()
        assert compiled.cost_analysis()["flops"] <= 1.1 / 8 * alone
        assert re.findall(COLLECTIVES, compiled.as_text()) == ["all-reduce"]


def test_images_are_evaluated_where_they_are(monkeypatch):
    monkeypatch.setattr(mnist, "EVALUATED_AT_ONCE", 5)
    classifier = fnn.Sequential(mnist.Pixels(), fnn.Flatten(), fnn.Linear(16, 3))
    params = classifier.init(jax.random.key(0))
    images, labels = draw_integers(1, (48, 4, 4), 255).astype(jnp.uint8), draw_integers(2, (48,), 3)
    run = jax.jit(functools.partial(mnist.evaluate, classifier))
    expected = run(params, images, labels)
    for axis_type in AXIS_TYPES:
        arguments = place(make_mesh(4, axis_type), params, images, labels)
        program = run.lower(*arguments).compile()
        assert set(re.findall(COLLECTIVES, program.as_text())) == {"all-reduce"}
        assert_close(program(*arguments), expected, 1e-6)


def count_elements(types):
    """The elements of all arrays in a type such as (f32[8,6], f32[])."""
    shapes = re.findall(r"\w\d+\[([\d,]*)\]", types)
    return sum(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)


def test_what_the_devices_do_not_divide_is_refused():
    mesh = make_mesh(4)
    for array in (jnp.ones((6, 2)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"shard_batch: expected .* 4 devices divide, got"):
            fnn.shard_batch(mesh, array)
    epoch = fnn.make_train_epoch(model, mse, optimizer, 6)
    arguments = place(mesh, start, x[:8], target[:8])
    with pytest.raises(ValueError, match=r"4 devices divide, got 6 and 8"):
        epoch(*arguments, jax.random.key(0))
    for wrong in ([], jax.devices("cpu")[:1] * 2):
        with pytest.raises(ValueError, match="data_parallel_mesh: expected different devices"):
            fnn.data_parallel_mesh(wrong)


def test_the_mesh_is_of_all_devices_or_the_given_ones():
    assert [*fnn.data_parallel_mesh().devices.flat] == jax.devices()
    assert [*fnn.data_parallel_mesh(jax.devices("cpu")[2:4]).devices.flat] == jax.devices("cpu")[
        2:4
    ]
    replicated, parts = place(make_mesh(4), start.params, x)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(replicated))
    assert {shard.data.shape for shard in parts.addressable_shards} == {(400, 6)}


def test_axes_that_divide_an_array_are_found_beside_auto_axes():
    types = AxisType.Explicit, AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "model"), types, devices=jax.devices("cpu")[:4])
    for spec, axes in ((PartitionSpec(), ()), (PartitionSpec("data"), ("data",))):
        array = jax.device_put(x[:4], NamedSharding(mesh, spec))
        assert fnn.sharding.sharded_axes(array)[1] == axes


def test_indivisible_examples_are_on_every_device():
    options = argparse.Namespace(data_parallel=True, coordinator=None, num_processes=None)
    options.epoch_timeout = None
    for count, is_whole in ((12, True), (16, False)):  # of eight devices
        (placed,) = distributed.place_examples(options, (jnp.arange(count),))
        assert placed.tolist() == list(range(count))
        assert placed.sharding.is_fully_replicated == is_whole
