"""What a model is made of: its layers, their shapes, parameters and residuals, as text."""

import contextlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.combinators import Sequential
from fnn.layer import Layer


def count_params(params: Any) -> int:
    """The number of elements of all the pytree's arrays together."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def summary(model: Layer, x_shape: tuple[int, ...], dtype: Any = jnp.float32) -> str:
    """A table with a row a layer, for training on x of this shape and dtype, and the totals.

    A row has the layer's place and kind, the shape of its output, the number of its parameters
    and the bytes of its residuals. An array that several layers keep is counted in the first, so
    that the rows add up to what a step holds between its two passes. Nested Sequentials are
    opened; any other combinator is one row. Nothing is computed: jax.eval_shape tells the shapes.

    Raises:
        ValueError: what the layers raise for an x of this shape and dtype.
    """
    rows, seen = [], {}

    def counted(place, kind, layer):
        def forward(params, x, key=None):
            y, residuals = layer.forward(params, x, key)
            kept = {id(leaf): leaf for leaf in jax.tree.leaves(residuals) if id(leaf) not in seen}
            seen.update(kept)  # which keeps them alive, so that no two have the same id
            num_bytes = sum(jnp.asarray(leaf).nbytes for leaf in kept.values())
            rows.append((place, kind, str(y.shape), count_params(params), num_bytes))
            return y, residuals

        return layer._replace(forward=forward)

    def run(key, x):
        map_layers(counted, model).forward(model.init(key), x, key)

    jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct(x_shape, dtype))
    total = ("", "total", "", sum(row[3] for row in rows), sum(row[4] for row in rows))
    head = ("", "layer", "output shape", "parameters", "residual bytes")
    table = [head, *((*row[:3], f"{row[3]:,}", f"{row[4]:,}") for row in (*rows, total))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [f"{{:<{width}}}" for width in widths[:3]]
    line = "  ".join([*left, *(f"{{:>{width}}}" for width in widths[3:])])
    return "\n".join(line.format(*row) for row in table)


def map_layers(change: Callable[[str, str, Layer], Layer], layer: Layer, place: str = "") -> Layer:
    """`layer`, with change(place, kind, inner) for every layer inside its nested Sequentials.

    Place is "2.0" for the first layer of the third, and kind is the layer's name in its error
    messages. A Sequential whose backward has been replaced keeps that one, as changed.
    """
    kind, layers = _kind(layer.forward)
    changed = change(place, kind, layer)
    if layers is None:
        return changed
    opened = Sequential(
        *(
            map_layers(change, inner, f"{place}.{index}".lstrip("."))
            for index, inner in enumerate(layers)
        )
    )
    is_its_own = _kind(layer.backward)[1] is layers
    return Layer(layer.init, opened.forward, (opened if is_its_own else changed).backward)


def _kind(function):
    """The name of the layer that a forward or backward is of, and a Sequential's layers or None.

    A function wrapped around a Sequential's is one of its own kind, and keeps its layers to itself.
    """
    own, is_wrapped = inspect.unwrap(function), hasattr(function, "__wrapped__")
    maker = getattr(own, "__qualname__", type(own).__name__)
    maker = (maker.rpartition(".<locals>.")[0] or maker).split(".")[-1]
    if maker == Sequential.__name__ and own.__module__ == Sequential.__module__ and not is_wrapped:
        layers = _from_closure(own, "layers")
        return (maker, layers) if layers else ("Identity()", None)
    name = _from_closure(own, "name")
    return (name if isinstance(name, str) else maker), None


def _from_closure(function, name):
    if inspect.isfunction(function) and name in function.__code__.co_freevars:
        cell = function.__closure__[function.__code__.co_freevars.index(name)]
        with contextlib.suppress(ValueError):  # of a cell that is still empty
            return cell.cell_contents
    return None
