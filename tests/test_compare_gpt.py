"""scripts/compare_gpt.py as a user runs it, where PyTorch is installed, and its part in fnn."""

import functools
import importlib.util
import re

import chex
import compare_gpt
import jax
import jax.numpy as jnp
import pytest
from shared import pytorch, text

SMALL = "--layers 1 --dim 8 --heads 2 --context 5 --batch-size 3 --steps 4 --rounds 1 --windows 9"
needs_pytorch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


def test_the_comparison_starts_where_pytorch_is_installed(monkeypatch):
    monkeypatch.setattr(pytorch, "import_torch", lambda: None)
    monkeypatch.setattr(compare_gpt, "compare", lambda options: 0)
    assert compare_gpt.main([]) == 0


def test_the_batches_are_windows_of_the_documentation_and_the_dtype_is_as_asked(monkeypatch):
    monkeypatch.setattr(pytorch, "import_torch", lambda: None)
    with jax.enable_x64(True):
        options = compare_gpt.parse_options([*SMALL.split(), "--dtype", "float64"])
        _, _, state, batches, windows = compare_gpt.start(options)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float64")}
    assert len(batches) == 4
    assert windows.shape == (9, 6)
    whole = text.read([])
    vocabulary = "".join(sorted({*whole}))
    for x, target in batches:
        chex.assert_shape([x, target], (3, 5))
        for row, last in zip(x.tolist(), target[:, -1].tolist(), strict=True):
            assert "".join(vocabulary[token] for token in [*row, last]) in whole


def differences(capsys, *changes):
    """What the script prints after each step, and at last."""
    assert compare_gpt.main([*SMALL.split(), *changes]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  fnn +[\d.]+ [mu]s a step  x 1\.00$", out, re.MULTILINE)
    assert re.search(r"^  PyTorch, 1 thread +[\d.]+ [mu]s a step", out, re.MULTILINE)
    steps = re.findall(r"^ +\d+ +[\d.]+ +[\d.]+ +(\S+)$", out, re.MULTILINE)
    assert len(steps) == 4
    (largest,) = re.findall(r"^largest difference: (\S+)$", out, re.MULTILINE)
    assert float(largest) == max(map(float, steps))
    (ours, theirs) = re.search(
        r"^validation: ([\d.]+) bits .* fnn, ([\d.]+) in", out, re.MULTILINE
    ).groups()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-3)
    return float(largest)


@needs_pytorch
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_pytorch_follows_fnn(dtype, tolerance, capsys):
    assert differences(capsys, "--dtype", dtype) < tolerance


@needs_pytorch
def test_another_model_is_seen(capsys, monkeypatch):
    monkeypatch.setattr(text, "make_gpt", functools.partial(text.make_gpt, gelu="tanh"))
    assert differences(capsys, "--dtype", "float64") > 1e-6
