"""Measure candidates that take turns, and print a table of them."""

import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import jax


class Table(NamedTuple):
    """What is compared. A candidate is a call that returns what is to be waited for."""

    title: str
    unit: str  # of the work whose time is told
    candidates: dict[str, Callable]
    units: float | dict[str, float] = 1  # that a call does, or that each candidate's does
    one_in: int = 1  # of the rounds that the user asks for is measured
    warm_up: float = 0.02  # seconds
    flops: float | None = None  # of a unit


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


def measure(table: Table, rounds: int) -> dict[str, list[float]]:
    """Print each candidate's median time for a unit, and its ratio to the first one's.

    Returns the seconds that one unit took in each round, by candidate.
    """
    print(f"\n{table.title}")
    turns = take_turns(table.candidates, max(1, rounds // table.one_in), table.warm_up)
    units = table.units if isinstance(table.units, dict) else dict.fromkeys(turns, table.units)
    seconds = {name: [value / units[name] for value in values] for name, values in turns.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    scale, symbol = (1e6, "us") if first < 1e-3 else (1e3, "ms")
    for name, median in medians.items():
        ratio = f"x {median / first:.2f}"
        print(f"  {name:<30} {scale * median:10.2f} {symbol} {table.unit}  {ratio}", flush=True)
    for name, median in medians.items() if table.flops else ():
        print(f"  {name:<30} {table.flops / median / 1e9:12.1f} GFLOP/s")
    return seconds
