"""What training scripts share to lose nothing: checkpoints, interruptions, the finite and not."""

import argparse
import contextlib
import functools
import math
import os
import pathlib
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from shared.command_line import Parser, UserError, positive_int, tell

import fnn

CHECKPOINT = "checkpoint.npz"
# The last six are those of distributed.py: a checkpoint is no one number of devices' own.
INDIFFERENT = (
    "checkpoint_every", "resume", "quiet",
    "data_parallel", "coordinator", "num_processes", "process_id", "start_timeout", "epoch_timeout",
)  # fmt: skip


def add_options(parser: Parser, checkpoint_every: int) -> None:
    option = parser.add_argument
    option(
        "--checkpoint-every",
        type=positive_int,
        default=checkpoint_every,
        metavar="N",
        help="epochs from one checkpoint to the next",
    )
    option("--resume", action="store_true", help="go on from the checkpoint in --output, if any")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options that the results depend on: all but paths and the ones in INDIFFERENT."""
    return {
        name: value
        for name, value in vars(options).items()
        if name not in INDIFFERENT and not isinstance(value, pathlib.Path)
    }


def store(options: argparse.Namespace, state: Any, table: list[list[float]]) -> None:
    """Write the checkpoint in --output: all that the rest of the run depends on.

    The table has a row of metrics for each epoch so far. One process of several does.
    """
    note = {"settings": settings(options), "table": table}
    fnn.save(options.output / CHECKPOINT, state, note=note)


def restore(
    options: argparse.Namespace, state: Any, columns: Sequence[str]
) -> tuple[Any, list[list[float]]]:
    """What was last given to store, if there is a checkpoint and --resume is among the options.

    Else the given state, that of the beginning, and an empty table, as in all but the first of
    several processes. `columns` are the table's.

    Raises:
        UserError: the checkpoint is not whole, or was made with other settings.
    """
    path = options.output / CHECKPOINT
    if not (options.resume and jax.process_index() == 0 and path.exists()):
        return state, []
    try:
        match fnn.read_note(path):
            case {"settings": dict(theirs), "table": list(table)}:
                pass
            case _:
                raise ValueError(f"{path}: not the checkpoint of a training script")
        ours = settings(options)
        differences = [
            f"{name.replace('_', ' ')} {theirs.get(name)}, not {ours.get(name)}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
        if differences:
            raise ValueError(f"{path} is from a run with {'; '.join(differences)}")
        kinds = [[*map(type, row)] if isinstance(row, list) else None for row in table]
        if len(table) > options.epochs or any(row != [float] * len(columns) for row in kinds):
            raise ValueError(f"{path}: expected a row of {len(columns)} numbers for each epoch")
        return fnn.load(path, state), table
    except ValueError as error:
        raise UserError(f"{error}; without --resume the run begins anew") from error


def interruptible(
    work: Callable[[argparse.Namespace, Callable[[], int | None]], int],
) -> Callable[[argparse.Namespace], int]:
    """work(options, interruption) as a function of the options alone; see interruptions."""

    def run(options):
        with interruptions() as interruption:
            return work(options, interruption)

    return run


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], int | None]]:
    """Gives a function that returns the first of SIGINT and SIGTERM to have come, or None.

    Neither interrupts anything, so that an epoch can be finished and stored; but the second
    SIGINT ends the process at once. A thread listens for it, since the main thread of Python hears
    nothing while it waits for a computation. A signal that is ignored already stays ignored.
    """
    first = []
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

    def listen():
        while received := listener.recv(1):  # nothing when the other end is closed
            number = received[0]
            if first and number == signal.SIGINT:
                os._exit(128 + number)
            if not first and number in numbers:
                first.append(number)
                on_terminal = sys.stderr is not None and sys.stderr.isatty()
                start = "\n" if on_terminal else ""  # where progress has left a line open
                tell("stopping after this epoch; a Ctrl-C from now on stops at once", start)

    listener, waker = socket.socketpair()
    thread = threading.Thread(target=listen, daemon=True)
    with listener, waker:
        waker.setblocking(False)
        thread.start()
        previous_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield lambda: first[0] if first else None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_waker)
            waker.close()
            thread.join()


def checksum(tree: Any) -> int:
    """A CRC-32 of all the tree's arrays and their shapes."""
    arrays = jax.device_get(jax.tree.leaves(tree))
    start = zlib.crc32(repr([*map(jnp.shape, arrays)]).encode())
    return functools.reduce(lambda value, array: zlib.crc32(array, value), arrays, start)


def is_finite(tree: Any) -> bool:
    """Whether the tree's floating arrays are without NaN and infinity.

    This runs on the host; to compile as much would take longer than all of a short training.
    """
    arrays = (a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact))
    return all((abs(array) < math.inf).all() for array in jax.device_get([*arrays]))
