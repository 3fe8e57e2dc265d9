"""The loop over epochs, with metrics, progress and checkpoints.

This program goes on from its checkpoint when it is started again:

    >>> model, sgd, data = fnn.Linear(2, 2), fnn.sgd(0.1), fnn.sample_disk(jax.random.key(0), 100)
    >>> epoch = fnn.make_train_epoch(model, fnn.CrossEntropyLoss(), sgd, batch_size=10)
    >>> def run(state, number):
    ...     state, losses = epoch(state, *data, jax.random.key(number))
    ...     return state, losses, [losses.mean()]
    >>> state = fnn.init_train_state(model, sgd, jax.random.key(1))
    >>> state, history = fnn.load_checkpoint("run.npz", state, 3, ["loss"])
    >>> saved = {"history": history, "checkpoint": "run.npz"}
    >>> with fnn.interruptions() as stop:
    ...     for done in fnn.run_epochs(run, state, 3, ["loss"], **saved, interruption=stop):
    ...         print(done.number, done.history[-1]["loss"] < 1, end="; ")
    1 True; 2 True; 3 True;
"""

import cmath
import contextlib
import functools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_integer
from fnn.checkpoint import load, printable, read_note, save
from fnn.epoch import make_train_epoch
from fnn.inspection import find_nonfinite
from fnn.layer import Layer
from fnn.losses import Loss
from fnn.optimizers import Optimizer
from fnn.training import TrainState

# find_nonfinite_in_epoch keeps the saved tensors of a batch, and of 100 to 1000 examples.
FEWEST_AT_ONCE, MOST_AT_ONCE = 100, 1000


class Epoch(NamedTuple):
    """What run_epochs yields after an epoch."""

    number: int  # from 1
    state: Any  # after this epoch
    history: list[dict[str, float]]  # a row of metrics for each epoch so far; the list grows


class NotFiniteError(FloatingPointError):
    """A loss, metric or parameter is NaN or infinite. `history` has the row of that epoch too."""

    def __init__(self, message: str, history: list[dict[str, float]]):
        super().__init__(message)
        self.history = history


class Interrupted(Exception):
    """run_epochs has stopped because of the signal `number`."""

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
    is_over: Callable[[list[dict[str, float]]], bool] = lambda history: False,
) -> Iterator[Epoch]:
    """Run the epochs that `history` has no row for, and yield an Epoch after each.

    The checkpoint is a file that is written after every `checkpoint_every` epochs, when the run is
    interrupted, and at the end. A run without a history first removes an older one, which could
    be resumed in its place. If there are several processes, only the first one writes.

    Args:
        run_epoch: (state, number) -> (state, losses, metrics): a pytree, the losses of all steps
            as arrays of any shape, and a number for each of `columns`.
        history: what load_checkpoint returned beside `state`.
        settings: what the results depend on, of JSON's types. load_checkpoint compares it.
        interruption: returns the number of a signal if the run has to stop, else None, as the
            function of interruptions() does. Several processes must get the same number.
        diagnose: (state before the epoch, number) -> the layer and direction where numbers first
            stop being finite, or None. See find_nonfinite_in_epoch.
        is_over: whether the run ends with this history, although epochs are left. It is asked
            before the first epoch and after each.

    Raises:
        NotFiniteError: a loss, a metric or a leaf of the state is not finite after an epoch. The
            message names the epoch and what `diagnose` found. The checkpoint before stays.
        Interrupted: a signal came before the last epoch. The epoch has been stored and yielded.
        ValueError: num_epochs or checkpoint_every is not a positive integer; two columns have the
            same name.
        TypeError: there is a checkpoint, and settings or columns are not of JSON's types. A tuple
            is not, because JSON makes a list of it.
        OSError: the checkpoint cannot be written.
    """
    num_epochs = check_integer("run_epochs", "num_epochs", num_epochs, 1)
    checkpoint_every = check_integer("run_epochs", "checkpoint_every", checkpoint_every, 1)
    history, columns = [*history], [*columns]
    if len({*columns}) < len(columns):
        raise ValueError(f"run_epochs: expected columns of different names, got {columns}")
    note = {"settings": settings, "columns": columns}
    if checkpoint is not None and not _is_json(note):
        raise TypeError(f"run_epochs: expected settings and columns of JSON's types, got {note}")
    writes = checkpoint is not None and jax.process_index() == 0
    if writes and not history:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.realpath(checkpoint))

    def store():
        if writes:
            table = [[row[column] for column in columns] for row in history]
            save(checkpoint, jax.device_get(state), note={**note, "table": table})

    for number in range(len(history) + 1, num_epochs + 1):
        if is_over(history):
            return
        new_state, losses, metrics = run_epoch(state, number)
        values = [float(value) for value in metrics]
        history.append(dict(zip(columns, values, strict=True)))
        has_good_losses = all(map(math.isfinite, values)) and is_finite(losses)
        if not (has_good_losses and is_finite(new_state)):
            what = "parameters are" if has_good_losses else "loss is"
            place = diagnose(state, number) if diagnose else None
            where = " (first met: layer {}, {})".format(*place) if place else ""
            raise NotFiniteError(f"the {what} not finite in epoch {number}{where}", history)
        state = new_state
        is_last = number == num_epochs or is_over(history)
        is_due = is_last or number % checkpoint_every == 0
        if is_due:
            store()
        signal_number = interruption() if interruption else None  # after store, which takes time
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
    """(state, history) from the file of run_epochs, or (the given state, []) if there is no file.

    run_epochs goes on from there, and ends with the same bits as a run that was never stopped.
    The loaded state has the structure, shapes and dtypes of `state`, on the default device. The
    arguments are those of run_epochs.

    Raises:
        ValueError: it is no checkpoint, is cut off or corrupt, has another state, more epochs or
            other columns, or is from a run with other settings. The message tells what differs.
        OSError: the file cannot be read.
    """
    if not os.path.exists(checkpoint):
        return state, []
    columns = [*columns]
    match read_note(checkpoint):
        case {"settings": (dict() | None) as theirs, "table": list(table), **more}:
            found = more.get("columns", columns)  # files of older versions have none
        case _:
            raise ValueError(f"{checkpoint}: not the checkpoint of a training")
    ours, theirs = settings or {}, theirs or {}
    differences = [
        f"{printable(name.replace('_', ' '))} {printable(theirs.get(name, 'unset'))}, "
        f"not {printable(ours.get(name, 'unset'))}"
        for name in {**ours, **theirs}
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    ]
    if differences:
        raise ValueError(f"{checkpoint} is from a run with {'; '.join(differences)}")
    if found != columns:
        raise ValueError(f"{checkpoint} has the columns {printable(found)}, expected {columns}")
    kinds = ([*map(type, row)] if isinstance(row, list) else None for row in table)
    is_right = all(row == [float] * len(columns) for row in kinds)
    if not is_right or not all(math.isfinite(value) for row in table for value in row):
        raise ValueError(f"{checkpoint}: expected a row of {len(columns)} numbers for each epoch")
    if len(table) > num_epochs:
        raise ValueError(f"{checkpoint} has {len(table)} epochs, expected at most {num_epochs}")
    history = [dict(zip(columns, row, strict=True)) for row in table]
    return load(checkpoint, state), history


def _is_json(note):
    """Whether JSON gives the note back as it is."""
    try:
        return json.loads(json.dumps(note)) == note
    except (TypeError, ValueError, RecursionError):
        return False


@contextlib.contextmanager
def progress(total: int, quiet: bool = False) -> Iterator[Callable[[int, str], None]]:
    """Give report(done, text), which shows the text of the work done so far, or nothing if quiet.

    On a terminal it is one line, rewritten at most ten times a second; else ten lines in all.
    """
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    shown, shown_at = None, -math.inf

    def report(done, text):
        nonlocal shown, shown_at
        if on_terminal and (time.monotonic() - shown_at > 0.1 or done == total):
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{text[:width]:{width}}", end="", flush=True)
            shown, shown_at = done, time.monotonic()
        elif not on_terminal and done * 10 // max(total, 1) > (done - 1) * 10 // max(total, 1):
            print(text, flush=True)

    try:
        yield (lambda done, text: None) if quiet else report
    finally:
        if shown:
            print()


def time_left(start: float, done: int, total: int) -> str:
    """How long the rest takes at the pace since `start`, a time.monotonic(): "12:05 left".

    Before any work is done, it is "? left".
    """
    if done == 0:
        return "? left"
    minutes, seconds = divmod(round((time.monotonic() - start) / done * (total - done)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def is_finite(tree: Any) -> bool:
    """Whether every floating number in the tree is finite."""
    leaves = jax.tree.leaves(tree)
    numbers = [leaf for leaf in leaves if isinstance(leaf, float | complex)]
    arrays = [a for a in leaves if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.inexact)]
    # On the host, because compiling the check can take longer than a short training.
    are_finite = ((abs(array) < math.inf).all() for array in jax.device_get(arrays))
    return all(map(cmath.isfinite, numbers)) and all(are_finite)


def find_nonfinite_in_epoch(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    state: TrainState,
    x: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    shuffle: bool = True,
) -> tuple[str, str] | None:
    """The layer and direction where an epoch first meets a NaN or an infinity, or None.

    The epoch runs once more from `state`, up to the first step whose gradients are not finite.
    fnn.find_nonfinite then looks at all examples, with the parameters before that step. The
    arguments, shuffle too, are those of make_train_epoch and of the function that it returns.

    Shapes: x (n, ...), target (n, ...), as the model and the loss take them.

    Raises:
        ValueError: as make_train_epoch and the function that it returns.
    """

    def update(grads, opt_state, params):
        inner, goes_on = opt_state
        for grad in jax.tree.leaves(grads):
            goes_on &= jnp.all(jnp.isfinite(grad))
        new, choose = optimizer.update(grads, inner, params), functools.partial(jnp.where, goes_on)
        params, inner = jax.tree.map(choose, new, (params, inner))
        return params, (inner, goes_on)

    stopping = Optimizer(optimizer.init, update)
    run_epoch = make_train_epoch(model, loss, stopping, batch_size, shuffle=shuffle)
    state = TrainState(state.params, (state.opt_state, jnp.array(True)))
    params = run_epoch(state, x, target, key)[0].params
    size = min(max(batch_size, FEWEST_AT_ONCE), MOST_AT_ONCE)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        if place := find_nonfinite(model, loss, params, x[part], target[part]):
            return place
    return None
