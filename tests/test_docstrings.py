"""The examples in fnn's docstrings print what they say."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import fnn

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_of_fnn():
    """The doctests of every module of the package and of what it defines, by name."""
    names = [info.name for info in pkgutil.walk_packages(fnn.__path__, "fnn.")]
    finder, globs = doctest.DocTestFinder(), {"fnn": fnn, "jax": jax, "jnp": jnp}
    for name in sorted(["fnn", *names]):
        for test in finder.find(importlib.import_module(name), name, globs=globs):
            if test.examples:
                yield test.name, test


EXAMPLES = dict(sorted(examples_of_fnn()))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_docstring_says(name, monkeypatch, tmp_path):
    """In JAX's default configuration of ranks and dtypes, and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    output, runner = [], doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        failed, _ = runner.run(EXAMPLES[name], out=output.append)
    assert not failed, "".join(output)


def test_the_examples_are_found():
    assert {"fnn.layers.linear.Linear", "fnn.tracing.trace"} <= EXAMPLES.keys()
