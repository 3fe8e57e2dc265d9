"""What the training scripts share: options, checkpoints, and the loop as the user sees it."""

import argparse
import contextlib
import functools
import math
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from shared import command_line, distributed
from shared.command_line import Parser, UserError, format_metrics, positive_int, tell

import fnn
from fnn.files import write_rows

CHECKPOINT = "checkpoint.npz"
# Where an older checkpoint is while a fresh run starts. sole_use removes files of such names.
HIDDEN = f"{CHECKPOINT}.00000000.unfinished"
FILES = ["metrics.csv", "params.npz", CHECKPOINT]
# These options may change from a run to the one that resumes it. Those on processes are among them,
# so that a run can go on with another number of devices.
NO_SETTINGS = (
    *("data", "output", "checkpoint_every", "resume", "quiet"),
    *("data_parallel", "coordinator", "num_processes", "process_id"),
    *("start_timeout", "epoch_timeout"),
    *("prompt", "temperature", "top_k", "sample", "source", "no_page"),
)
# JAX's own options that change the results, and their defaults.
JAX_SETTINGS = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None,
    "jax_random_seed_offset": 0,
}


class Trained(NamedTuple):
    """What run_epochs returns."""

    params: Any  # on the host
    table: list[list[float]]  # a row of metrics for each epoch
    status: int  # the exit status; 0 if the training is complete
    num_steps: int  # of a complete training


def add_options(parser: Parser, checkpoint_every: int) -> None:
    option = parser.add_argument
    number = {"type": positive_int, "metavar": "N"}
    seconds = {"type": positive_int, "metavar": "SECONDS"}
    every = "epochs from one checkpoint to the next"
    option("--checkpoint-every", **number, default=checkpoint_every, help=every)
    option("--resume", action="store_true", help="go on from the checkpoint in --output, if any")
    option("--data-parallel", action="store_true", help="train on all devices, of all processes")
    option(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, if not told by JAX_COORDINATOR_ADDRESS, Slurm or Open MPI; "
        "with it, --data-parallel goes without saying",
    )
    option("--num-processes", **number, help="how many processes there are")
    option("--process-id", type=int, metavar="I", help="which one this is, from 0 to N - 1")
    start = "how long the processes wait for each other at the start"
    option("--start-timeout", **seconds, default=60, help=start)
    epoch = "how long one waits for the others to finish an epoch and its compilation"
    option("--epoch-timeout", **seconds, default=600, help=epoch)
    fast = "let a GPU use its fastest kernels: the same seed may then give other bits there"
    option("--fast", action="store_true", help=fast)
    option("--quiet", action="store_true", help="print the summary line alone")


def check_options(parser: Parser, options: argparse.Namespace, figures: Sequence[str]) -> None:
    """End with an error if the options do not fit together, or the files cannot be written."""
    number, count = options.process_id, options.num_processes
    address = options.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if distributed.uses_all_devices(options) and address is not None:
        host, _, port = address.rpartition(":")
        if not host or not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 2**16):
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


def run(train: Callable, report: Callable, options: argparse.Namespace) -> int:
    """Train in each of the processes that there are, and report in the first one.

    train(options, run_epochs) -> (trained, more): it calls the function below, without its first
        two arguments. It returns what that returned, and anything that report needs.
    report(options, trained, more) -> (text, predicted, labels): it writes the results. The text is
        the beginning of the summary line, the others are classes of the test examples. If the
        training is not complete, it returns None.
    """
    started = time.monotonic()

    def heard(number):
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        start = "\n" if on_terminal else ""  # where progress has left a line open
        tell("finishing this epoch and its results; a Ctrl-C from now on stops at once", start)

    def work(options):
        count = distributed.count_devices(options)
        for name in ("batch_size", "train_size"):
            if (value := vars(options).get(name, 0)) % count:
                flag, expected = name.replace("_", "-"), f"a multiple of the {count} devices"
                raise UserError(f"argument --{flag}: expected {expected}, got {value}")
        with fnn.interruptions(heard) as interruption, older_checkpoint_hidden(options):
            loop = functools.partial(run_epochs, options, interruption)
            trained, results = train(options, loop)
            summary = report(options, trained, results) if jax.process_index() == 0 else None
        if summary:
            text, predicted, labels = summary
            seconds = f"{time.monotonic() - started:.1f} seconds"
            steps = f"{options.epochs} epochs, {trained.num_steps} steps"
            print(f"{text}, {steps}, {seconds}{command_line.collapse(predicted, labels)}")
        return trained.status

    if not options.fast:
        command_line.make_gpu_deterministic()
    may_differ = {*NO_SETTINGS} - {"checkpoint_every", "num_processes"}
    same = {
        "options": [item for item in vars(options).items() if item[0] not in may_differ],
        "settings of JAX": [getattr(jax.config, name) for name in JAX_SETTINGS],
        "versions of JAX": jax.__version__,
        "versions of fnn": [
            path.read_bytes() for path in sorted(pathlib.Path(fnn.__file__).parent.rglob("*.py"))
        ],
    }
    return distributed.run(work, options, same)


@contextlib.contextmanager
def older_checkpoint_hidden(options: argparse.Namespace) -> Iterator[None]:
    """Hide the checkpoint of an older run while a fresh one starts; an error brings it back.

    Else --resume could go on from it if the fresh run is killed. run_epochs removes it for good.
    """
    path, hidden = options.output / CHECKPOINT, options.output / HIDDEN
    is_fresh = not options.resume and jax.process_index() == 0
    try:
        if is_fresh and path.exists():
            os.replace(path, hidden)
        yield
    except Exception:
        if is_fresh and os.path.lexists(hidden):
            os.replace(hidden, path)
        raise


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


def run_epochs(
    options, interruption, run_epoch, parts, state, data, key,
    *, data_checksum, description, columns, progress, remedy,
    draw_examples=None, note=None, watch=lambda number, params: None,
) -> Trained:  # fmt: skip
    """Run fnn.run_epochs, resume if asked to, write metrics.csv, show progress, tell an early end.

    Args:
        run_epoch: (data, state, key) -> (state, losses, metrics), which is compiled here.
        parts: the model, the loss and the optimizer.
        data: on its devices. The first entry is the training set, which begins with x and target.
        data_checksum: the same in every process, and in the run that this one resumes.
        description: the text that says what is about to run.
        columns: the names of the metrics.
        progress: the format of the text after an epoch, made of the metrics and the time left.
        remedy: what the user can do if numbers are not finite.
        draw_examples: (data, key) -> x and target of an epoch, in the order of its steps. By
            default they are those of the training set, in random order.
        note: what params.npz says beside the parameters, for fnn.read_note.
        watch: (number of epochs, params) is called in the first process, before the first epoch of
            this run and after each.

    Raises:
        UserError: the checkpoint is corrupt or is another run's, or a process has other data.
    """
    timeout, path = options.epoch_timeout, options.output / CHECKPOINT
    is_first, history = jax.process_index() == 0, []
    distributed.agree(timeout, {"data": data_checksum})
    kept = {"settings": settings(options, data_checksum=data_checksum)}
    with distributed.together(timeout):
        if options.resume and is_first:
            try:
                state, history = fnn.load_checkpoint(path, state, options.epochs, columns, **kept)
                _check_table(path, history)
            except ValueError as error:
                raise UserError(f"{error}; without --resume the run begins anew") from error
        elif is_first:
            hidden = options.output / HIDDEN
            hidden.resolve().unlink(missing_ok=True)
            if hidden.is_symlink():
                os.replace(hidden, path)
    state, history = distributed.from_first(timeout, state, history)
    state, key, num_before = *distributed.place(options, (state, key)), len(history)
    num_steps = options.epochs * math.ceil(len(data[0][0]) / options.batch_size)
    if not options.quiet:
        print(description)
        work = f"{options.epochs} epochs, batch size {options.batch_size}: {num_steps} steps"
        print(f"run       {work}; seed {options.seed}")
        print(f"device    {distributed.describe_devices()}\noutput    {options.output}", flush=True)
        if options.resume:
            where = f"after epoch {num_before}" if history else "nothing: there is no checkpoint"
            print(f"resumed   {where}", flush=True)

    @jax.jit
    def run_numbered_epoch(data, key, state, number):
        return run_epoch(data, state, jax.random.fold_in(key, number))

    def run_epoch_in_time(state, number):
        with distributed.epoch_deadline(timeout):
            return jax.block_until_ready(run_numbered_epoch(data, key, state, number))

    def diagnose(state, number):
        epoch_key = jax.random.fold_in(key, number)
        x, target = draw_examples(data, epoch_key) if draw_examples else data[0][:2]
        arguments = *parts, options.batch_size, state, x, target, epoch_key
        return fnn.find_nonfinite_in_epoch(*arguments, shuffle=not draw_examples)

    def write_metrics():
        if is_first:
            rows = [[n, *format_metrics(columns, row.values())] for n, row in enumerate(history, 1)]
            write_rows(options.output / "metrics.csv", [["epoch", *columns], *rows])

    problem, status, started = None, 0, time.monotonic()
    write_metrics()
    watch = watch if is_first else lambda number, params: None
    watch(num_before, state.params)
    try:
        with fnn.progress(options.epochs, options.quiet) as show:
            for epoch in fnn.run_epochs(
                run_epoch_in_time,
                state,
                options.epochs,
                columns,
                history=history,
                checkpoint=path,
                checkpoint_every=options.checkpoint_every,
                **kept,
                interruption=lambda: distributed.largest(timeout, interruption()),
                diagnose=diagnose if jax.process_count() == 1 else None,
            ):
                number, state, history = epoch
                if number % options.checkpoint_every == 0:
                    write_metrics()
                watch(number, state.params)
                rest = fnn.time_left(started, number - num_before, options.epochs - num_before)
                text = progress.format(*history[-1].values(), rest=rest)
                width = len(str(options.epochs))
                show(number, f"epoch {number:{width}}/{options.epochs}  {text}")
    except fnn.NotFiniteError as error:
        history, problem, status = error.history, f"{error}: {remedy}", 1
    except fnn.Interrupted as error:
        problem, status = f"{error}: the same command with --resume goes on", 128 + error.number
    write_metrics()
    if problem:
        tell(problem + (f"; {options.output} has the results so far" if is_first else ""))
    params = jax.device_get(state.params)
    if is_first:
        fnn.save(options.output / "params.npz", params, note=note)
    return Trained(params, [[*row.values()] for row in history], status, num_steps)


def _check_table(path, history):
    """Raise ValueError for a loss below 0 or an accuracy outside of 0 to 1: no run stores one."""
    for name, value in (item for row in history for item in row.items()):
        if not 0 <= value <= (1 if name.endswith("accuracy") else math.inf):
            raise ValueError(f"{path}: expected a {name.replace('_', ' ')}, got {value:.3g}")


def checksum(tree: Any) -> int:
    """A CRC-32 of all the tree's arrays and their shapes."""
    arrays = jax.device_get(jax.tree.leaves(tree))
    start = zlib.crc32(repr([*map(jnp.shape, arrays)]).encode())
    return functools.reduce(lambda value, array: zlib.crc32(array, value), arrays, start)
