"""What pyproject.toml promises to those who install fnn."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_of_the_package_is_installed():
    folders = {path.parent for path in (ROOT / "fnn").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(SETUPTOOLS["packages"]) == names


def test_type_checkers_are_told_of_the_hints():
    (name,) = SETUPTOOLS["package-data"]["fnn"]
    assert (ROOT / "fnn" / name).name == "py.typed"
    assert (ROOT / "fnn" / name).exists()


def test_an_editable_install_names_the_folder_of_the_clone():
    """Else Python takes a clone named fnn for the package, from the folder above it."""
    assert SETUPTOOLS["package-dir"] == {"": "."}
