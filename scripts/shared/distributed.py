"""A script on many devices, and in several processes that find each other, agree, and end together.

This trains on all devices of one machine:

    train_disk.py --data-parallel --batch-size 40

This trains on two machines, where 10.0.0.1 is the first; the second has --process-id 1:

    train_disk.py --batch-size 40 --coordinator 10.0.0.1:1234 --num-processes 2 --process-id 0

Under Slurm or Open MPI --data-parallel is enough. Without GPUs, JAX_NUM_CPU_DEVICES=4 makes four
devices of the CPU. Only the first process writes to --output, and only what it prints on stdout is
shown. In train_mnist.py each process reads its own images.

The processes compare their options, versions and data before they train. What one process refuses
ends all. Every wait has a time limit, because another process may be gone: --start-timeout or
--epoch-timeout seconds. --resume goes on with as many processes as are there; with equally many the
bits are the same.
"""

import argparse
import collections
import contextlib
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.distributed import global_state  # the only way to a process that has no devices
from jax.experimental import multihost_utils
from shared import command_line
from shared.command_line import UserError

import fnn

SECONDS_TO_LEAVE = 3
# Keys of what a process tells the others: why it ends, and what from_first gives them.
PROBLEM, NOTE = "fnn/problem", "fnn/note"


def uses_all_devices(options: argparse.Namespace) -> bool:
    several = options.coordinator is not None or options.num_processes is not None
    return options.data_parallel or several


def describe_devices() -> str:
    """The devices of the run, as text."""
    device, count, processes = jax.devices()[0], jax.device_count(), jax.process_count()
    text = f"{device.platform} ({device.device_kind})"
    text = f"{count} x {text}" if count > 1 else text
    return f"{processes} processes, {text}" if processes > 1 else text


def count_devices(options: argparse.Namespace) -> int:
    """The number of devices among which examples are divided."""
    return jax.device_count() if uses_all_devices(options) else 1


def place(options: argparse.Namespace, tree: Any) -> Any:
    """The tree on every device that is used."""
    mesh = fnn.data_parallel_mesh()
    return fnn.replicate(mesh, tree) if uses_all_devices(options) else tree


def place_examples(options, arrays, load=lambda *arrays: arrays) -> Any:
    """load(*arrays), divided among the devices that are used; arrays (n, ...) are in every process.

    Each process loads its own part. If the number of devices does not divide n, each loads all. If
    one raises UserError, all do.
    """
    if not uses_all_devices(options):
        return load(*arrays)
    processes, index = jax.process_count(), jax.process_index()
    is_divided = not any(len(array) % jax.device_count() for array in arrays)
    if is_divided:
        arrays = [array.reshape(processes, -1, *array.shape[1:])[index] for array in arrays]
    with together(options.epoch_timeout):
        loaded = load(*arrays)
    return (fnn.shard_batch if is_divided else fnn.replicate)(fnn.data_parallel_mesh(), loaded)


def run(work: Callable, options: argparse.Namespace, same: dict[str, Any]) -> int:
    """Run command_line.run(work, options) in every process; the first one locks options.output.

    All processes must have equal values in `same`, whose keys say what they are.
    """
    place = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "the coordinator")
    try:
        if uses_all_devices(options):
            _connect(options, place)
    except (RuntimeError, ValueError, UserError) as error:
        command_line.tell(f"error: cannot join the run at {place}: {str(error).splitlines()[0]}")
        return _leave(1)
    is_first = global_state.process_id == 0

    def work_with_others(options):
        try:
            with contextlib.ExitStack() as held:
                with together(options.epoch_timeout):
                    if is_first:
                        held.enter_context(fnn.files.sole_use(options.output))
                agree(options.epoch_timeout, same)
                return work(options)
        except (RuntimeError, ValueError) as error:  # JAX raises either if a process is gone
            if jax.process_count() == 1:
                raise
            problem = f"another process may be gone: {error}"
            raise jax.errors.JaxRuntimeError(problem) from error

    with contextlib.nullcontext() if is_first else _silence():
        status = command_line.run(work_with_others, options)
    return _leave(status)


def _connect(options, place):
    """Find the other processes, if there are any, and start the devices of all."""
    with deadline(options.start_timeout, f"the processes did not all come to {place}"):
        try:
            jax.distributed.initialize(
                options.coordinator,
                options.num_processes,
                options.process_id,
                initialization_timeout=10 * options.start_timeout,
                heartbeat_timeout_seconds=10 * options.epoch_timeout,
                shutdown_timeout_seconds=options.epoch_timeout,
            )
        except ValueError as error:
            if "coordinator_address should be defined" in str(error):
                return  # there are no other processes
            raise
        client, outcome = global_state.client, threading.Lock()  # who has it tells the outcome

        def listen():
            while not outcome.locked():
                with contextlib.suppress(RuntimeError):  # there is no problem yet
                    problem = client.blocking_key_value_get(PROBLEM, 500)
                    if outcome.acquire(blocking=False):
                        command_line.tell(f"error: another process has ended: {problem}")
                        _leave(1)

        threading.Thread(target=listen, daemon=True).start()
        try:
            command_line.start_jax()
        except UserError as error:
            outcome.acquire()
            with contextlib.suppress(RuntimeError):  # another process has told its own
                client.key_value_set(PROBLEM, str(error))
            raise
        outcome.acquire()
        counts = collections.Counter(device.process_index for device in jax.devices())
        if len({*counts.values()}) > 1:
            counts = [*counts.values()]
            raise UserError(f"expected equally many devices in every process, got {counts}")
        with _silence():  # Gloo tells on stdout that it is connected
            largest(options.start_timeout, 0)


@contextlib.contextmanager
def _silence():
    """Drop all that is printed on stdout, also by libraries in other languages."""
    if sys.stdout is None:  # it was closed: descriptor 1 can be another file
        yield
        return
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)


def _leave(status):
    """Return the status if it is 0, or if there is one process; else end this process with it.

    JAX aborts the other processes when the first one ends. So that one waits a little if the others
    may still have to tell why they end.
    """
    if status and jax.distributed.is_initialized():
        sys.stderr.flush()
        if status == 1:
            time.sleep(0 if global_state.process_id else SECONDS_TO_LEAVE)
        else:
            threading.Timer(SECONDS_TO_LEAVE, os._exit, (status,)).start()
            with contextlib.suppress(RuntimeError):
                jax.distributed.shutdown()
        os._exit(status)
    return status


@contextlib.contextmanager
def deadline(seconds: float, problem: str) -> Iterator[None]:
    """End the process, with a line that tells the problem, if the block takes longer.

    Another thread does it, because the main one can do nothing while it waits for a process.
    """

    def end():
        command_line.tell(f"error: {problem} within {seconds} seconds")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def epoch_deadline(seconds: float) -> contextlib.AbstractContextManager[None]:
    """The deadline for a step that waits for other processes, if there are any."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    problem = "another process is gone or slow: the epoch did not end"
    grace = SECONDS_TO_LEAVE if jax.process_index() == 0 else 0  # as in _leave
    return deadline(seconds + grace, problem)


@contextlib.contextmanager
def together(timeout: float) -> Iterator[None]:
    """End with an error in every process if the block ends with one of the user in any of them."""
    problem = None
    try:
        yield
    except (UserError, fnn.files.InUseError) as error:
        problem = error
    if largest(timeout, problem and 1):
        raise problem or UserError("another process has found an error, and tells it")


def agree(timeout: float, same: dict[str, Any]) -> None:
    """Raise UserError in every process if one has another value of `same`; it names the keys."""
    if jax.process_count() == 1:
        return
    checksums = [zlib.crc32(repr(value).encode()) for value in same.values()]
    columns = zip(same, _gather(timeout, checksums).T.tolist(), strict=True)
    differ = [what for what, values in columns if len({*values}) > 1]
    if differ:
        raise UserError(f"the processes have different {' and '.join(differ)}")


def from_first(timeout: float, tree: Any, note: Any) -> tuple[Any, Any]:
    """Return the first process's tree of arrays, and its note of JSON's types, in every process."""
    if jax.process_count() == 1:
        return tree, note
    if jax.process_index() == 0:
        global_state.client.key_value_set(NOTE, json.dumps(note))
    with epoch_deadline(timeout):
        tree = multihost_utils.broadcast_one_to_all(tree)
        return tree, json.loads(global_state.client.blocking_key_value_get(NOTE, 1000 * timeout))


def largest(timeout: float, number: int | None) -> int | None:
    """Return the largest of the processes' numbers in every process; None is less than any."""
    if jax.process_count() == 1:
        return number
    return int(_gather(timeout, [number or 0]).max()) or None


def _gather(timeout, numbers):
    """The numbers of every process, an array (processes, numbers)."""
    # These settings make the same program in every process, even where they differ.
    with epoch_deadline(timeout), jax.enable_x64(False), jax.disable_jit(False):
        return multihost_utils.process_allgather(jnp.array(numbers, jnp.uint32))
