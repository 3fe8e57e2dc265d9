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


def make_mesh(options: argparse.Namespace, **divided: int) -> jax.sharding.Mesh | None:
    """The mesh of all devices if they are to be used, else None.

    Raises:
        UserError: the devices do not divide one of the options `divided`, given by name.
    """
    if not distributed.uses_all_devices(options):
        return None
    count = jax.device_count()
    for name, value in divided.items():
        if value % count:
            raise UserError(
                f"argument --{name.replace('_', '-')}: expected a multiple of the {count} devices, "
                f"got {value}"
            )
    return fnn.data_parallel_mesh()


def place(mesh: jax.sharding.Mesh | None, tree: Any) -> Any:
    """The tree replicated over the mesh, if there is one."""
    return tree if mesh is None else fnn.replicate(mesh, tree)


def place_examples(
    timeout: float,
    mesh: jax.sharding.Mesh | None,
    arrays: tuple[jax.Array, ...],
    load: Callable[..., Any] = lambda *arrays: arrays,
) -> Any:
    """load(*arrays), placed over the mesh if there is one.

    Shapes: arrays (n, ...), which every process has.

    Each process loads its own part. If the number of devices does not divide n, each loads all. If
    one raises UserError, all do.
    """
    count, index = jax.process_count(), jax.process_index()
    is_divided = mesh is not None and not any(len(array) % mesh.size for array in arrays)
    if is_divided:
        arrays = [a[len(a) // count * index : len(a) // count * (index + 1)] for a in arrays]
    with distributed.together(timeout):
        loaded = load(*arrays)
    return fnn.shard_batch(mesh, loaded) if is_divided else place(mesh, loaded)
