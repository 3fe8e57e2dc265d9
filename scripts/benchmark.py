"""Measure what training costs: steps, epochs, layers, many networks, start-up, compilation.

In each table the candidates take turns, so that a drift of the machine's speed hits all of them
alike. A figure is the median over the rounds, of calls that wait for their result. PyTorch, where
it is installed, is measured on the same device. An accelerator gets larger arrays than a CPU.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -I does not look there
from shared.interrupts import die_of_interrupts

if __name__ == "__main__":
    die_of_interrupts()  # until run handles them

import functools
import json
import pathlib
import subprocess
import tempfile
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared import disk, pytorch
from shared.command_line import Parser, leave, positive_int, run, tell
from shared.measure import Table, describe_machine, measure, on_cpu

import fnn
from fnn.files import write_text

REPORT = [2, 25, 25, 25, 2]
LAYERS = (
    "Softmax() LogSoftmax() LayerNorm(1024) RMSNorm(1024) ReLU() LeakyReLU() ELU() GELU() SiLU() "
    "Softplus() Tanh() Sigmoid() MaxPool2d(2) AvgPool2d(2)"
)
ONE_STEP = """
import fnn, jax
parts, x = (fnn.Linear(2, 2), fnn.MSELoss(), fnn.sgd(0.1)), jax.numpy.ones((4, 2))
state = fnn.init_train_state(parts[0], parts[2], jax.random.key(0))
fnn.make_train_step(*parts)(state, x, x)"""


def parse_options(arguments=None):
    parser = Parser("Measure what training costs in fnn, and beside it in PyTorch if installed.")
    option = parser.add_argument
    option("--rounds", type=positive_int, default=25, help="measurements of each candidate")
    option("--json", type=pathlib.Path, metavar="FILE", help="write every measurement here")
    option("--groups", nargs="+", choices=GROUPS, default=[*GROUPS], help="what to measure")
    options = parser.parse_args(arguments)
    if options.json is not None:
        parser.check_output(options.json.parent, [options.json.name], "--json")
    return options


def make_training(widths, num_examples):
    """(model, loss, optimizer), a function key -> state, and (x, target)."""
    dim_in, *hidden, dim_out = widths
    model = disk.make_network(hidden, "leaky_relu", dim_in, dim_out)
    loss, optimizer = fnn.MSELoss(), fnn.sgd(0.01)
    start = functools.partial(fnn.init_train_state, model, optimizer)
    keys = jax.random.split(jax.random.key(0))
    shapes = (num_examples, dim_in), (num_examples, dim_out)
    data = [jax.random.uniform(*pair) for pair in zip(keys, shapes, strict=True)]
    return (model, loss, optimizer), start, data


def bare_step(state, x, target):
    """The report network's training step as one would write it by hand, on the same pytree."""
    inputs, h = {}, x
    for index, layer in enumerate(state.params):
        if layer:
            inputs[index] = h
            z = h @ layer["W"].T + layer["b"]
            h = jnp.where(z > 0, z, 0.01 * z)
    y = 1 / (1 + jnp.exp(-z))
    dz = 2 / y.size * (y - target) * y * (1 - y)
    params = [*state.params]
    for index, h in reversed(inputs.items()):
        W, b = params[index]["W"], params[index]["b"]
        params[index] = {"W": W - 0.01 * dz.T @ h, "b": b - 0.01 * dz.sum(0)}
        dh = dz @ W
        dz = jnp.where(h > 0, dh, 0.01 * dh)
    opt_state = state.opt_state._replace(step=state.opt_state.step + 1)
    return fnn.TrainState(tuple(params), opt_state), jnp.mean((y - target) ** 2)


def torch_candidates(*arguments):
    """PyTorch's epochs by name: those that work here."""
    if "torch" not in describe_machine():
        return {}
    cores, device = os.cpu_count(), "cpu" if on_cpu() else "cuda"
    settings = {"eager": {}, "CUDA graph": {"graph": True}}
    if on_cpu():
        settings = {"1 thread": {}, f"{cores} threads": {"threads": cores}}
        settings["torch.compile"] = {"compiled": True}
    candidates = {}
    for name, setting in settings.items():
        try:
            epoch = pytorch.make_shuffled_epoch(*arguments, device, **setting)
            epoch()
        except Exception as error:
            print(f"  PyTorch, {name} does not work here: {type(error).__name__}")
        else:
            candidates[f"PyTorch, {name}"] = epoch
    return candidates


def report_network():
    """The report's network: a step called from Python, and a step inside an epoch."""
    parts, start, (x, target) = make_training(REPORT, 1000)
    key = jax.random.key(1)
    state, step, bare = start(key), fnn.make_train_step(*parts), jax.jit(bare_step)
    for batch_size in (1, 10, 100, 1000):
        num_steps = 1000 // batch_size
        calls = max(10, num_steps // 10)

        def several(step, batch, calls=calls):
            for _ in range(calls):
                result = step(state, *batch)
            return result

        batch, title = (x[:batch_size], target[:batch_size]), f"2-25-25-25-2, batch {batch_size}"
        candidates = {
            "make_train_step": functools.partial(several, step, batch),
            "the same by hand, jax.jit": functools.partial(several, bare, batch),
        }
        yield Table(f"{title}: one call", "a step", candidates, calls)
        epoch = fnn.make_train_epoch(*parts, batch_size)
        candidates = {
            "make_train_epoch": functools.partial(epoch, state, x, target, key),
            **torch_candidates(REPORT, x, target, batch_size),
        }
        one_in = 1 if batch_size > 1 else 5
        yield Table(f"{title}: in an epoch", "a step", candidates, num_steps, one_in)


def wide_network():
    """A wide network in float32 and in bfloat16, beside the matrix products of a step alone."""
    width, batch_size = (1024, 256) if on_cpu() else (4096, 4096)
    widths = [784, width, width, 10]
    (model, *parts), start, batch = make_training(widths, batch_size)
    state = start(jax.random.key(1))
    half = fnn.with_compute_dtype(model, jnp.bfloat16)

    @jax.jit
    def products(x, hidden, weights):
        """The eight products of a step: y and dW for every layer, dx for all but the first."""
        y1, y2, y3 = (h @ W.T for h, W in zip((x, *hidden[:2]), weights, strict=True))
        grads = (y1.T @ x, y2.T @ hidden[0], y3.T @ hidden[1])
        return y1, y2, y3, *grads, y3 @ weights[2], y2 @ weights[1]

    weights = [layer["W"] for layer in state.params if layer]
    hidden = [jnp.ones((batch_size, dim)) for dim in widths[1:]]
    candidates = {
        "its matrix products alone": lambda: products(batch[0], hidden, weights),
        "make_train_step": functools.partial(fnn.make_train_step(model, *parts), state, *batch),
        "bfloat16": functools.partial(fnn.make_train_step(half, *parts), state, *batch),
        **torch_candidates(widths, *batch, batch_size),
    }
    sizes = [a * b for a, b in pairwise(widths)]
    flops = 2 * batch_size * (3 * sum(sizes) - sizes[0])
    title = f"{'-'.join(map(str, widths))}, batch {batch_size}: one step"
    yield Table(title, "a step", candidates, flops=flops)


def layers():
    """Layers over a large array: the time for as many bytes as a copy (y = -x) reads and writes."""
    array = jax.random.normal(jax.random.key(0), (2**11 if on_cpu() else 2**18, 1024))
    candidates, units = {"copy": functools.partial(jax.jit(jnp.negative), array)}, {"copy": 1}
    for name in LAYERS.split():
        layer = eval(name, vars(fnn))
        x = array.reshape(-1, 32, 32, 32) if "Pool" in name else array

        @jax.jit
        def forward(params, x, layer=layer):
            return layer.forward(params, x)[0]

        @jax.jit
        def both(params, x, dy, layer=layer):
            y, residuals = layer.forward(params, x)
            return y, layer.backward(params, residuals, dy)

        params = layer.init(jax.random.key(0))
        dy = jnp.ones_like(forward(params, x)) if "Pool" in name else x
        calls = functools.partial(forward, params, x), functools.partial(both, params, x, dy)
        for call, passes in zip(calls, ("forward", "both passes"), strict=True):
            arrays = jax.tree.leaves((call.args, jax.eval_shape(call)))
            candidates[f"{name}, {passes}"] = call
            units[f"{name}, {passes}"] = sum(a.size for a in arrays) / (2 * array.size)
    title = f"Layers over {array.nbytes / 2**20:.0f} MiB"
    yield Table(title, "a copy's bytes", candidates, units, one_in=3)


def many_networks():
    """N networks trained at once by vmap: the time for one network's step."""
    parts, start, data = make_training(REPORT, 1000)
    for batch_size in (1, 10, 100):
        epoch = jax.jit(jax.vmap(fnn.make_train_epoch(*parts, batch_size), (0, None, None, 0)))
        candidates, units = {}, {}
        for count in (1, 10, 100) if on_cpu() else (1, 100, 1000, 10000):
            keys = jax.random.split(jax.random.key(0), count)
            call = functools.partial(epoch, jax.jit(jax.vmap(start))(keys), *data, keys)
            candidates[f"{count} at once"] = call
            units[f"{count} at once"] = count * (1000 // batch_size)
        title = f"2-25-25-25-2 trained by vmap, batch {batch_size}"
        yield Table(title, "a network-step", candidates, units, one_in=5)


def whole_processes():
    """Whole processes: importing, importing and one step, the main job."""
    script = pathlib.Path(__file__).with_name("train_disk.py")
    # This process has taken most of the memory of a GPU.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def start(*arguments):
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    with tempfile.TemporaryDirectory() as folder:
        candidates = {
            "train_disk.py": lambda: start(script, "--quiet", "--output", folder),
            "import fnn": lambda: start("-c", "import fnn"),
            "import, one step": lambda: start("-c", ONE_STEP),
        }
        yield Table("Whole processes", "a process", candidates, one_in=8, warm_up=0)


def compilation():
    """Tracing and compiling a training step, by the number of layers."""
    for depth in (4, 16, 64):
        parts, start, batch = make_training([32] * (depth + 1), 8)
        state = start(jax.random.key(0))

        def lower(parts=parts, state=state, batch=batch):
            return fnn.make_train_step(*parts).lower(state, *batch)

        candidates = {"trace, lower": lower, "trace, lower, compile": lambda f=lower: f().compile()}
        title = f"{depth} Linear layers of width 32: before the first step"
        yield Table(title, "a network", candidates, one_in=8, warm_up=0)


GROUPS = {
    "report": report_network,
    "wide": wide_network,
    "layers": layers,
    "many": many_networks,
    "start": whole_processes,
    "compile": compilation,
}


def benchmark(options):
    """Measure the groups that the options name. Returns the exit status."""
    machine = describe_machine()
    print("\n".join(f"{name:<10} {value}" for name, value in machine.items()))
    if "torch" not in machine:
        print("PyTorch is not installed, and not measured")
    if on_cpu():
        print("there is no accelerator: more than 100 networks at once are not measured")
    groups, status = {}, 0
    for name in options.groups:
        try:
            groups[name] = {table.title: measure(table, options.rounds) for table in GROUPS[name]()}
        except (jax.errors.JaxRuntimeError, subprocess.CalledProcessError) as error:
            tell(f"{name} could not be measured: {str(error).splitlines()[0]}")
            status = 1
    if options.json is not None:
        record = {"machine": machine, "unit": "seconds", "groups": groups}
        write_text(options.json, json.dumps(record, indent=1) + "\n")
    return status


def main(arguments=None):
    return run(benchmark, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
