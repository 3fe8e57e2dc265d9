"""What the scripts' command lines share: a parser with one-line errors, types, files, progress."""

import argparse
import contextlib
import csv
import fcntl
import io
import math
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

import jax

import fnn


class UserError(Exception):
    """What a user gave is found wrong while the work goes on: told in one line, exit status 2."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults, takes no abbreviations and errs in one line."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        # argparse takes -1e-3 and -inf for options unless told that they are numbers.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)")

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def check_output(
        self, folder: pathlib.Path, file_names: Sequence[str], option: str = "--output"
    ) -> None:
        """Create `folder`; end with an error unless the files can be written in it."""
        path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            for path in map(folder.joinpath, file_names):
                if os.path.lexists(path):
                    open(path, "r+b").close()
                    fnn.files.check_regular(path)
        except OSError as error:
            self.error(f"argument {option}: cannot write {path}: {error.strerror or error}")


def positive_int(text: str) -> int:
    return _parse(int, text, 1, 2**31 - 1, f"an integer from 1 to {2**31 - 1}")


def layer_width(text: str) -> int:
    return _parse(int, text, 1, 2**16, f"an integer from 1 to {2**16}")


def seed(text: str) -> int:
    return _parse(int, text, 0, 2**32 - 1, f"an integer from 0 to {2**32 - 1}")


def nonnegative_float(text: str) -> float:
    return _parse(float, text, 0, 3e38, "a number from 0 to 3e38")


def fraction(text: str) -> float:
    return _parse(float, text, 0, 1, "a number from 0 to 1")


def _parse(kind, text, low, high, expected):
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def write_text(path: pathlib.Path, text: str) -> None:
    """The file is `text` as a whole, or as it was before."""
    with fnn.replace_file(path) as file:
        file.write(text.encode())


def write_rows(path: pathlib.Path, rows: Iterable[Sequence]) -> None:
    """As write_text, with the rows as comma-separated values."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def time_left(start: float, done: int, total: int) -> str:
    """How long the rest takes at the pace since `start`, a time.monotonic(): "12:05 left"."""
    seconds = round((time.monotonic() - start) / done * (total - done))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


@contextlib.contextmanager
def progress(total: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
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


def tell(message: str, start: str = "") -> None:
    """Print a line on stderr with `start` and the script's name before it, if anybody listens."""
    with contextlib.suppress(OSError):
        print(f"{start}{pathlib.Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)


def run(
    work: Callable[[argparse.Namespace], int],
    options: argparse.Namespace,
    folder: pathlib.Path | None = None,
) -> int:
    """The exit status of work(options); what stops it from outside is told in one line.

    While it works no other process can run with the same `folder`: that one ends with a UserError.
    """
    message = None
    try:
        with sole_use(folder):
            start_jax()
            status = work(options)
            print(end="", flush=True)  # so that it fails here, if it does, and not at the exit
    except UserError as error:
        message, status = str(error), 2
    except BrokenPipeError:  # who read the output has seen enough
        status = 128 + signal.SIGPIPE
    except (OSError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
        message, status = (str(error) or type(error).__name__).splitlines()[0], 1
    except KeyboardInterrupt:
        message, status = "interrupted", 128 + signal.SIGINT
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        tell(f"error: {message}")
    return status


def leave(status: int) -> NoReturn:
    """End the process; at once if interrupted: a thread that compiles may crash Python's way."""
    if status > 128:
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def sole_use(folder: pathlib.Path | None) -> Iterator[None]:
    """Holds a lock on the folder, if any, that the system drops however the process ends.

    Raises:
        UserError: another process holds it.
    """
    if folder is None:
        yield
        return
    lock = folder / ".lock"
    fnn.files.check_regular(lock)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {folder}") from None
        fnn.remove_unfinished(folder)
        yield


def start_jax() -> None:
    """Raise UserError if there are no devices of the kind that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plug-in is installed
        reason = str(error) or f"there is no backend for {jax.config.jax_platforms!r}"
        raise UserError(reason.splitlines()[0]) from error
