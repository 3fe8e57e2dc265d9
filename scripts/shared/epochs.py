"""The loop over epochs of all training scripts: metrics, progress, checkpoints, interruptions."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from shared import distributed, resumable
from shared.command_line import progress, tell, write_rows

import fnn

LOOKED_AT_ONCE = 1000  # examples


def run_epochs(
    options: argparse.Namespace,
    run_epoch: Callable[[Any, int], tuple[Any, Any, Any]],
    state: Any,
    table: list[list[float]],
    *,
    columns: Sequence[str],
    format_row: Callable[..., list[str]],
    format_progress: Callable[[int, list[float]], str],
    remedy: str,
    find_nonfinite: Callable[[Any, int], tuple[str, str] | None],
    interruption: Callable[[], int | None],
) -> tuple[Any, int]:
    """Run the epochs that the table has no row of, and give them one.

    Checkpoint and metrics.csv are written every so many epochs, and where the run ends. What ends
    it early is told. Returns the last state that is good, and the exit status.

    Args:
        run_epoch: (state, epoch) -> (state, metrics, losses).
        columns: the names of the metrics, which format_row(*metrics) makes text of for
            metrics.csv, and format_progress(epoch, metrics) for those who watch.
        remedy: what to do against numbers that are not finite.
        find_nonfinite: (state, epoch) -> the layer and direction where they are met first, or None.
        interruption: as resumable.interruptions gives it.
    """
    if options.resume and not options.quiet:
        where = f"after epoch {len(table)}" if table else "nothing: there is no checkpoint"
        print(f"resumed   {where}", flush=True)

    def write_metrics():
        if jax.process_index() > 0:
            return
        rows = ([epoch, *format_row(*metrics)] for epoch, metrics in enumerate(table, 1))
        write_rows(options.output / "metrics.csv", [["epoch", *columns], *rows])

    problem, status = None, 0
    write_metrics()
    with progress(options.epochs, options.quiet) as report:
        for epoch in range(len(table) + 1, options.epochs + 1):
            with distributed.epoch_deadline(options):
                new_state, metrics, losses = run_epoch(state, epoch)
                table.append([*map(float, jax.device_get(metrics))])
            if not resumable.is_finite((losses, metrics, new_state)):
                write_metrics()
                what = "loss is" if not resumable.is_finite((losses, metrics)) else "parameters are"
                where = find_nonfinite(state, epoch) if jax.process_count() == 1 else None
                place = " (first met: layer {}, {})".format(*where) if where else ""
                problem = f"the {what} not finite in epoch {epoch}{place}: {remedy}"
                status = 1
                break
            state = new_state
            number, is_last = distributed.largest(options, interruption()), epoch == options.epochs
            if number or is_last or epoch % options.checkpoint_every == 0:
                write_metrics()
                if jax.process_index() == 0:
                    resumable.store(options, jax.device_get(state), table)
                number = distributed.largest(options, interruption())
            if number and not is_last:
                problem = f"interrupted in epoch {epoch}: the same command with --resume goes on"
                status = 128 + number
                break
            report(epoch, f"epoch {epoch}/{options.epochs}  {format_progress(epoch, table[-1])}")
    if problem:
        is_first = jax.process_index() == 0
        tell(problem + (f"; {options.output} has the results so far" if is_first else ""))
    return state, status


def find_nonfinite(
    model: fnn.Layer,
    loss: fnn.Loss,
    optimizer: fnn.Optimizer,
    batch_size: int,
    state: fnn.TrainState,
    x: jax.Array,
    target: jax.Array,
    key: jax.Array,
) -> tuple[str, str] | None:
    """The layer and direction where an epoch from `state` first meets what is not finite, or None.

    The epoch is run once more, up to the first step whose gradients are not finite. With the
    parameters of that moment fnn.find_nonfinite then looks at the examples.
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

    until_then = fnn.Optimizer(optimizer.init, update)
    run_epoch = fnn.make_train_epoch(model, loss, until_then, batch_size)
    state = fnn.TrainState(state.params, (state.opt_state, jnp.array(True)))
    params = run_epoch(state, x, target, key)[0].params
    for start in range(0, len(x), LOOKED_AT_ONCE):
        part = slice(start, start + LOOKED_AT_ONCE)
        if where := fnn.find_nonfinite(model, loss, params, x[part], target[part]):
            return where
    return None
