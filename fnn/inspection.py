"""What a model is made of: its layers, their shapes, parameters and residuals, as text."""

import inspect
import math
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

    def visit(place, layer, params, x, key):
        kind, layers = _kind(layer)
        if layers is not None:
            for index, inner in enumerate(layers):
                inner_place = f"{place}.{index}" if place else str(index)
                x = visit(inner_place, inner, params[index], x, key)
            return x
        y, residuals = layer.forward(params, x, key)
        kept = {id(leaf): leaf for leaf in jax.tree.leaves(residuals) if id(leaf) not in seen}
        seen.update(kept)  # which keeps them alive, so that no two have the same id
        num_bytes = sum(leaf.nbytes for leaf in kept.values())
        rows.append((place, kind, str(y.shape), count_params(params), num_bytes))
        return y

    def run(key, x):
        visit("", model, model.init(key), x, key)

    jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct(x_shape, dtype))
    total = ("", "total", "", sum(row[3] for row in rows), sum(row[4] for row in rows))
    head = ("", "layer", "output shape", "parameters", "residual bytes")
    table = [head, *((*row[:3], f"{row[3]:,}", f"{row[4]:,}") for row in (*rows, total))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [f"{{:<{width}}}" for width in widths[:3]]
    line = "  ".join([*left, *(f"{{:>{width}}}" for width in widths[3:])])
    return "\n".join(line.format(*row) for row in table)


def _kind(layer):
    """The layer's name, as its error messages have it, and the layers of a Sequential, or None."""
    function = inspect.unwrap(layer.forward)
    maker = getattr(function, "__qualname__", type(function).__name__)
    maker = maker.removesuffix(".<locals>.forward").split(".")[-1]
    closure = {}
    if inspect.isfunction(function):
        closure = inspect.getclosurevars(function).nonlocals
    if maker == Sequential.__name__ and function.__module__ == Sequential.__module__:
        return maker, closure["layers"]
    name = closure.get("name")
    return (name if isinstance(name, str) else maker), None
