"""Measure what training costs: steps, epochs, layers, many networks, start-up, compilation.

In each table the candidates take turns, so that a drift of the machine's speed hits all of them
alike. A figure is the median over the rounds, of calls that wait for their result. PyTorch, where
it is installed, is measured on the same device. An accelerator gets larger arrays than a CPU.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared import measure
from shared.command_line import Parser, leave, positive_int, run, tell, write_text
from shared.measure import compare, on_cpu

import fnn

REPORT = [2, 25, 25, 25, 2]


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
    layers = []
    for dim_in, dim_out in pairwise(widths):
        layers += [fnn.Linear(dim_in, dim_out), fnn.LeakyReLU()]
    model = fnn.Sequential(*layers[:-1], fnn.Sigmoid())
    loss, optimizer = fnn.MSELoss(), fnn.sgd(0.01)
    start = functools.partial(fnn.init_train_state, model, optimizer)
    keys = jax.random.split(jax.random.key(0))
    shapes = (num_examples, widths[0]), (num_examples, widths[-1])
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


def torch_epoch(widths, x, target, batch_size, *, threads=1, compiled=False, graph=False):
    """A call that runs one epoch of PyTorch's own training, shuffled, on the device of JAX."""
    import torch

    device = "cpu" if on_cpu() else "cuda"
    torch.manual_seed(0)
    layers = []
    for dim_in, dim_out in pairwise(widths):
        layers += [torch.nn.Linear(dim_in, dim_out), torch.nn.LeakyReLU()]
    network = torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid()).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    x, target = (torch.tensor(jax.device_get(array), device=device) for array in (x, target))

    if compiled:
        network = torch.compile(network)

    def step(x, target):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x), target).backward()
        optimizer.step()

    if graph:  # the step is recorded once and replayed on the same two arrays
        batch = x[:batch_size].clone(), target[:batch_size].clone()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # PyTorch records after a warm-up on another
            step(*batch)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            step(*batch)

        def step(*new):
            for old, part in zip(batch, new, strict=True):
                old.copy_(part)
            recorded.replay()

    def epoch():
        torch.set_num_threads(threads)
        order = torch.randperm(len(x), device=device)
        batches = x[order].split(batch_size), target[order].split(batch_size)
        for part in zip(*batches, strict=True):
            step(*part)
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch


def torch_candidates(*arguments):
    """PyTorch's epochs by name: those that work here."""
    if "torch" not in measure.describe_machine():
        return {}
    cores = os.cpu_count()
    settings = {"eager": {}, "CUDA graph": {"graph": True}}
    if on_cpu():
        settings = {"1 thread": {}, f"{cores} threads": {"threads": cores}}
        settings["torch.compile"] = {"compiled": True}
    candidates = {}
    for name, setting in settings.items():
        try:
            epoch = torch_epoch(*arguments, **setting)
            epoch()
        except Exception as error:
            print(f"  PyTorch, {name} does not work here: {type(error).__name__}")
        else:
            candidates[f"PyTorch, {name}"] = epoch
    return candidates


def measure_report_network(rounds):
    """The report's network: a step called from Python, and a step inside an epoch."""
    parts, start, (x, target) = make_training(REPORT, 1000)
    key = jax.random.key(1)
    state, step, bare = start(key), fnn.make_train_step(*parts), jax.jit(bare_step)
    tables = {}
    for batch_size in (1, 10, 100, 1000):
        num_steps = 1000 // batch_size
        calls = max(10, num_steps // 10)

        def several(step, *batch, calls=calls):
            for _ in range(calls):
                result = step(state, *batch)
            return result

        batch, title = (x[:batch_size], target[:batch_size]), f"2-25-25-25-2, batch {batch_size}"
        candidates = {
            "make_train_step": functools.partial(several, step, *batch),
            "the same by hand, jax.jit": functools.partial(several, bare, *batch),
        }
        tables |= compare(f"{title}: one call", "a step", candidates, rounds, calls)
        epoch = fnn.make_train_epoch(*parts, batch_size)
        candidates = {
            "make_train_epoch": functools.partial(epoch, state, x, target, key),
            **torch_candidates(REPORT, x, target, batch_size),
        }
        turns = rounds if batch_size > 1 else rounds // 5
        tables |= compare(f"{title}: in an epoch", "a step", candidates, turns, num_steps)
    return tables


def measure_wide_network(rounds):
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
    title = f"{'-'.join(map(str, widths))}, batch {batch_size}: one step"
    tables = compare(title, "a step", candidates, rounds)
    sizes = [a * b for a, b in pairwise(widths)]
    flops = 2 * batch_size * (3 * sum(sizes) - sizes[0])
    for name, values in tables[title].items():
        print(f"  {name:<30} {flops / statistics.median(values) / 1e9:12.1f} GFLOP/s")
    return tables


def measure_many_networks(rounds):
    """N networks trained at once by vmap: the time for one network's step."""
    parts, start, data = make_training(REPORT, 1000)
    tables = {}
    for batch_size in (1, 10, 100):
        epoch = jax.jit(jax.vmap(fnn.make_train_epoch(*parts, batch_size), (0, None, None, 0)))
        candidates, units = {}, {}
        for count in (1, 10, 100) if on_cpu() else (1, 100, 1000, 10000):
            keys = jax.random.split(jax.random.key(0), count)
            call = functools.partial(epoch, jax.jit(jax.vmap(start))(keys), *data, keys)
            candidates[f"{count} at once"] = call
            units[f"{count} at once"] = count * (1000 // batch_size)
        title = f"2-25-25-25-2 trained by vmap, batch {batch_size}"
        tables |= compare(title, "a network-step", candidates, rounds // 5, units)
    return tables


def measure_start(rounds):
    """Whole processes: importing, importing and one step, the main job."""
    script = pathlib.Path(__file__).with_name("train_disk.py")
    one_step = """
import fnn, jax
parts, x = (fnn.Linear(2, 2), fnn.MSELoss(), fnn.sgd(0.1)), jax.numpy.ones((4, 2))
state = fnn.init_train_state(parts[0], parts[2], jax.random.key(0))
fnn.make_train_step(*parts)(state, x, x)"""
    # This process has taken most of the memory of a GPU.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def start(*arguments):
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, capture_output=True, env=environment)

    with tempfile.TemporaryDirectory() as folder:
        candidates = {
            "train_disk.py": lambda: start(script, "--quiet", "--output", folder),
            "import fnn": lambda: start("-c", "import fnn"),
            "import, one step": lambda: start("-c", one_step),
        }
        return compare("Whole processes", "a process", candidates, rounds // 8, warm_up=0)


def measure_compilation(rounds):
    """Tracing and compiling a training step, by the number of layers."""
    tables = {}
    for depth in (4, 16, 64):
        parts, start, batch = make_training([32] * (depth + 1), 8)
        state = start(jax.random.key(0))

        def lower(parts=parts, state=state, batch=batch):
            return fnn.make_train_step(*parts).lower(state, *batch)

        candidates = {"trace, lower": lower, "trace, lower, compile": lambda f=lower: f().compile()}
        title = f"{depth} Linear layers of width 32: before the first step"
        tables |= compare(title, "a network", candidates, rounds // 8, warm_up=0)
    return tables


GROUPS = {
    "report": measure_report_network,
    "wide": measure_wide_network,
    "layers": measure.layers,
    "many": measure_many_networks,
    "start": measure_start,
    "compile": measure_compilation,
}


def benchmark(options):
    """Measure the groups that the options name. Returns the exit status."""
    machine = measure.describe_machine()
    print("\n".join(f"{name:<10} {value}" for name, value in machine.items()))
    if "torch" not in machine:
        print("PyTorch is not installed, and not measured")
    if on_cpu():
        print("there is no accelerator: more than 100 networks at once are not measured")
    groups, status = {}, 0
    for name in options.groups:
        try:
            groups[name] = GROUPS[name](options.rounds)
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
