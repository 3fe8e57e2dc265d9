"""The loop over epochs of all training scripts: metrics, progress, checkpoints, interruptions."""

import argparse
import csv
from collections.abc import Callable, Sequence
from typing import Any

import distributed
import jax
import resumable
from command_line import progress


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
    find_nonfinite: Callable[[Any], tuple[str, str] | None],
) -> tuple[Any, str | None, int]:
    """Run the epochs that the table has no row of, and give them one; metrics.csv has them all.

    Returns the last state that is good, what is wrong, if anything, and the exit status.

    Args:
        run_epoch: (state, epoch) -> (state, metrics, losses).
        columns: the names of the metrics, which format_row(*metrics) makes text of for
            metrics.csv, and format_progress(epoch, metrics) for those who watch.
        remedy: what to do against numbers that are not finite.
        find_nonfinite: state -> the layer and direction where they are met first, or None.
    """
    with (
        open(options.output / "metrics.csv", "w", newline="") as file,
        progress(options.epochs, options.quiet) as report,
        resumable.interruptions() as interruption,
    ):
        writer = csv.writer(file)
        writer.writerow(["epoch", *columns])
        for epoch, metrics in enumerate(table, 1):
            writer.writerow([epoch, *format_row(*metrics)])
        for epoch in range(len(table) + 1, options.epochs + 1):
            with distributed.epoch_deadline(options):
                new_state, metrics, losses = run_epoch(state, epoch)
                table.append([*map(float, jax.device_get(metrics))])
            writer.writerow([epoch, *format_row(*table[-1])])
            if not resumable.is_finite((losses, metrics, new_state)):
                what = "loss is" if not resumable.is_finite((losses, metrics)) else "parameters are"
                where = find_nonfinite(new_state) if jax.process_count() == 1 else None
                place = " (first met: layer {}, {})".format(*where) if where else ""
                problem = f"the {what} not finite in epoch {epoch}{place}: {remedy}"
                return state, problem, 1
            state = new_state
            report(epoch, f"epoch {epoch}/{options.epochs}  {format_progress(epoch, table[-1])}")
            number, is_last = distributed.largest(options, interruption()), epoch == options.epochs
            if number or is_last or epoch % options.checkpoint_every == 0:
                resumable.store(options, jax.device_get(state), table)
                number = distributed.largest(options, interruption())
            if number and not is_last:
                problem = f"interrupted in epoch {epoch}: the same command with --resume goes on"
                return state, problem, 128 + number
    return state, None, 0
