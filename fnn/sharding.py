"""Data parallelism: each device has its part of the examples, and all of the parameters.

JAX does the rest: jit runs a program over sharded arrays on every device, and the sums over the
examples in a backward pass become all-reduces. A training step has one, of the gradients and the
loss; BatchNorm has another. Every device does the whole update of the optimizer.

    >>> model, loss, optimizer = fnn.Linear(2, 2), fnn.CrossEntropyLoss(), fnn.sgd(0.1)
    >>> epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size=40)
    >>> mesh = fnn.data_parallel_mesh()
    >>> state = fnn.replicate(mesh, fnn.init_train_state(model, optimizer, jax.random.key(0)))
    >>> x, labels = fnn.shard_batch(mesh, fnn.sample_disk(jax.random.key(1), 80))
    >>> state, losses = epoch(state, x, labels, jax.random.key(2))
    >>> losses.shape
    (2,)

loss_and_grads, make_train_step and make_train_epoch are the same with a mesh, of Auto axes or of
Explicit ones. An epoch shuffles within each device's examples, so that none of them moves. On
Explicit axes the state has to be replicated, and per_example(Conv2d(...)) is more than JAX's rules
allow.

A step sends the gradients: 4 bytes for each float32 parameter. So a small network belongs on one
device, where jax.vmap over seeds fills it. Measured are CPU devices alone: 1, 2, 4 and 8 in one
process, and two processes over loopback. After 100 steps the parameters are those of one device, to
1e-6 of the largest in float32 and 1e-13 in float64.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fnn._checks import clip_64_bits


def data_parallel_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of the devices along one axis, "data", whose type is Auto.

    By default these are all devices of all processes. fnn works on a mesh of Explicit axes too.

    Raises:
        ValueError: no devices, or one of them twice.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices or len(set(devices)) < len(devices):
        raise ValueError(f"data_parallel_mesh: expected different devices, got {devices}")
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree with all of every array, copied, on each device of the mesh.

    In a run of several processes, each passes the same tree.
    """
    return _place(mesh, PartitionSpec(), tree)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """The tree of arrays (n, ...), copied, with n / N examples on each of the mesh's N devices.

    The N devices are those along the mesh's first axis. In a run of several processes, each passes
    its own examples, equally many; the arrays returned are those of all, in the processes' order.

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


def sharded_axes(x: jax.Array) -> tuple[Any, tuple[str, ...], int]:
    """x's abstract mesh, its axes over which x's first axis is sharded, and the number of shards.

    On Explicit axes, x's type tells them. On Auto axes nothing is known while a program is traced:
    it is assumed to be the mesh's first axis. Without a mesh there are no axes, and one shard.
    """
    sharding = jax.typeof(x).sharding
    mesh, axes = sharding.mesh, sharding.spec[0]
    if AxisType.Auto in mesh.axis_types[:1]:
        axes = mesh.axis_names[0]
    if axes is None:
        axes = ()
    elif isinstance(axes, str):
        axes = (axes,)
    return mesh, axes, math.prod(mesh.shape[axis] for axis in axes)


def _place(mesh, spec, tree):
    # Without copies, JAX may share memory with an array that the caller then overwrites or donates.
    tree = jax.tree.map(
        lambda a: a if isinstance(a, jax.Array) else copy.copy(clip_64_bits(a)), tree
    )
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding, may_alias=False)

    def place(leaf):
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jax.dtypes.prng_key):
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=impl)
        return jax.make_array_from_process_local_data(sharding, copy.copy(jax.device_get(leaf)))

    return jax.tree.map(place, tree)
