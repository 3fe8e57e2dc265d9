"""What the scripts' command lines share: a parser with one-line errors, types, files, an end."""

import argparse
import contextlib
import csv
import fcntl
import io
import math
import os
import pathlib
import re
import signal
import sys
import tempfile
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
                    fnn.checkpoint.check_regular(path)
        except (OSError, RecursionError) as error:  # the latter where folders are nested too deep
            reason = getattr(error, "strerror", None) or error
            self.error(f"argument {option}: cannot write {path}: {reason}")


def positive_int(text: str) -> int:
    return _parse(int, text, 1, 2**31 - 1, f"an integer from 1 to {2**31 - 1}")


def layer_width(text: str) -> int:
    return _parse(int, text, 1, 2**16, f"an integer from 1 to {2**16}")


def seed(text: str) -> int:
    return _parse(int, text, 0, 2**32 - 1, f"an integer from 0 to {2**32 - 1}")


def num_points(text: str) -> int:
    return _parse(int, text, 1, 10**8, f"an integer from 1 to {10**8}")


def folder(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder, got ''")
    return pathlib.Path(text)


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
    with fnn.checkpoint.replacement(path) as file:
        file.write(text.encode())


def write_rows(path: pathlib.Path, rows: Iterable[Sequence]) -> None:
    """As write_text, with the rows as comma-separated values."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def tell(message: str, start: str = "") -> None:
    """Print a line on stderr with `start` and the script's name before it, if anybody listens."""
    line = f"{pathlib.Path(sys.argv[0]).name}: {message}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    with contextlib.suppress(OSError):
        print(start + line, file=sys.stderr, flush=True)


def run(
    work: Callable[[argparse.Namespace], int],
    options: argparse.Namespace,
    folder: pathlib.Path | None = None,
) -> int:
    """The exit status of work(options); what stops it from outside is told in one line.

    While it works no other process can run with the same `folder`: that one ends with a UserError.
    """
    message, interrupts = None, signal.getsignal(signal.SIGINT)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where it has no letter such as ±
    try:
        with sole_use(folder):
            start_jax()
            if interrupts is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = work(options)
            print(end="", flush=True)  # so that it fails here, if it does, and not at the exit
    except UserError as error:
        message, status = str(error), 2
    except BrokenPipeError:  # who read the output has seen enough
        status = 128 + signal.SIGPIPE
    except MemoryError:
        message, status = "there is not enough memory", 1
    except (OSError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
        message, status = (str(error) or type(error).__name__).splitlines()[0], 1
    except KeyboardInterrupt:
        message, status = "interrupted", 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, interrupts)
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        tell(f"error: {message}")
    return status


def leave(status: int) -> NoReturn:
    """End the process; at once after a signal, when threads that still compile may crash it."""
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
    fnn.checkpoint.check_regular(lock)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {folder}") from None
        for path in folder.iterdir():
            if fnn.checkpoint.UNFINISHED.search(path.name) and path.is_file():
                path.unlink()  # what was being written when a run was killed
        yield


def start_jax() -> None:
    """Raise UserError if there are no devices of the kind that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plug-in is installed
        reason = str(error) or f"there is no backend for {jax.config.jax_platforms!r}"
        raise UserError(reason.splitlines()[0]) from error
