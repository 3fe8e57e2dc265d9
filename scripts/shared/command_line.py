"""The command line of every script: a parser, types of options, errors of one line, the end."""

import argparse
import contextlib
import io
import math
import os
import pathlib
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import jax

import fnn


class UserError(Exception):
    """The user gave something wrong. The script tells it in one line and ends with status 2."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults, takes no abbreviations and errs in one line.

    --help ends with a script's docstring as it stands, without its first line.
    """

    def __init__(self, description: str, docstring: str | None = None):
        super().__init__(
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        # argparse takes -1e-3 and -inf for options unless told that they are numbers.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf|nan)")
        self._body = (docstring or "").partition("\n")[2]  # python -OO leaves none

    def format_help(self) -> str:
        return super().format_help() + self._body

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def check_most(self, option: str, value: int, most: int, text: str) -> None:
        """End with an error if the value is more than `most`, which the text describes."""
        if value > most:
            self.error(f"argument --{option}: expected at most {text}, got {value}")

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
                    if not path.is_dir():  # open itself refuses a folder
                        fnn.files.check_regular(path)
                    open(path, "r+b").close()
        except (OSError, RecursionError) as error:  # the latter where folders are nested too deep
            reason = getattr(error, "strerror", None) or error
            self.error(f"argument {option}: cannot write {path}: {reason}")


def _number(kind: type, low: float, high: float) -> Callable[[str], float]:
    name = "an integer" if kind is int else "a number"
    expected = f"expected {name} from {low} to {high}".replace("e+", "e")

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
        return value

    return parse


# Types of options.
positive_int = _number(int, 1, 2**31 - 1)
layer_width = _number(int, 1, 2**16)
num_points = _number(int, 1, 10**8)
seed = _number(int, 0, 2**32 - 1)
nonnegative_float = _number(float, 0, 3e38)
fraction = _number(float, 0, 1)


def folder(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder, got ''")
    return pathlib.Path(text)


def format_metrics(columns: Iterable[str], metrics: Iterable[float]) -> list[str]:
    """The metrics as text for a table, accuracies without float32's last digits."""
    digits = (6 if column.endswith("accuracy") else 8 for column in columns)
    return [f"{value:.{n}g}" for value, n in zip(metrics, digits, strict=True)]


def collapse(predicted: Sequence[int], labels: Sequence[int]) -> str:
    """What the summary line adds if all predictions are one class and the labels are not."""
    if len({*predicted}) == 1 < len({*labels}):
        return f"; the network has collapsed: it says class {predicted[0]} for all test examples"
    return ""


def tell(message: str, start: str = "") -> None:
    """Print `start`, the script's name and the message as a line on stderr, if there is one."""
    if sys.stderr is None:  # print would take stdout for it
        return
    line = f"{pathlib.Path(sys.argv[0]).name}: {message}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    with contextlib.suppress(OSError):
        print(start + line, file=sys.stderr, flush=True)


def run(work: Callable, options: argparse.Namespace, folder: pathlib.Path | None = None) -> int:
    """Return the exit status of work(options), and tell in one line what stops it early.

    It locks `folder`, so that another process that runs with the same one ends with status 2.
    """
    message, interrupts = None, signal.getsignal(signal.SIGINT)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for letters that it lacks, such as ±
    try:
        with fnn.files.sole_use(folder) if folder else contextlib.nullcontext():
            start_jax()
            if interrupts is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = work(options)
            print(end="", flush=True)  # so that it fails here, if it does, and not at the exit
    except (UserError, fnn.files.InUseError) as error:
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
    """End the process. After a signal JAX may still compile, and Python's own end could crash."""
    if status > 128:
        os._exit(status)
    sys.exit(status)


def make_gpu_deterministic() -> None:
    """Let XLA use kernels that give the same bits every time, unless the user has decided."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()


def start_jax() -> None:
    """Raise UserError if there are no devices of the kind that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plug-in is installed
        reason = str(error) or f"there is no backend for {jax.config.jax_platforms!r}"
        raise UserError(reason.splitlines()[0]) from error
