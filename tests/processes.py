"""Python programs in processes of their own, which tests/fork_server.py starts quickly."""

import atexit
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

TESTS = pathlib.Path(__file__).parent
SCRIPTS = TESTS.parent / "scripts"


class Process:
    """`python *arguments` with the environment added, in `folder`. It writes to the files given."""

    def __init__(self, arguments, environment, folder, out, err):
        self.out, self.err = pathlib.Path(out), pathlib.Path(err)
        self.err.touch()
        self.id = ask(
            {
                "arguments": [*map(str, arguments)],
                "environment": environment,
                "folder": str(folder),
                "out": str(out),
                "err": str(err),
            }
        )

    def send_signal(self, number):
        os.kill(self.id, number)

    def wait(self):
        """The exit status. To be called once."""
        status = ask(self.id)
        if status is None:
            self.send_signal(signal.SIGKILL)
            raise AssertionError(f"ended by {ask(self.id)}: {self.errors()}")
        return status

    def output(self):
        return self.out.read_text()

    def errors(self):
        return self.err.read_text()

    def result(self):
        """The exit status, the output and the errors."""
        return self.wait(), self.output(), self.errors()


def start(arguments, folder=".", out=None, err=None, **environment):
    """Start `python *arguments`, with the environment changed, as a Process."""
    name = files() / str(next(numbers()))
    return Process(arguments, environment, folder, out or f"{name}.out", err or f"{name}.err")


def run(arguments, **options):
    return start(arguments, **options).result()


@functools.cache
def numbers():
    return itertools.count()


@functools.cache
def files():
    """A folder for what processes print."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


@functools.cache
def server():
    path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-P", str(TESTS / "fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    atexit.register(process.__exit__, None, None, None)  # it ends with its input
    return process


def ask(request):
    print(json.dumps(request), file=server().stdin, flush=True)
    return json.loads(server().stdout.readline())
