"""Save a pytree of arrays as .npz, and load it back."""

import os
from typing import Any

import jax
import jax.numpy as jnp


def save(path: str | os.PathLike, tree: Any) -> None:
    """Write the leaves of `tree` to `path` as .npz, named by their places: "0/W".

    The file is written beside `path` and renamed over it, so that `path` never holds half of
    one.

    Raises:
        ValueError: a leaf is of a dtype that .npz does not keep (bfloat16, PRNG keys).
        OSError: the file cannot be written.
    """
    named = _named_leaves(tree)
    for name, leaf in named.items():
        if getattr(jnp.asarray(leaf).dtype, "kind", None) not in tuple("fiub"):
            raise ValueError(f"save: .npz does not keep {name} of dtype {leaf.dtype}")
    unfinished = f"{os.fspath(path)}.unfinished"
    with open(unfinished, "wb") as file:
        jnp.savez(file, **named)
    os.replace(unfinished, path)


def load(path: str | os.PathLike, like: Any) -> Any:
    """The tree saved at `path`, which must have the leaves, shapes and dtypes of `like`.

    Raises:
        ValueError: it has not; the message lists what differs.
        OSError: the file cannot be read.
    """
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in _named_leaves(like).items()}
    with jnp.load(path) as file:
        arrays = {name: file[name] for name in file}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if found != expected:
        differing = sorted(
            f"{name}: expected {expected.get(name, 'nothing')}, got {found.get(name, 'nothing')}"
            for name in expected.keys() | found.keys()
            if expected.get(name) != found.get(name)
        )
        raise ValueError(f"load: {os.fspath(path)} is not like the given tree; {differing}")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[n]) for n in expected])


def _named_leaves(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
