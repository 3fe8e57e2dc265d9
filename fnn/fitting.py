"""fit: a training in one call, made of the pieces in fnn.epoch and fnn.loop."""

import contextlib
import functools
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from fnn._checks import as_array, check_integer, check_key, check_type, note_on_error
from fnn._examples import check_fit, make_sets
from fnn._numerics import upcast
from fnn._signals import interruptions
from fnn.calibration import calibrate
from fnn.epoch import make_train_epoch
from fnn.layer import Layer, check_is_layer
from fnn.loop import Epoch, find_nonfinite_in_epoch, load_checkpoint, run_epochs, time_left
from fnn.loop import progress as show_progress
from fnn.losses import Loss, check_is_loss
from fnn.optimizers import Optimizer, adam, sgd
from fnn.sharding import replicate
from fnn.training import TrainState, init_train_state, predict

EVALUATED_AT_ONCE = 1000  # examples
MONITORED = "validation_loss"


class Fit(NamedTuple):
    """What fit returns."""

    params: Any  # those with the lowest validation loss, or the last ones
    state: TrainState  # after the last epoch
    history: list[dict[str, float]]  # a row for each epoch


def fit(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer | Callable[[int], Optimizer],
    x: jax.Array,
    target: jax.Array,
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
    validation: tuple[jax.Array, jax.Array] | float | None = None,
    metrics: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None,
    patience: int | None = None,
    restore_best: bool = True,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
    callback: Callable[[Epoch], Any] | None = None,
) -> Fit:
    """Train the model from fresh parameters: `epochs` shuffled passes over the examples.

    You can write the same with fnn's other functions: with keys k = jax.random.split(key, 3), the
    training starts with init_train_state(model, optimizer, k[1]). Epoch i, from 1 on, is that of
    make_train_epoch with the key fold_in(k[2], i). run_epochs runs the epochs, with everything that
    its docstring says about checkpoints and numbers that are not finite.

    history has a row for each epoch. "train_loss" is the mean of the steps' losses, weighted by
    their examples; it is taken while the parameters change, and with Dropout. "validation_loss" is
    the loss over all validation examples after the epoch, without Dropout. A metric is taken then
    too, over all validation examples at once: "validation_accuracy". Without validation examples it
    is taken over the training examples: "train_accuracy".

    With a checkpoint, SIGINT (Ctrl-C) and SIGTERM let the epoch be finished and stored, as
    fnn.interruptions says, and end fit with fnn.Interrupted; resume=True goes on from there.
    Without one, Ctrl-C is Python's KeyboardInterrupt. So it is in a run of several processes, and
    in a thread other than the main one.

    To start from given parameters, pass model._replace(init=lambda key: params).

    Shapes: x (n, ...), target (n, ...), as the model and the loss take them. They are JAX's arrays,
    also over the devices of a mesh (see fnn.sharding), or NumPy's.

    Args:
        optimizer: an Optimizer, or a function that makes one when it is told the number of steps:
            lambda steps: fnn.adam(fnn.cosine_decay(1e-3, steps)).
        validation: (x, target), or the fraction of the examples to hold out, drawn with k[0]:
            split(k[0], x, target, fraction=validation).
        metrics: by name, functions (prediction, target) -> a number, such as fnn.accuracy.
        patience: stop after this many epochs in a row without a lower validation loss.
        restore_best: return the params of the epoch with the lowest validation loss, if there are
            validation examples; else those of the last epoch.
        checkpoint, checkpoint_every: the file for run_epochs, and the epochs from one to the next.
        resume: go on from the checkpoint if there is one. The result is the same to the bit as that
            of a run which was never interrupted. The examples, batch_size and key must be the same,
            and `epochs` too if the optimizer is told the number of steps. fit compares them, and
            the metrics' names. It cannot compare models, losses, optimizers and metric functions.
        progress: print a line on a terminal, or ten lines elsewhere, on stdout.
        callback: gets an Epoch after each epoch: its number, the TrainState, and the history.

    Raises:
        ValueError: before the training begins: x and target differ in length; a batch is larger
            than the data; a target has a wrong shape or dtype; a label is no class of the model; x
            or target has NaN or infinity; a metric's result is no real number of shape (); another
            argument is not as described. If several processes share an array, fit does not look at
            its values. What a metric itself raises comes before the training too.
        NotFiniteError, Interrupted, OSError: as run_epochs; ValueError as load_checkpoint.

    Here a table has four columns on different scales. The model standardises its input itself:

        >>> x = jnp.array([1, 10, 0.1, 5]) * jax.random.normal(jax.random.key(0), (300, 4))
        >>> labels = jnp.where(x[:, 1] > 0, 1, 0)
        >>> train, test = fnn.split(jax.random.key(1), x, labels, fraction=0.2)
        >>> standardize = fnn.Standardize(*fnn.standardize(train[0]))
        >>> model = fnn.Sequential(standardize, fnn.Linear(4, 16), fnn.ReLU(), fnn.Linear(16, 2))
        >>> result = fnn.fit(
        ...     model, fnn.CrossEntropyLoss(), lambda n: fnn.adam(fnn.cosine_decay(0.03, n)),
        ...     *train, epochs=20, batch_size=20, key=jax.random.key(2), progress=False,
        ...     validation=0.1, metrics={"accuracy": fnn.accuracy}, patience=5,
        ... )
        >>> list(result.history[-1])
        ['train_loss', 'validation_loss', 'validation_accuracy']
        >>> print(fnn.accuracy(fnn.predict(model, result.params, test[0]), test[1]))
        0.9...
    """
    check_is_layer("fit", model)
    check_is_loss("fit", loss)
    check_key("fit", key)
    epochs = check_integer("fit", "epochs", epochs, 1)
    metrics = {} if metrics is None else metrics
    _check_options(metrics, validation, patience, checkpoint, resume, callback)
    split_key, init_key, epoch_key = jax.random.split(key, 3)
    train_set, validation_set = make_sets(split_key, x, target, validation)
    num_examples = len(train_set[0])
    batch_size = check_integer("fit", "batch_size", batch_size, 1, num_examples)
    num_steps = epochs * math.ceil(num_examples / batch_size)
    is_told_steps = callable(optimizer) and optimizer not in (sgd, adam)
    optimizer = optimizer(num_steps) if is_told_steps else optimizer
    state = init_train_state(model, optimizer, init_key)
    for what, examples in (("training", train_set), ("validation", validation_set)):
        with note_on_error(f"in fit, with the {what} examples"):
            if examples:
                check_fit(model, loss, state.params, *examples)

    sets = train_set, validation_set
    keeps_best = bool(restore_best and validation_set)
    run_epoch = _compile(model, loss, optimizer, batch_size, metrics, keeps_best)
    part = "validation" if validation_set else "train"
    columns = ["train_loss", *([MONITORED] if validation_set else [])]
    columns += [f"{part}_{name}" for name in metrics]
    settings = {"batch_size": batch_size, "key": jax.random.key_data(key).tolist()}
    settings |= {"steps": num_steps} if is_told_steps else {}
    settings |= {"data_checksum": _checksum(sets)} if checkpoint is not None else {}

    carry = state, (jnp.full((), jnp.inf, float), state.params) if keeps_best else ()
    history = []
    if resume:
        carry, history = load_checkpoint(checkpoint, carry, epochs, columns, settings=settings)
    carry, epoch_key = _place_like(train_set[0], (carry, epoch_key))
    # What a metric raises has to come before run_epochs removes an older checkpoint.
    run_epoch.eval_shape(sets, epoch_key, carry, 1)

    def diagnose(carry, number):
        key = jax.random.fold_in(epoch_key, number)
        return find_nonfinite_in_epoch(
            model, loss, optimizer, batch_size, carry[0], *train_set, key
        )

    def is_over(history):
        return patience is not None and len(history) - _best_epoch(history) >= patience

    is_alone = jax.process_count() == 1
    is_main = threading.current_thread() is threading.main_thread()
    handles_signals = checkpoint is not None and is_alone and is_main
    signals = interruptions(_tell) if handles_signals else contextlib.nullcontext()
    num_before, started = len(history), time.monotonic()
    with signals as interruption, show_progress(epochs, not progress) as show:
        epochs_to_come = run_epochs(
            lambda carry, number: run_epoch(sets, epoch_key, carry, number),
            carry,
            epochs,
            columns,
            history=history,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            settings=settings,
            interruption=interruption,
            diagnose=diagnose if is_alone else None,
            is_over=is_over,
        )
        for number, carry, history in epochs_to_come:
            rest = time_left(started, number - num_before, epochs - num_before)
            show(number, f"{_describe(number, epochs, history[-1])}  {rest}")
            if callback:
                callback(Epoch(number, carry[0], history))
    if progress and is_over(history) and len(history) < epochs:
        print(f"stopped: the validation loss was lowest after epoch {_best_epoch(history)}")
    state, best = carry
    params = best[1] if keeps_best else _calibrated(model, state.params, train_set[0])
    return Fit(params, state, history)


def _compile(model, loss, optimizer, batch_size, metrics, keeps_best):
    """A jitted f(sets, key, carry, number) -> (carry, losses, values): one epoch.

    carry is (state, best), and best is (the lowest validation loss, its params), or ().
    """
    train_epoch = make_train_epoch(model, loss, optimizer, batch_size)

    def run_epoch(sets, key, carry, number):
        train_set, validation_set = sets
        state, best = carry
        state, losses = train_epoch(state, *train_set, jax.random.fold_in(key, number))
        values = [_mean_over_examples(losses, len(train_set[0]), batch_size)]
        params = state.params
        if validation_set or metrics:
            x, target = validation_set or train_set
            params = _calibrated(model, params, train_set[0])
            prediction = predict(model, params, x, batch_size=EVALUATED_AT_ONCE)
            values += [loss.forward(prediction, target)[0]] if validation_set else []
            for name, metric in metrics.items():
                with note_on_error(f"in fit, in the metric {name!r}"):
                    value = as_array("fit", "a metric", metric(prediction, target))
                    if value.shape or jnp.iscomplexobj(value):
                        got = f"{value.dtype} of shape {value.shape}"
                        raise ValueError(f"fit: expected a metric to be a real number, got {got}")
                    values.append(value)
        if keeps_best:
            value = jnp.asarray(values[1], float)
            choose = functools.partial(jnp.where, value < best[0])
            best = jax.tree.map(choose, (value, params), best)
        return (state, best), losses, values

    return jax.jit(run_epoch)


def _calibrated(model, params, x):
    """The params with which a model is evaluated."""
    if not model.couples_examples:
        return params
    return calibrate(model, params, x, batch_size=EVALUATED_AT_ONCE)


def _mean_over_examples(losses, num_examples, batch_size):
    """The mean of losses (steps,), weighted by the examples of each. The last may have fewer."""
    losses = upcast(losses)
    num_last = num_examples - (len(losses) - 1) * batch_size
    return (jnp.sum(losses[:-1]) * batch_size + losses[-1] * num_last) / num_examples


def _best_epoch(history):
    """The number of the first epoch with the lowest validation loss; 0 before the first epoch."""
    losses = [row[MONITORED] for row in history]
    return losses.index(min(losses)) + 1 if losses else 0


def _check_options(metrics, validation, patience, checkpoint, resume, callback):
    check_type("fit", metrics, Mapping, "metrics to be {name: function}")
    check_type("fit", checkpoint, str | os.PathLike | None, "checkpoint to be a path")
    check_type("fit", callback, Callable | None, "callback to be a function")
    for name, metric in metrics.items():
        if not isinstance(name, str) or name == "loss" or not callable(metric):
            expected = 'fit: expected metrics to be {name: function}, with names other than "loss"'
            raise ValueError(f"{expected}, got {name!r}: {metric!r:.80}")
    if patience is not None:
        check_integer("fit", "patience", patience, 1)
        if validation is None:
            raise ValueError("fit: expected validation with patience, got None")
    if resume and checkpoint is None:
        raise ValueError("fit: expected checkpoint with resume=True, got None")


def _checksum(tree):
    """A CRC-32 of the arrays, their shapes and dtypes; of arrays on other machines these alone."""
    value = 0
    for array in jax.tree.leaves(tree):
        value = zlib.crc32(f"{array.shape} {array.dtype}".encode(), value)
        if array.is_fully_addressable:
            value = zlib.crc32(jax.device_get(array).tobytes(), value)
    return value


def _place_like(x, tree):
    """The tree on every device of x's mesh, if x has one."""
    is_on_mesh = isinstance(x.sharding, NamedSharding)
    return replicate(x.sharding.mesh, tree) if is_on_mesh else tree


def _tell(signal_number):
    """Say what happens after a signal."""
    print("\nfinishing this epoch; a Ctrl-C from now on stops at once", file=sys.stderr, flush=True)


def _describe(number, epochs, row):
    """A line of progress, whose columns stay in line."""
    values = [f"{name.replace('_', ' ')} {value:<9.4g}" for name, value in row.items()]
    return "  ".join([f"epoch {number:>{len(str(epochs))}}/{epochs}", *values])
