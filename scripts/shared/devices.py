"""The devices that a script trains on: one, or all devices of all processes."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
from shared import distributed
from shared.command_line import UserError

import fnn


def describe() -> str:
    """The devices of the run, as text."""
    device, count, processes = jax.devices()[0], jax.device_count(), jax.process_count()
    text = f"{device.platform} ({device.device_kind})"
    text = f"{count} x {text}" if count > 1 else text
    return f"{processes} processes, {text}" if processes > 1 else text


def count(options: argparse.Namespace) -> int:
    """The number of devices among which examples are divided."""
    return jax.device_count() if distributed.uses_all_devices(options) else 1


def check_divided(options: argparse.Namespace) -> None:
    """Raise UserError if the devices do not divide a batch or the number of training points."""
    for name in ("batch_size", "train_size"):
        value = vars(options).get(name, 0)
        if value % count(options):
            raise UserError(
                f"argument --{name.replace('_', '-')}: expected a multiple of the "
                f"{count(options)} devices, got {value}"
            )


def place(options: argparse.Namespace, tree: Any) -> Any:
    """The tree on every device that is used."""
    all_devices = distributed.uses_all_devices(options)
    return fnn.replicate(fnn.data_parallel_mesh(), tree) if all_devices else tree


def place_examples(
    options: argparse.Namespace,
    arrays: tuple[jax.Array, ...],
    load: Callable[..., Any] = lambda *arrays: arrays,
) -> Any:
    """load(*arrays), divided among the devices that are used.

    Shapes: arrays (n, ...), which every process has.

    Each process loads its own part. If the number of devices does not divide n, each loads all. If
    one raises UserError, all do.
    """
    processes, index = jax.process_count(), jax.process_index()
    is_divided = not any(len(array) % count(options) for array in arrays)
    if is_divided:
        arrays = [array.reshape(processes, -1, *array.shape[1:])[index] for array in arrays]
    with distributed.together(options.epoch_timeout):
        loaded = load(*arrays)
    if is_divided and distributed.uses_all_devices(options):
        return fnn.shard_batch(fnn.data_parallel_mesh(), loaded)
    return place(options, loaded)
