"""What a GPU runs, and what a CPU does not: first what a CPU can test of it, then the rest."""

import os
import pathlib
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, VARIANTS, layer_inputs
from compile_for_gpu import kernels
from shared.host import jit_on_host
from test_train_mnist import draw_set, write

import fnn

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"
ENVIRONMENT = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # each compiles for itself

on_a_gpu = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="only on a GPU may two processes compile other programs"
)


@pytest.fixture
def branches(monkeypatch):
    """How often the branch for other devices than a CPU was taken, which a CPU takes now too."""
    taken = []

    def platform_dependent(*args, cpu, default):
        taken.append(default)
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", platform_dependent)
    return taken


NAMES = ["Conv2d-groups", "LogSoftmax", "LogSoftmax-axis-2", "Softmax", "Softmax-axis-2"]
NAMES += ["GELU", "GELU-tanh", "Mish", "PositionalEmbedding", "SiLU"]


@pytest.mark.parametrize("name", NAMES)
def test_a_layers_branch_for_a_gpu_matches_jax_vjp(name, branches):
    with jax.enable_x64(True):
        layer, params, x, dy = layer_inputs({**LAYERS, **VARIANTS}[name], dtype=jnp.float64)
        y, residuals = layer.forward(params, x)
        by_hand = y, layer.backward(params, residuals, dy)
        assert branches
        y, vjp = jax.vjp(lambda *args: layer.forward(*args)[0], params, x)
        chex.assert_trees_all_close(by_hand, (y, vjp(dy)), rtol=1e-10, atol=1e-14)


def test_second_moments_for_a_gpu_are_the_sums_of_squares(branches):
    with jax.enable_x64(True):
        layer, *inputs = layer_inputs(LAYERS["Conv2d"], dtype=jnp.float64)

        def grads_of(layer, params, x, dy):
            return layer.backward(params, layer.forward(params, x)[1], dy)[0]

        moments = grads_of(fnn.second_moments(layer), *inputs)
        assert branches
        each = grads_of(fnn.per_example(layer), *inputs)
        expected = jax.tree.map(lambda g: jnp.sum(jnp.square(g), axis=0), each)
        chex.assert_trees_all_close(moments, expected, rtol=1e-10)


def test_a_short_program_runs_on_the_cpu_and_its_results_lie_on_the_gpu(monkeypatch):
    """The devices are CPU devices that stand for a GPU and a CPU."""
    devices = dict(zip(("gpu", "cpu"), jax.devices("cpu"), strict=False))
    moves, device_put = [], jax.device_put

    def watched_device_put(tree, device):
        moves.extend((*leaf.devices(), device) for leaf in jax.tree.leaves(tree))
        return device_put(tree, device)

    def draw(key, x):
        return x + jax.random.normal(key, x.shape)

    args = jax.device_put((jax.random.key(0), jnp.ones(3)), devices["gpu"])
    expected = jax.jit(draw)(*args)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend="gpu": [devices[backend]])
    monkeypatch.setattr(jax, "device_put", watched_device_put)
    y = jit_on_host(draw)(*args)
    there, back = (devices["gpu"], devices["cpu"]), (devices["cpu"], devices["gpu"])
    assert moves == [there, there, back]
    assert y.devices() == {devices["gpu"]}
    assert jnp.allclose(y, expected, atol=1e-6)


def test_a_short_program_runs_on_the_gpu_where_jax_has_no_cpu(monkeypatch):
    def local_devices(backend="gpu"):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert jit_on_host(jnp.square)(3.0) == 9


def text_for_a_gpu(function, *args):
    """The program before XLA compiles it."""
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_kernel_of_a_convolutions_dx_is_flipped_last(groups):
    """So XLA recognizes a dx, and calls cuDNN's program, which reads no dy with zeros between."""
    layer = fnn.Conv2d(8, 8, 3, stride=2, groups=groups)
    params = jax.eval_shape(layer.init, jax.random.key(0))
    x, dy = (jax.ShapeDtypeStruct((4, size, size, 8), jnp.float32) for size in (9, 4))
    program = text_for_a_gpu(lambda *args: layer.backward(*args)[1], params, x, dy)
    (kernel,) = re.findall(r"(%\w+) = stablehlo.reverse", program)
    assert re.findall(r"stablehlo.convolution\(%\w+, (%\w+)\)", program) == [kernel]


@pytest.mark.parametrize("layer", [fnn.Softmax(), fnn.LogSoftmax()], ids=repr)
def test_a_softmaxs_backward_begins_with_a_division_by_the_sum(layer):
    """Of that XLA makes one kernel."""
    y = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    program = text_for_a_gpu(lambda y, dy: layer.backward((), y, dy), y, y)
    assert program.count("stablehlo.divide") == 1
    assert program.index("optimization_barrier") < program.index("stablehlo.divide")


def test_what_a_gpu_computes_again_and_how_it_stores_dy():
    """The barriers of GELU and LayerNorm, and the layout of PositionalEmbedding's dy."""
    x = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)
    gate = text_for_a_gpu(lambda x, dy: fnn.GELU().backward((), x, dy), x, x)
    assert gate.count("optimization_barrier") == 1
    norm, position = fnn.LayerNorm(8), fnn.PositionalEmbedding(4, 8)
    params, table = (jax.eval_shape(layer.init, jax.random.key(0)) for layer in (norm, position))
    assert text_for_a_gpu(norm.forward, params, x).count("optimization_barrier") == 1

    def backward(params, x, dy):
        return position.backward(params, position.forward(params, x)[1], dy)

    program = text_for_a_gpu(backward, table, x, x)
    assert re.search(r"@LayoutConstraint.*result_layouts = \[dense<\[2, 1, 0\]>", program)


def test_the_bytes_of_kernels_are_counted():
    program = """
%fused (p.0: f32[2,3]) -> (f32[2,3], bf16[3]) {
  %p.0 = f32[2,3]{1,0} parameter(0)
}

ENTRY %main.3 (x.1: f32[2,3]) -> (f32[2,3], bf16[3]) {
  %x.1 = f32[2,3]{1,0} parameter(0), metadata={op_name="x"}
  %constant.1 = s32[] constant(1)
  %both = (f32[2,3]{1,0}, bf16[3]{0}) fusion(%x.1, %constant.1), kind=kLoop, calls=%fused
  %first = f32[2,3]{1,0} get-tuple-element(%both), index=0
  %copy.1 = f32[2,3]{0,1} copy(%first)
  ROOT %tuple.1 = (f32[2,3]{1,0}) tuple(%copy.1)
}
"""
    assert kernels(program) == [24 + 4 + 24 + 6, 24 + 24]


def train_twice(folder, script, *arguments):
    """The bytes of params.npz of two runs, each in a process of its own."""
    for output in (folder / "first", folder / "second"):
        command = [sys.executable, SCRIPTS / script, *arguments, "--quiet", "--output", output]
        subprocess.run(command, env=ENVIRONMENT, check=True)
        yield (output / "params.npz").read_bytes()


@on_a_gpu
def test_train_disk_gives_the_same_bits_twice(tmp_path):
    first, second = train_twice(tmp_path, "train_disk.py", "--epochs", "20", "--seed", "3")
    assert first == second


@on_a_gpu
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_train_mnist_gives_the_same_bits_twice(tmp_path, model):
    write(tmp_path, *draw_set(1, 2000, 28, 28), *draw_set(2, 200, 28, 28))
    arguments = "--data", tmp_path, "--model", model, "--epochs", "3"
    first, second = train_twice(tmp_path, "train_mnist.py", *arguments)
    assert first == second
