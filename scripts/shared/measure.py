"""Measure candidates that take turns, and print a table of them."""

import functools
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import jax
import jax.numpy as jnp

import fnn

LAYERS = (
    "Softmax() LogSoftmax() LayerNorm(1024) RMSNorm(1024) ReLU() LeakyReLU() ELU() GELU() SiLU() "
    "Softplus() Tanh() Sigmoid() MaxPool2d(2) AvgPool2d(2)"
)


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def describe_machine() -> dict[str, str]:
    """What the figures depend on; torch is there if PyTorch is installed."""
    device = jax.devices()[0]
    has_torch = importlib.util.find_spec("torch") is not None
    return {
        "device": f"{device.platform} ({device.device_kind})",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        **({"torch": metadata.version("torch")} if has_torch else {}),
    }


def take_turns(candidates: dict[str, Callable], rounds: int, warm_up: float) -> dict[str, list]:
    """Seconds of each candidate's calls, which take turns; a call returns what it waits for.

    A turn begins with unmeasured calls for `warm_up` seconds. In this time the processor wakes up,
    and the threads of the candidate before it stop waiting actively. With a warm-up, the first turn
    of each candidate is not measured either.
    """
    seconds = {name: [] for name in candidates}
    for turn in range(0 if warm_up else 1, rounds + 1):
        for name, call in candidates.items():
            turn_began = started = time.perf_counter()
            while started - turn_began < warm_up:
                jax.block_until_ready(call())
                started = time.perf_counter()
            jax.block_until_ready(call())
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(title, unit, candidates, rounds, units=1, warm_up=0.02):
    """Measure the candidates; print their medians and the ratios of these to the first one's.

    A call does `units` of what is compared, or units[name]. Returns, by the title, for each
    candidate the seconds that one unit took in each round.
    """
    print(f"\n{title}")
    units = units if isinstance(units, dict) else dict.fromkeys(candidates, units)
    turns = take_turns(candidates, max(1, rounds), warm_up)
    table = {name: [value / units[name] for value in values] for name, values in turns.items()}
    medians = {name: statistics.median(values) for name, values in table.items()}
    first = next(iter(medians.values()))
    scale, symbol = (1e6, "us") if first < 1e-3 else (1e3, "ms")
    for name, median in medians.items():
        ratio = f"x {median / first:.2f}"
        print(f"  {name:<30} {scale * median:10.2f} {symbol} {unit}  {ratio}", flush=True)
    return {title: table}


def layers(rounds):
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
        for call, title in zip(calls, ("forward", "both passes"), strict=True):
            arrays = jax.tree.leaves((call.args, jax.eval_shape(call)))
            candidates[f"{name}, {title}"] = call
            units[f"{name}, {title}"] = sum(a.size for a in arrays) / (2 * array.size)
    title = f"Layers over {array.nbytes / 2**20:.0f} MiB"
    return compare(title, "a copy's bytes", candidates, rounds // 3, units)
