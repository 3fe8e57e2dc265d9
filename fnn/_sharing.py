"""Trees in which several leaves are one array."""

from typing import Any, NamedTuple

import jax


@jax.tree_util.register_static
class Sharing(NamedTuple):
    """How a tree is made of a list of arrays: its structure, and each leaf's index in the list."""

    structure: Any
    indices: tuple[int, ...]


def each_array_once(tree: Any) -> tuple[list[jax.Array], Sharing]:
    """The arrays of a tree, each once, and how the leaves share them.

    lax.scan would otherwise stack an array twice that is kept twice.
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays = {id(leaf): leaf for leaf in leaves}
    positions = {key: index for index, key in enumerate(arrays)}
    return list(arrays.values()), Sharing(structure, tuple(positions[id(x)] for x in leaves))


def put_together(arrays: list[jax.Array], sharing: Sharing) -> Any:
    """The inverse of each_array_once."""
    return sharing.structure.unflatten(arrays[index] for index in sharing.indices)
