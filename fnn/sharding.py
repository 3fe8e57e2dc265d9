"""Data parallelism: every device has its part of the examples, and all of the parameters.

The rest is JAX's: jit runs a program over sharded arrays as one on every device, and the sums over
the examples in a backward pass become all-reduces.

    mesh = fnn.data_parallel_mesh()
    state = fnn.replicate(mesh, state)
    x, target = fnn.shard_batch(mesh, (x, target))
    state, losses = epoch(state, x, target, key)
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_parallel_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of the devices along one axis, "data", whose type is Auto.

    All devices if none are given, of all processes. A mesh with Explicit axes will do as well.

    Raises:
        ValueError: no devices, or one of them twice.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"data_parallel_mesh: expected different devices, got {devices}")
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree with all of every array on each device of the mesh.

    Every process of a run of several gives the same tree.
    """
    return _place(mesh, PartitionSpec(), tree)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """The tree of arrays (n, ...) with n / N examples on each of the mesh's N devices.

    N is along the mesh's first axis. In a run of several processes each gives its own examples,
    equally many, and the arrays are those of all of them, in the order of the processes.

    Raises:
        ValueError: an array without a first axis, or one that the devices do not divide.
    """
    num_shards = mesh.local_mesh.shape[mesh.axis_names[0]]
    for array in jax.tree.leaves(batch):
        shape = jnp.shape(array)
        if not shape or shape[0] % num_shards:
            raise ValueError(
                f"shard_batch: expected arrays whose first axis {num_shards} devices divide, "
                f"got shape {shape}"
            )
    return _place(mesh, PartitionSpec(mesh.axis_names[0]), batch)


def sharded_axes(x: jax.Array) -> tuple[Any, tuple[str, ...]]:
    """x's abstract mesh and the axes of it that x's first axis is sharded over, for all a trace
    knows: what Explicit axis types say; the mesh's first axis where that is Auto, which says
    nothing. A mesh without axes where there is none.
    """
    sharding = jax.typeof(x).sharding
    mesh, axes = sharding.mesh, sharding.spec[0]
    if AxisType.Auto in mesh.axis_types[:1]:
        axes = mesh.axis_names[0]
    return mesh, axes if isinstance(axes, tuple) else () if axes is None else (axes,)


def _place(mesh, spec, tree):
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(leaf):
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jax.dtypes.prng_key):
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=impl)
        return jax.make_array_from_process_local_data(sharding, jax.device_get(leaf))

    return jax.tree.map(place, tree)
