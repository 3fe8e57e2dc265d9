"""What the training scripts share: options, checkpoints, and the loop as the user sees it."""

import argparse
import functools
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from shared import devices, distributed
from shared.command_line import Parser, UserError, positive_int, tell, write_rows

import fnn

CHECKPOINT = "checkpoint.npz"
FILES = ["metrics.csv", "params.npz", CHECKPOINT]
# These options may change from a run to the one that resumes it. Those on processes are among them,
# so that a run can go on with another number of devices.
NO_SETTINGS = (
    *("data", "output", "checkpoint_every", "resume", "quiet"),
    *("data_parallel", "coordinator", "num_processes", "process_id"),
    *("start_timeout", "epoch_timeout"),
)
# JAX's own options that change the results, and their defaults.
JAX_SETTINGS = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None,
}


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
    option("--data-parallel", action="store_true", help="train on all devices, of all processes")
    option(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, if not told by JAX_COORDINATOR_ADDRESS, Slurm or Open MPI; "
        "with it, --data-parallel goes without saying",
    )
    option("--num-processes", type=positive_int, metavar="N", help="how many processes there are")
    option("--process-id", type=int, metavar="I", help="which one this is, from 0 to N - 1")
    for name, default, help in (
        ("start", 60, "how long the processes wait for each other at the start"),
        ("epoch", 600, "how long one waits for the others to finish an epoch and its compilation"),
    ):
        timeout = {"type": positive_int, "default": default, "metavar": "SECONDS"}
        option(f"--{name}-timeout", **timeout, help=help)
    option(
        "--fast",
        action="store_true",
        help="let a GPU use its fastest kernels: the same seed may then give other bits there",
    )
    option("--quiet", action="store_true", help="print the summary line alone")


def check_options(parser: Parser, options: argparse.Namespace, figures: Sequence[str]) -> None:
    """End with an error if the options do not fit together, or the files cannot be written."""
    number, count = options.process_id, options.num_processes
    address = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if distributed.uses_all_devices(options) and address is not None:
        host, _, port = address.rpartition(":")
        if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
            parser.error(f"argument --coordinator: expected HOST:PORT, got {address!r}")
    if (count is None) != (number is None):
        parser.error("arguments --num-processes and --process-id: expected both or none")
    if count is not None and not 0 <= number < count:
        parser.error(
            f"argument --process-id: expected an integer from 0 to {count - 1}, got {number}"
        )
    if count is not None and address is None:
        parser.error("argument --coordinator: expected HOST:PORT with --num-processes, got none")
    if not number:
        parser.check_output(options.output, [*FILES, *figures])


def run(
    train: Callable[[argparse.Namespace, Callable[[], int | None]], int],
    options: argparse.Namespace,
) -> int:
    """The exit status of train(options, interruption), in each of the processes that there are.

    See fnn.interruptions for `interruption`.
    """

    def heard(number):
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        start = "\n" if on_terminal else ""  # where progress has left a line open
        tell("finishing this epoch and its results; a Ctrl-C from now on stops at once", start)

    def work(options):
        with fnn.interruptions(heard) as interruption:
            return train(options, interruption)

    flags = os.environ.get("XLA_FLAGS", "")
    if not options.fast and "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    same = {
        "options": [
            option
            for option in vars(options).items()
            if option[0] not in NO_SETTINGS or option[0] in ("checkpoint_every", "num_processes")
        ],
        "settings of JAX": [getattr(jax.config, name) for name in JAX_SETTINGS],
        "versions of JAX": jax.__version__,
        "versions of fnn": [
            path.read_bytes() for path in sorted(pathlib.Path(fnn.__file__).parent.rglob("*.py"))
        ],
    }
    return distributed.run(work, options, same)


def settings(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What the results depend on: options, `more`, and those of JAX's options that were changed.

    Flags that are not given are left out too. So older checkpoints, which know nothing of a newer
    flag, have the same settings as a run without it.
    """
    given = {name: value for name, value in vars(options).items() if value is not False}
    ours = {name: value for name, value in given.items() if name not in NO_SETTINGS}
    of_jax = {name: getattr(jax.config, name) for name in JAX_SETTINGS}
    changed = {name: value for name, value in of_jax.items() if value != JAX_SETTINGS[name]}
    return ours | more | changed


def remove_older_checkpoint(options: argparse.Namespace) -> None:
    """Remove it unless this run resumes it. Else --resume could find it if this run is killed."""
    if not options.resume and jax.process_index() == 0:
        (options.output / CHECKPOINT).resolve().unlink(missing_ok=True)


def run_epochs(
    options: argparse.Namespace,
    run_epoch: Callable[[Any, int], tuple[Any, Any, Any]],
    state: fnn.TrainState,
    columns: Sequence[str],
    *,
    mesh: jax.sharding.Mesh | None,
    data_checksum: Any,
    interruption: Callable[[], int | None],
    diagnose: Callable[[Any, int], tuple[str, str] | None],
    description: str,
    format_row: Callable[..., list[str]],
    format_progress: Callable[[list[float], str], str],
    remedy: str,
) -> tuple[Any, list[list[float]], int]:
    """Run fnn.run_epochs, resume if asked to, write metrics.csv, show progress, tell an early end.

    Returns the parameters on the host, a row of metrics for each epoch, and the exit status.

    Args:
        description: the text that says what is about to run.
        format_row: makes the texts in metrics.csv of the metrics.
        format_progress: makes the text shown after an epoch of the metrics and the time left.
        remedy: what the user can do if numbers are not finite.

    Raises:
        UserError: the checkpoint is corrupt or is another run's, or a process has other data.
    """
    timeout, path = options.epoch_timeout, options.output / CHECKPOINT
    distributed.agree(timeout, {"data": data_checksum})
    run_settings = settings(options, data_checksum=data_checksum)
    history = []
    with distributed.together(timeout):
        if options.resume and jax.process_index() == 0:
            try:
                state, history = fnn.load_checkpoint(
                    path, state, options.epochs, columns, settings=run_settings
                )
            except ValueError as error:
                raise UserError(f"{error}; without --resume the run begins anew") from error
    state, history = distributed.from_first(timeout, state, history)
    state, num_before = devices.place(mesh, state), len(history)
    if not options.quiet:
        print(description, flush=True)
        if options.resume:
            where = f"after epoch {num_before}" if history else "nothing: there is no checkpoint"
            print(f"resumed   {where}", flush=True)

    def write_metrics():
        if jax.process_index() == 0:
            rows = ([number, *format_row(*row.values())] for number, row in enumerate(history, 1))
            write_rows(options.output / "metrics.csv", [["epoch", *columns], *rows])

    def run_epoch_in_time(state, number):
        with distributed.epoch_deadline(timeout):
            return jax.block_until_ready(run_epoch(state, number))

    problem, status, started = None, 0, time.monotonic()
    write_metrics()
    try:
        with fnn.progress(options.epochs, options.quiet) as report:
            for epoch in fnn.run_epochs(
                run_epoch_in_time,
                state,
                options.epochs,
                columns,
                history=history,
                checkpoint=path,
                checkpoint_every=options.checkpoint_every,
                settings=run_settings,
                interruption=lambda: distributed.largest(timeout, interruption()),
                diagnose=diagnose if jax.process_count() == 1 else None,
            ):
                number, state, history = epoch
                if number % options.checkpoint_every == 0:
                    write_metrics()
                rest = fnn.time_left(started, number - num_before, options.epochs - num_before)
                text = format_progress([*history[-1].values()], rest)
                width = len(str(options.epochs))
                report(number, f"epoch {number:{width}}/{options.epochs}  {text}")
    except fnn.NotFiniteError as error:
        history, problem, status = error.history, f"{error}: {remedy}", 1
    except fnn.Interrupted as error:
        problem, status = f"{error}: the same command with --resume goes on", 128 + error.number
    write_metrics()
    if problem:
        is_first = jax.process_index() == 0
        tell(problem + (f"; {options.output} has the results so far" if is_first else ""))
    return jax.device_get(state.params), [[*row.values()] for row in history], status


def checksum(tree: Any) -> int:
    """A CRC-32 of all the tree's arrays and their shapes."""
    arrays = jax.device_get(jax.tree.leaves(tree))
    start = zlib.crc32(repr([*map(jnp.shape, arrays)]).encode())
    return functools.reduce(lambda value, array: zlib.crc32(array, value), arrays, start)


def collapse(predicted: Sequence[int], labels: Sequence[int]) -> str:
    """What the summary line adds if all predictions are one class and the labels are not."""
    if len({*predicted}) == 1 < len({*labels}):
        return f"; the network has collapsed: it says class {predicted[0]} for all test examples"
    return ""
