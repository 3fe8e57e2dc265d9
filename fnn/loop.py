"""The loop over epochs: metrics, progress, checkpoints, interruptions, and where numbers fail.

columns = ["train_loss", "test_accuracy"]

@jax.jit
def run_epoch(state, number):
    state, losses = train_epoch(state, x, target, jax.random.fold_in(key, number))
    scores = fnn.predict(model, state.params, test_x)
    return state, losses, (jnp.mean(losses), fnn.accuracy(scores, test_labels))

state, history = fnn.load_checkpoint("run.npz", state, 10, columns)  # if there is one
with fnn.interruptions() as interruption, fnn.progress(10) as report:
    for epoch in fnn.run_epochs(
        run_epoch, state, 10, columns,
        history=history, checkpoint="run.npz", interruption=interruption,
    ):
        report(epoch.number, f"epoch {epoch.number}: {epoch.history[-1]}")
        state = epoch.state
"""

import contextlib
import math
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.checkpoint import load, read_note, save
from fnn.debugging import find_nonfinite
from fnn.layer import Layer, check_integer
from fnn.losses import Loss
from fnn.optimizers import Optimizer
from fnn.training import TrainState, make_train_epoch

EXAMPLES_AT_ONCE = 1000  # in find_nonfinite_in_epoch, which keeps the saved tensors of so many


class Epoch(NamedTuple):
    """What run_epochs yields after an epoch."""

    number: int  # from 1
    state: Any  # after this epoch
    history: list[dict[str, float]]  # a row of metrics for each epoch so far; the list grows


class NotFiniteError(FloatingPointError):
    """A loss, a metric or a parameter is NaN or infinite: `history` ends with that epoch's row."""

    def __init__(self, message: str, history: list[dict[str, float]]):
        super().__init__(message)
        self.history = history


class Interrupted(Exception):
    """run_epochs has stopped, because its interruption() has told the signal `number`."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def run_epochs(
    run_epoch: Callable[[Any, int], tuple[Any, Any, Sequence]],
    state: Any,
    num_epochs: int,
    columns: Sequence[str],
    *,
    history: Sequence[dict[str, float]] = (),
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    settings: dict[str, Any] | None = None,
    interruption: Callable[[], int | None] | None = None,
    diagnose: Callable[[Any, int], tuple[str, str] | None] | None = None,
) -> Iterator[Epoch]:
    """Runs the epochs of which `history` has no row yet, and yields an Epoch after each.

    Before the first epoch the file `checkpoint` is removed, so that no older run is ever resumed
    in the place of this one. It is written anew after every `checkpoint_every` epochs, where the
    run is interrupted, and at the end. Of several processes the first one alone writes.

    Args:
        run_epoch: (state, number) -> (state, losses, metrics). The state is a pytree, losses are
            those of all steps, in any tree of arrays, and metrics a number for each of `columns`.
        history: what load_checkpoint returned beside `state`; its epochs are not run again.
        settings: what the results depend on, of JSON's types; load_checkpoint compares it.
        interruption: tells a signal's number if the run is to stop, as interruptions() makes it.
            Several processes must be told the same.
        diagnose: (state before the epoch, number) -> the layer and direction where numbers first
            stop being finite, or None; see find_nonfinite_in_epoch.

    Raises:
        NotFiniteError: a loss, a metric or a leaf of the state is not finite after an epoch. Its
            message names the epoch and what `diagnose` found. The last checkpoint stays.
        Interrupted: a signal has come before the last epoch. The epoch that was running has been
            finished, stored and yielded before.
        ValueError: num_epochs or checkpoint_every is not a positive integer.
        OSError: the checkpoint cannot be written.
    """
    num_epochs = check_integer("run_epochs", "num_epochs", num_epochs, 1)
    checkpoint_every = check_integer("run_epochs", "checkpoint_every", checkpoint_every, 1)
    history = [*history]
    writes = checkpoint is not None and jax.process_index() == 0
    if writes and not history:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.realpath(checkpoint))

    def store():
        if writes:
            table = [[*row.values()] for row in history]
            save(checkpoint, jax.device_get(state), note={"settings": settings, "table": table})

    for number in range(len(history) + 1, num_epochs + 1):
        new_state, losses, metrics = run_epoch(state, number)
        values = [*map(float, jax.device_get(metrics))]
        history.append(dict(zip(columns, values, strict=True)))
        has_good_losses = all(map(math.isfinite, values)) and is_finite(losses)
        if not (has_good_losses and is_finite(new_state)):
            what = "parameters are" if has_good_losses else "loss is"
            place = diagnose(state, number) if diagnose else None
            where = " (first met: layer {}, {})".format(*place) if place else ""
            raise NotFiniteError(f"the {what} not finite in epoch {number}{where}", history)
        state = new_state
        is_last = number == num_epochs
        is_due = is_last or number % checkpoint_every == 0
        if is_due:
            store()
        signal_number = interruption() if interruption else None  # it may have come meanwhile
        if signal_number and not is_due:
            store()
        yield Epoch(number, state, history)
        if signal_number and not is_last:
            raise Interrupted(f"interrupted in epoch {number}", signal_number)


def load_checkpoint(
    checkpoint: str | os.PathLike,
    state: Any,
    num_epochs: int,
    columns: Sequence[str],
    *,
    settings: dict[str, Any] | None = None,
) -> tuple[Any, list[dict[str, float]]]:
    """(state, history) of the file that run_epochs wrote, or (the given state, []) without a file.

    run_epochs goes on from there, and ends with the same bits as a run that never stopped. The
    loaded state has the structure, shapes and dtypes of `state`, and is on the default device.

    Args:
        num_epochs, columns, settings: as for run_epochs.

    Raises:
        ValueError: it is no checkpoint, is cut off or corrupt, has another state, more epochs or
            other columns, or is from a run with other settings; the message names what differs.
        OSError: the file cannot be read.
    """
    if not os.path.exists(checkpoint):
        return state, []
    match read_note(checkpoint):
        case {"settings": (dict() | None) as theirs, "table": list(table)}:
            pass
        case _:
            raise ValueError(f"{checkpoint}: not the checkpoint of a training")
    ours, theirs = settings or {}, theirs or {}
    differences = [
        f"{name.replace('_', ' ')} {theirs.get(name, 'unset')}, not {ours.get(name, 'unset')}"
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    ]
    if differences:
        raise ValueError(f"{checkpoint} is from a run with {'; '.join(differences)}")
    kinds = [[*map(type, row)] if isinstance(row, list) else None for row in table]
    if len(table) > num_epochs or any(row != [float] * len(columns) for row in kinds):
        raise ValueError(f"{checkpoint}: expected a row of {len(columns)} numbers for each epoch")
    history = [dict(zip(columns, row, strict=True)) for row in table]
    return load(checkpoint, state), history


@contextlib.contextmanager
def interruptions(
    heard: Callable[[int], None] = lambda number: None,
) -> Iterator[Callable[[], int | None]]:
    """Gives a function that returns the first of SIGINT and SIGTERM to have come, or None.

    Neither interrupts anything, so that an epoch can be finished and stored. But a SIGINT after
    the first signal ends the process at once. A thread listens for both, because Python's main
    thread hears nothing while it waits for a computation. A signal that is ignored already stays
    ignored. In the end the handlers from before are back. The main thread alone may enter.

    Args:
        heard: called with the number of the first signal, in that thread.
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
                heard(number)

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


@contextlib.contextmanager
def progress(total: int, quiet: bool = False) -> Iterator[Callable[[int, str], None]]:
    """Gives report(done, text), which shows how far the work is: on a terminal one line, rewritten
    at most ten times a second; elsewhere ten plain lines in all; nothing if quiet.
    """
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    shown = None
    shown_at = -math.inf

    def report(done, text):
        nonlocal shown, shown_at
        if on_terminal and (time.monotonic() - shown_at > 0.1 or done == total):
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]:{width}}", end="", flush=True)
            shown, shown_at = done, time.monotonic()
        elif not on_terminal and done * 10 // total > (done - 1) * 10 // total:
            print(text, flush=True)

    try:
        yield (lambda done, text: None) if quiet else report
    finally:
        if shown:
            print()


def time_left(start: float, done: int, total: int) -> str:
    """How long the rest takes at the pace since `start`, a time.monotonic(): "12:05 left"."""
    seconds = round((time.monotonic() - start) / done * (total - done))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def is_finite(tree: Any) -> bool:
    """Whether the tree's floating arrays are without NaN and infinity, by a look on the host."""
    # A compiled check would take longer to compile than a short training takes.
    arrays = (a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact))
    return all((abs(array) < math.inf).all() for array in jax.device_get([*arrays]))


def find_nonfinite_in_epoch(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    state: TrainState,
    x: jax.Array,
    target: jax.Array,
    key: jax.Array,
) -> tuple[str, str] | None:
    """The layer and direction where an epoch first meets what is not finite, or None.

    The epoch from `state` is run once more, up to the first step whose gradients are not finite.
    fnn.find_nonfinite then looks at the examples, with the parameters before that step.

    Shapes: the arguments are those of make_train_epoch and of the epoch that it makes.
    """

    def update(grads, opt_state, params):
        inner, goes_on = opt_state
        for grad in jax.tree.leaves(grads):
            goes_on &= jnp.all(jnp.isfinite(grad))
        new = optimizer.update(grads, inner, params)
        params, inner = jax.tree.map(
            lambda new, old: jnp.where(goes_on, new, old), new, (params, inner)
        )
        return params, (inner, goes_on)

    until_then = Optimizer(optimizer.init, update)
    run_epoch = make_train_epoch(model, loss, until_then, batch_size)
    state = TrainState(state.params, (state.opt_state, jnp.array(True)))
    params = run_epoch(state, x, target, key)[0].params
    for start in range(0, len(x), EXAMPLES_AT_ONCE):
        part = slice(start, start + EXAMPLES_AT_ONCE)
        if place := find_nonfinite(model, loss, params, x[part], target[part]):
            return place
    return None
