"""Save a pytree of arrays as .npz, and load it back."""

import os
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write the leaves of `tree` to `path` as .npz, named by their places: "0/W".

    The file is written beside `path` and renamed over it, so that `path` never holds half of
    one.

    Raises:
        ValueError: a leaf is of a dtype that .npz does not keep (bfloat16, PRNG keys), or two
            leaves have the same name.
        OSError: the file cannot be written.
    """
    arrays = _named_leaves(tree)
    for name, array in arrays.items():
        if getattr(array.dtype, "kind", None) not in tuple("fciub"):
            raise ValueError(f"save: .npz does not keep {name} of dtype {array.dtype}")
    unfinished = f"{os.fspath(path)}.unfinished"
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    jnp.save(entry, array)
        os.replace(unfinished, path)
    except BaseException:
        if os.path.isfile(unfinished):
            os.remove(unfinished)
        raise


def load(path: str | os.PathLike, like: Any) -> Any:
    """The tree saved at `path`, which must have the leaves, shapes and dtypes of `like`.

    Raises:
        ValueError: the file is not one that save writes, or its leaves differ from those of
            `like`; the message lists the differences.
        OSError: the file cannot be read.
    """
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _named_leaves(like).items()}
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as entry:
                    arrays[name.removesuffix(".npy")] = jnp.load(entry)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(f"load: {os.fspath(path)} is not a file of save's: {error}") from error
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if found != expected:
        differing = sorted(
            f"{name}: expected {expected.get(name, 'nothing')}, got {found.get(name, 'nothing')}"
            for name in expected.keys() | found.keys()
            if expected.get(name) != found.get(name)
        )
        raise ValueError(f"load: {os.fspath(path)} is not like the given tree; {differing}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in expected])


def _named_leaves(tree):
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"two leaves of the tree have the name {name}")
        named[name] = jnp.asarray(leaf)
    return named
