"""Runs Python programs as processes of their own, without the half second that JAX's import takes.

This program imports JAX, and forks. Each line on its standard input is JSON: the arguments of
`become` for a program to start, answered by the process id, or the id of a process to wait for,
answered by its exit status. The answer is null if the process still runs after a minute or two.
"""

import gc
import json
import os
import runpy
import sys
import time
import warnings

import jax
from jax.experimental import multihost_utils  # noqa: F401

import fnn  # noqa: F401

LIMIT = 120  # seconds that a process may take, many times what it takes


def become(arguments, environment, folder, out, err):
    """Run `python *arguments` here. What it prints goes into the files `out` and `err`."""
    for path, flags, number in (
        (os.devnull, os.O_RDONLY, 0),
        (out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 1),
        (err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 2),
    ):
        os.dup2(os.open(path, flags), number)
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding, "backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.update(environment)
    for name, text in environment.items():
        if name.lower() in jax.config.values:  # JAX has read the environment before
            kind = type(jax.config.values[name.lower()])
            if kind is bool:
                text = text in ("1", "true")
            elif kind in (int, float):
                text = kind(text)
            jax.config.update(name.lower(), text)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def wait(number):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def main():
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called")  # no thread has started yet
    gc.freeze()
    gc.disable()  # the forks live for a moment
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            answer = wait(request)
        else:
            answer = os.fork()
            if answer == 0:
                return become(**request)
        print(answer if answer is not None else "null", flush=True)


if __name__ == "__main__":
    main()
