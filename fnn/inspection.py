"""What a model is made of: its layers, their shapes, parameters and residuals, as text."""

import contextlib
import inspect
import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fnn.combinators import Sequential
from fnn.layer import Layer, check_integer, parts_of


def count_params(params: Any) -> int:
    """The number of elements of all the pytree's arrays together."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def summary(model: Layer, x_shape: tuple[int, ...], dtype: Any = jnp.float32) -> str:
    """A table with a row a layer, for training on x of this shape and dtype, and the totals.

    A row has the layer's place and kind, the shape of its output, the number of its parameters
    and the bytes of its residuals. An array that several layers keep is counted in the first, so
    that the rows add up to what a step holds between its two passes. What combinators make is
    opened: first come the layers inside, then, if it is no Sequential, what it has itself. What a
    transform makes is one row. Nothing is computed: jax.eval_shape tells the shapes.

    Raises:
        ValueError: x_shape is no sequence of integers >= 0; what the layers raise for an x of this
            shape and dtype.
    """
    if not isinstance(x_shape, Sequence):
        raise ValueError(f"summary: expected x_shape to be a sequence, got {x_shape!r}")
    x_shape = tuple(check_integer("summary", "each length in x_shape", n, 0) for n in x_shape)
    rows, seen = [], {}

    def counted(place, kind, layer):
        def forward(params, x, key=None):
            start = len(rows)
            y, residuals = layer.forward(params, x, key)
            kept = {id(leaf): leaf for leaf in jax.tree.leaves(residuals) if id(leaf) not in seen}
            seen.update(kept)  # which keeps them alive, so that no two have the same id
            num_bytes = sum(jnp.asarray(leaf).nbytes for leaf in kept.values())
            num_params = count_params(params) - sum(row[3] for row in rows[start:])
            rows.append((place, kind, str(y.shape), num_params, num_bytes))
            return y, residuals

        return layer._replace(forward=forward)

    def run(key, x):
        opened = "Sequential", "Residual", "Parallel"
        map_layers(counted, model, opened=opened).forward(model.init(key), x, key)

    jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct(x_shape, dtype))
    total = ("", "total", "", sum(row[3] for row in rows), sum(row[4] for row in rows))
    head = ("", "layer", "output shape", "parameters", "residual bytes")
    table = [head, *((*row[:3], f"{row[3]:,}", f"{row[4]:,}") for row in (*rows, total))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [f"{{:<{width}}}" for width in widths[:3]]
    line = "  ".join([*left, *(f"{{:>{width}}}" for width in widths[3:])])
    return "\n".join(line.format(*row) for row in table)


def map_layers(
    change: Callable[[str, str, Layer], Layer],
    layer: Layer,
    place: str = "",
    *,
    opened: Container[str] | None = None,
) -> Layer:
    """`layer`, with change(place, kind, inner) for every layer inside it.

    What combinators and transforms have made is looked into, if its kind is among those `opened`
    (all by default), rebuilt of changed parts, and changed itself if it is no Sequential. kind is
    a layer's name in its error messages, and place is "2.0" for the first layer of the third,
    "2.Residual" for the layer in a Residual there.
    """
    parts = parts_of(layer)
    if parts is None or not parts.layers or (opened and parts.kind not in opened):
        return change(place, _kind(layer), layer)
    is_sequential = parts.kind == Sequential.__name__
    inside = [place] if is_sequential else [place, parts.kind]
    numbered = is_sequential or len(parts.layers) > 1
    changed = parts.rebuild(
        *(
            map_layers(
                change,
                inner,
                ".".join(filter(None, [*inside, str(index) if numbered else ""])),
                opened=opened,
            )
            for index, inner in enumerate(parts.layers)
        )
    )
    return changed if is_sequential else change(place, parts.kind, changed)


def _kind(layer):
    """A layer's name: "Linear(2, 3)", as in its error messages, or "remat(Linear(2, 3))"."""
    parts = parts_of(layer)
    if parts:
        inner = f"({_kind(parts.layers[0])})" if len(parts.layers) == 1 else ""
        return parts.kind + inner if parts.layers else "Identity()"
    function = inspect.unwrap(layer.forward)
    if inspect.isfunction(function):
        with contextlib.suppress(ValueError):  # of a variable that has no value yet
            name = inspect.getclosurevars(function).nonlocals.get("name")
            if isinstance(name, str):
                return name
    maker = getattr(function, "__qualname__", type(function).__name__)
    return (maker.rpartition(".<locals>.")[0] or maker).split(".")[-1]
