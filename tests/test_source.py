"""What the source promises about itself: its imports, and no autodiff outside the tests."""

import ast
import pathlib
import sys

import pytest

import fnn

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "fnn").glob("**/*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("**/*.py"))
COMPARISONS = ["shared/pytorch.py"]
AUTODIFF = {
    "grad", "value_and_grad", "vjp", "jvp", "jacobian", "jacfwd", "jacrev", "hessian", "hvp",
    "linearize", "linear_transpose", "fwd_and_bwd", "vjp3", "check_vjp", "check_jvp", "check_grads",
}  # fmt: skip


def imported_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or '.'}.{alias.name}" for alias in node.names)


def autodiff_names(source):
    tree = ast.parse(source)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {name.split(".")[-1] for name in imported_names(tree) if name.startswith("jax")}
    return names & AUTODIFF


def foreign_imports(source, allowed):
    top_level = {name.split(".")[0] for name in imported_names(ast.parse(source))}
    return top_level - allowed - sys.stdlib_module_names


def test_the_package_and_the_scripts_are_found():
    assert len(PACKAGE) > 10
    assert SCRIPTS


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.name)
def test_package_imports_jax_and_the_standard_library_alone(path):
    assert not foreign_imports(path.read_text(), {"jax", "fnn"})


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_jax_fnn_and_each_other_alone(path):
    allowed = {"jax", "fnn", "shared"}
    compares = str(path.relative_to(ROOT / "scripts")) in COMPARISONS
    assert foreign_imports(path.read_text(), allowed) == ({"torch"} if compares else set())


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_import_pytorch_in_functions_alone(name):
    tree = ast.parse((ROOT / "scripts" / name).read_text())
    top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = list(imported_names(ast.Module(top_level, [])))
    assert "jax" in names
    assert "torch" not in {name.split(".")[0] for name in names}
    assert "torch" not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=lambda path: path.name)
def test_no_autodiff_outside_the_tests(path):
    assert not autodiff_names(path.read_text())


def test_the_checks_see_what_they_forbid():
    for source in ("import jax\njax.grad(f)", "from jax import vjp", "jax.experimental.jet.jvp"):
        assert autodiff_names(source)
    for source in ("import numpy", "from optax.losses import f", "def f():\n  import flax.linen"):
        assert foreign_imports(source, {"jax", "fnn"})


def test_every_public_name_has_a_docstring():
    assert sorted(fnn.__all__) == fnn.__all__
    assert not [name for name in fnn.__all__ if not getattr(fnn, name).__doc__]
