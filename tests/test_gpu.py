"""What only a GPU can show."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
from test_train_mnist import draw_set, write

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"
ENVIRONMENT = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # each compiles for itself

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="only on a GPU may two processes compile other programs"
)


def train_twice(folder, script, *arguments):
    """The bytes of params.npz of two runs, each in a process of its own."""
    for output in (folder / "first", folder / "second"):
        command = [sys.executable, SCRIPTS / script, *arguments, "--quiet", "--output", output]
        subprocess.run(command, env=ENVIRONMENT, check=True)
        yield (output / "params.npz").read_bytes()


def test_train_disk_gives_the_same_bits_twice(tmp_path):
    first, second = train_twice(tmp_path, "train_disk.py", "--epochs", "20", "--seed", "3")
    assert first == second


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_train_mnist_gives_the_same_bits_twice(tmp_path, model):
    write(tmp_path, *draw_set(1, 2000, 28, 28), *draw_set(2, 200, 28, 28))
    arguments = "--data", tmp_path, "--model", model, "--epochs", "3"
    first, second = train_twice(tmp_path, "train_mnist.py", *arguments)
    assert first == second
