"""What the source promises about itself: its imports, its length, and no autodiff."""

import ast
import graphlib
import importlib.metadata
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


def name_of(path):
    return str(path.relative_to(ROOT))


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


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_package_imports_jax_and_the_standard_library_alone(path):
    assert not foreign_imports(path.read_text(), {"jax", "fnn"})


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
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


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=name_of)
def test_no_autodiff_outside_the_tests(path):
    assert not autodiff_names(path.read_text())


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE}


def imports_of_fnn(source):
    names = imported_names(ast.parse(source))
    return [name for name in names if name.split(".")[0] == "fnn"]


def imported_modules(source):
    """The modules of fnn that the source imports, or imports a name from."""
    names = imports_of_fnn(source)
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def private_names(source):
    """The names with a leading underscore that the source imports from modules of fnn."""
    names = set(imports_of_fnn(source)) - set(MODULES)
    return {name for name in names if name.rpartition(".")[2].startswith("_")}


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=name_of)
def test_no_file_has_more_than_300_lines(path):
    num_lines = len(path.read_text().splitlines())
    assert num_lines <= 300


def test_the_modules_of_fnn_import_each_other_without_a_cycle():
    graph = {name: imported_modules(path.read_text()) for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_no_module_imports_a_private_name_of_another(path):
    assert not private_names(path.read_text())


def test_the_checks_see_what_they_forbid():
    for source in ("import jax\njax.grad(f)", "from jax import vjp", "jax.experimental.jet.jvp"):
        assert autodiff_names(source)
    for source in ("import numpy", "from optax.losses import f", "def f():\n  import flax.linen"):
        assert foreign_imports(source, {"jax", "fnn"})
    assert private_names("from fnn.layer import Layer, _private") == {"fnn.layer._private"}
    assert imported_modules("from fnn import layer\nfrom fnn.losses import Loss") == {
        "fnn.layer",
        "fnn.losses",
    }


def test_every_public_name_has_a_docstring():
    assert sorted(fnn.__all__) == fnn.__all__
    assert not [name for name in fnn.__all__ if not getattr(fnn, name).__doc__]


def test_the_version_is_that_of_the_installed_package():
    assert fnn.__version__ == importlib.metadata.version("fnn")
