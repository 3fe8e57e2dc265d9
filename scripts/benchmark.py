"""Measure what training costs: steps, epochs, many networks, start-up, compilation.

Within each group the candidates take turns, so that a drift of the machine's speed hits all of
them alike; every figure is the median over the rounds, after a warm-up, of calls that wait for
their result. PyTorch is measured beside fnn where it is installed.
"""

import functools
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
from shared.command_line import Parser, leave, positive_int, run, write_text

import fnn

HAS_TORCH = importlib.util.find_spec("torch") is not None
REPORT, WIDE = [2, 25, 25, 25, 2], [784, 1024, 1024, 10]


def parse_options(arguments=None):
    parser = Parser("Measure what training costs in fnn, and beside it in PyTorch if installed.")
    option = parser.add_argument
    option("--rounds", type=positive_int, default=25, help="measurements of each candidate")
    option("--json", type=pathlib.Path, metavar="FILE", help="write every measurement here")
    option(
        "--groups",
        nargs="+",
        choices=GROUPS,
        default=list(GROUPS),
        metavar="GROUP",
        help=f"what to measure, of {', '.join(GROUPS)}",
    )
    options = parser.parse_args(arguments)
    if options.json is not None:
        parser.check_output(options.json.parent, [options.json.name], "--json")
    return options


def take_turns(candidates: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate's calls, which take turns; a call returns what it waits for.

    A turn begins with unmeasured calls for 20 ms, in which the processor wakes up and the threads
    of the candidate before, which may spin for a while, fall asleep.
    """
    seconds = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            turn_began = started = time.perf_counter()
            while started - turn_began < 0.02:
                jax.block_until_ready(call())
                started = time.perf_counter()
            jax.block_until_ready(call())
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def repeated(call: Callable, count: int) -> Callable:
    """A call that calls `count` times and waits for the last."""

    def calls():
        for _ in range(count):
            result = call()
        return result

    return calls


def make_model(widths, activation=fnn.LeakyReLU):
    layers = []
    for dim_in, dim_out in pairwise(widths):
        layers += [fnn.Linear(dim_in, dim_out), activation()]
    return fnn.Sequential(*layers[:-1], fnn.Sigmoid())


def make_data(widths, num_examples):
    key_x, key_target = jax.random.split(jax.random.key(0))
    return (
        jax.random.uniform(key_x, (num_examples, widths[0])),
        jax.random.uniform(key_target, (num_examples, widths[-1])),
    )


def bare_step(state, x, target):
    """The report network's training step as one would write it by hand, on the same pytree."""
    first, _, second, _, third, _, fourth, _ = state.params
    h1 = x @ first["W"].T + first["b"]
    h1 = jnp.where(h1 > 0, h1, 0.01 * h1)
    h2 = h1 @ second["W"].T + second["b"]
    h2 = jnp.where(h2 > 0, h2, 0.01 * h2)
    h3 = h2 @ third["W"].T + third["b"]
    h3 = jnp.where(h3 > 0, h3, 0.01 * h3)
    y = 1 / (1 + jnp.exp(-(h3 @ fourth["W"].T + fourth["b"])))
    loss = jnp.mean((y - target) ** 2)
    d4 = 2 / y.size * (y - target) * y * (1 - y)
    d3 = d4 @ fourth["W"]
    d3 = jnp.where(h3 > 0, d3, 0.01 * d3)
    d2 = d3 @ third["W"]
    d2 = jnp.where(h2 > 0, d2, 0.01 * d2)
    d1 = d2 @ second["W"]
    d1 = jnp.where(h1 > 0, d1, 0.01 * d1)
    inputs_and_dys = (x, d1), (), (h1, d2), (), (h2, d3), (), (h3, d4), ()
    grads = tuple({"W": at[1].T @ at[0], "b": at[1].sum(0)} if at else () for at in inputs_and_dys)
    params = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, grads)
    return fnn.TrainState(params, state.opt_state._replace(step=state.opt_state.step + 1)), loss


def torch_training(widths, x, target, batch_size, threads, compiled=False):
    """A call that runs one epoch of PyTorch's own training, shuffled."""
    import torch

    torch.manual_seed(0)
    layers = []
    for dim_in, dim_out in pairwise(widths):
        layers += [torch.nn.Linear(dim_in, dim_out), torch.nn.LeakyReLU()]
    network = torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid())
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    x, target = (torch.tensor(jax.device_get(array)) for array in (x, target))

    def loss_of(x, target):
        return torch.nn.functional.mse_loss(network(x), target)

    if compiled:
        loss_of = torch.compile(loss_of)

    def epoch():
        torch.set_num_threads(threads)
        order = torch.randperm(len(x))
        batches = x[order].split(batch_size), target[order].split(batch_size)
        for part in zip(*batches, strict=True):
            optimizer.zero_grad()
            loss_of(*part).backward()
            optimizer.step()

    return epoch


def torch_candidates(widths, x, target, batch_size):
    """PyTorch's epochs by name: eager on one and on all threads, compiled where that works."""
    if not HAS_TORCH:
        return {}
    settings = {"PyTorch, 1 thread": (1, False)}
    if os.cpu_count() > 1:
        settings[f"PyTorch, {os.cpu_count()} threads"] = (os.cpu_count(), False)
    settings["PyTorch, torch.compile"] = (1, True)
    candidates = {}
    for name, (threads, compiled) in settings.items():
        epoch = torch_training(widths, x, target, batch_size, threads, compiled)
        try:
            epoch()
        except Exception as error:
            print(f"  {name} does not work here: {type(error).__name__}")
        else:
            candidates[name] = epoch
    return candidates


def report_table(title, unit, seconds, per, baseline):
    """Print medians, each over `per`'s number of units, and their ratio to the baseline's."""
    print(f"\n{title}")
    medians = {name: statistics.median(values) / per[name] for name, values in seconds.items()}
    scale, symbol = (1e6, "us") if medians[baseline] < 1e-3 else (1e3, "ms")
    for name, median in medians.items():
        ratio = median / medians[baseline]
        print(f"  {name:<30} {scale * median:10.2f} {symbol} {unit}  x {ratio:.2f}", flush=True)
    return {name: [value / per[name] for value in values] for name, values in seconds.items()}


def measure_report_network(rounds):
    """The report's network: a step called from Python, and a step inside an epoch."""
    model, loss, optimizer = make_model(REPORT), fnn.MSELoss(), fnn.sgd(0.01)
    x, target = make_data(REPORT, 1000)
    key = jax.random.key(1)
    state = jax.jit(lambda key: fnn.init_train_state(model, optimizer, key))(key)
    step, bare = fnn.make_train_step(model, loss, optimizer), jax.jit(bare_step)
    results = {}
    for batch_size in (1, 10, 100, 1000):
        num_steps = 1000 // batch_size
        batch = x[:batch_size], target[:batch_size]
        calls = max(10, num_steps // 10)
        candidates = {
            "make_train_step": repeated(lambda batch=batch: step(state, *batch), calls),
            "the same by hand, jax.jit": repeated(lambda batch=batch: bare(state, *batch), calls),
        }
        title = f"2-25-25-25-2, batch {batch_size}: one step, called from Python"
        results[f"call, batch {batch_size}"] = report_table(
            title,
            "a step",
            take_turns(candidates, rounds),
            dict.fromkeys(candidates, calls),
            "make_train_step",
        )
        epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size)
        candidates = {
            "make_train_epoch": lambda epoch=epoch: epoch(state, x, target, key),
            **torch_candidates(REPORT, x, target, batch_size),
        }
        title = f"2-25-25-25-2, batch {batch_size}: a step inside an epoch of 1000 examples"
        turns = take_turns(candidates, max(3, rounds if batch_size > 1 else rounds // 5))
        results[f"epoch, batch {batch_size}"] = report_table(
            title, "a step", turns, dict.fromkeys(candidates, num_steps), "make_train_epoch"
        )
    return results


def measure_wide_network(rounds):
    """784-1024-1024-10 at batch 256, beside the products alone that a step is made of."""
    batch_size, num_examples = 256, 1024
    model, loss, optimizer = make_model(WIDE), fnn.MSELoss(), fnn.sgd(0.01)
    x, target = make_data(WIDE, num_examples)
    state = jax.jit(lambda key: fnn.init_train_state(model, optimizer, key))(jax.random.key(1))
    step = fnn.make_train_step(model, loss, optimizer)

    @jax.jit
    def products(x, hidden, weights):
        """The eight products of a step: y and dW for every layer, dx for all but the first."""
        y1, y2, y3 = (h @ W.T for h, W in zip((x, *hidden[:2]), weights, strict=True))
        grads = (y1.T @ x, y2.T @ hidden[0], y3.T @ hidden[1])
        return y1, y2, y3, *grads, y3 @ weights[2], y2 @ weights[1]

    weights = [p["W"] for p in state.params if p]
    hidden = [jnp.ones((batch_size, width)) for width in WIDE[1:]]
    batch = x[:batch_size], target[:batch_size]
    candidates = {
        "make_train_step": lambda: step(state, *batch),
        "its matrix products alone": lambda: products(batch[0], hidden, weights),
        **torch_candidates(WIDE, *batch, batch_size),
    }
    turns = take_turns(candidates, rounds)
    title = "784-1024-1024-10, batch 256: one step"
    table = report_table(
        title, "a step", turns, dict.fromkeys(candidates, 1), "its matrix products alone"
    )
    sizes = [a * b for a, b in pairwise(WIDE)]
    flops = 2 * batch_size * (3 * sum(sizes) - sizes[0])
    for name, values in table.items():
        print(f"  {name:<30} {flops / statistics.median(values) / 1e9:12.1f} GFLOP/s")
    return {"784-1024-1024-10": table}


def measure_many_networks(rounds):
    """N networks trained at once by vmap: the time for one network's step."""
    model, loss, optimizer = make_model(REPORT), fnn.MSELoss(), fnn.sgd(0.01)
    x, target = make_data(REPORT, 1000)
    results = {}
    for batch_size in (1, 10, 100):
        epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size)
        many = jax.jit(jax.vmap(epoch, (0, None, None, 0)))
        candidates, per = {}, {}
        for count in (1, 10, 100):
            keys = jax.random.split(jax.random.key(0), count)
            states = jax.vmap(lambda key: fnn.init_train_state(model, optimizer, key))(keys)
            name = f"{count} at once"
            candidates[name] = lambda many=many, states=states, keys=keys: many(
                states, x, target, keys
            )
            per[name] = count * (1000 // batch_size)
        turns = take_turns(candidates, max(3, rounds // 5))
        title = f"2-25-25-25-2 trained by vmap, batch {batch_size}"
        results[f"vmap, batch {batch_size}"] = report_table(
            title, "a network-step", turns, per, "1 at once"
        )
    return results


def measure_start(rounds):
    """Whole processes: importing, importing and one step, the main job."""
    scripts = pathlib.Path(__file__).parent
    one_step = (
        "import fnn, jax; model = fnn.Linear(2, 2); sgd = fnn.sgd(0.1); x = jax.numpy.ones((4, 2));"
        "state = fnn.init_train_state(model, sgd, jax.random.key(0));"
        "fnn.make_train_step(model, fnn.MSELoss(), sgd)(state, x, x)"
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "import fnn": ["-c", "import fnn"],
            "import, one step": ["-c", one_step],
            "train_disk.py": [str(scripts / "train_disk.py"), "--quiet", "--output", folder],
        }

        def start(command):
            subprocess.run([sys.executable, *command], check=True, capture_output=True)

        candidates = {name: functools.partial(start, command) for name, command in commands.items()}
        turns = take_turns(candidates, max(3, rounds // 8))
    per = dict.fromkeys(candidates, 1)
    return {"start": report_table("Whole processes", "a process", turns, per, "train_disk.py")}


def measure_compilation(rounds):
    """Tracing and compiling a training step, by the number of layers."""
    results = {}
    for depth in (4, 16, 64):
        model, loss, optimizer = make_model([32] * (depth + 1)), fnn.MSELoss(), fnn.sgd(0.01)
        state = fnn.init_train_state(model, optimizer, jax.random.key(0))
        x = jnp.ones((8, 32))
        lowerings, compilations = [], []
        for _ in range(max(3, rounds // 8)):
            step = fnn.make_train_step(model, loss, optimizer)
            started = time.perf_counter()
            lowered = step.lower(state, x, x)
            lowerings.append(time.perf_counter() - started)
            started = time.perf_counter()
            lowered.compile()
            compilations.append(time.perf_counter() - started)
        turns = {"trace and lower": lowerings, "compile": compilations}
        title = f"{depth} Linear layers of width 32: before the first step"
        results[f"depth {depth}"] = report_table(
            title, "a network", turns, dict.fromkeys(turns, 1), "compile"
        )
    return results


GROUPS = {
    "report": measure_report_network,
    "wide": measure_wide_network,
    "many": measure_many_networks,
    "start": measure_start,
    "compile": measure_compilation,
}


def describe_machine():
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    if HAS_TORCH:
        import torch

        versions["torch"] = torch.__version__
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
        **versions,
    }


def benchmark(options):
    """Measure the groups that the options name. Returns the exit status."""
    machine = describe_machine()
    print("\n".join(f"{name:<10} {value}" for name, value in machine.items()))
    if not HAS_TORCH:
        print("PyTorch is not installed, and not measured")
    groups = {name: GROUPS[name](options.rounds) for name in options.groups}
    if options.json is not None:
        record = {"machine": machine, "unit": "seconds", "groups": groups}
        write_text(options.json, json.dumps(record, indent=1) + "\n")
    return 0


def main(arguments=None):
    return run(benchmark, parse_options(arguments))


if __name__ == "__main__":
    leave(main())
