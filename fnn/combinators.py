"""Combinators: many layers -> one layer."""

import functools
from itertools import accumulate

import jax
import jax.numpy as jnp

from fnn.layer import (
    Layer,
    check_array,
    check_layers,
    made_of,
    note_on_error,
    shape_token,
    widen,
)


def Sequential(*layers: Layer) -> Layer:
    """y = f_n(... f_2(f_1(x))): forward through the layers, backward through them in reverse.

    params, grads and residuals are tuples, one entry a layer. Layer i draws from
    fold_in(key, i), so that adding a layer leaves the others' randomness alone. Sequentials
    nest, and an empty one is the identity.

    Raises:
        ValueError: an argument is not a Layer; params are not a tuple with one entry a layer.
            What a layer raises passes with a note that says where it happened.
    """
    init, check_length = _several("Sequential", layers)

    def forward(params, x, key=None):
        check_length("params", params)
        residuals = []
        for index, layer in enumerate(layers):
            layer_key = None if key is None else jax.random.fold_in(key, index)
            with note_on_error(f"in layer {index} of Sequential, forward"):
                x, kept = layer.forward(params[index], x, layer_key)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params, residuals, dy):
        check_length("params", params)
        check_length("residuals", residuals)
        grads = []
        for index in reversed(range(len(layers))):
            with note_on_error(f"in layer {index} of Sequential, backward"):
                grad, dy = layers[index].backward(params[index], residuals[index], dy)
            grads.append(grad)
        return tuple(reversed(grads)), dy

    return made_of(layers, "Sequential", Sequential, Layer(init, forward, backward))


def Identity() -> Layer:
    """y = x; dx = dy. Any shape; params (). It is the empty Sequential."""
    return Sequential()


def Residual(layer: Layer) -> Layer:
    """y = x + f(x); dx = dy + f's dx. He et al., 2016.

    Shapes: those of the layer, whose y must have x's shape. params, grads and residuals are the
    layer's.

    Raises:
        ValueError: `layer` is not a Layer; its y has another shape than x.
    """
    check_layers("Residual", (layer,))

    def forward(params, x, key=None):
        x = check_array("Residual", "x", x, (...,))
        with note_on_error("in Residual, forward"):
            y, residuals = layer.forward(params, x, key)
        return x.astype(y.dtype) + check_array("Residual", "the layer's y", y, x.shape), residuals

    def backward(params, residuals, dy):
        with note_on_error("in Residual, backward"):
            grads, dx = layer.backward(params, residuals, dy)
        return grads, jnp.asarray(dy, dx.dtype) + dx

    return made_of((layer,), "Residual", Residual, Layer(layer.init, forward, backward))


def Parallel(*layers: Layer, combine: str = "concat") -> Layer:
    """y = the layers' outputs for the same x, side by side along the last axis, or their sum.

    dx is the sum of the layers' dx, each for its part of dy. params, grads and residuals are
    tuples, one entry a layer; layer i draws from fold_in(key, i).

    Shapes: x what every layer takes; y (..., sum of the layers' features) for combine="concat",
    where the axes before must be equal, and that of every layer for combine="sum". The layers'
    outputs have one dtype, y's; 16-bit ones are added up in float32.

    Raises:
        ValueError: no layers, or an argument is not a Layer; combine is neither "concat" nor
            "sum"; the layers' outputs do not fit together; params are not a tuple with one entry
            a layer. What a layer raises passes with a note that says where it happened.
    """
    if not layers:
        raise ValueError("Parallel: expected at least one layer, got none")
    if combine not in ("concat", "sum"):
        raise ValueError(f"Parallel: expected combine 'concat' or 'sum', got {combine!r}")
    init, check_length = _several("Parallel", layers)

    def forward(params, x, key=None):
        check_length("params", params)
        x, outputs, residuals = jnp.asarray(x), [], []
        for index, layer in enumerate(layers):
            layer_key = None if key is None else jax.random.fold_in(key, index)
            with note_on_error(f"in layer {index} of Parallel, forward"):
                y, kept = layer.forward(params[index], x, layer_key)
            outputs.append(y)
            residuals.append(kept)
        shared = slice(None) if combine == "sum" else slice(-1)
        is_scalar = combine == "concat" and not outputs[0].shape
        if is_scalar or len({(y.dtype, y.ndim, y.shape[shared]) for y in outputs}) > 1:
            got = ", ".join(f"{y.dtype} of shape {y.shape}" for y in outputs)
            raise ValueError(f"Parallel: expected outputs to {combine} that fit, got {got}")
        tokens = tuple(shape_token(y) for y in outputs)
        y = _sum(outputs) if combine == "sum" else jnp.concatenate(outputs, axis=-1)
        return y, (tuple(residuals), tokens)

    def backward(params, residuals, dy):
        check_length("params", params)
        residuals, tokens = residuals
        check_length("residuals", residuals)
        shape, dtype = tokens[0].shape[1:], tokens[0].dtype
        if combine == "sum":
            parts = [check_array("Parallel", "dy", dy, shape, dtype)] * len(layers)
        else:
            ends = list(accumulate(token.shape[-1] for token in tokens))
            dy = check_array("Parallel", "dy", dy, (*shape[:-1], ends[-1]), dtype)
            parts = jnp.split(dy, ends[:-1], axis=-1)
        grads, dxs = [], []
        for index, layer in enumerate(layers):
            with note_on_error(f"in layer {index} of Parallel, backward"):
                grad, dx = layer.backward(params[index], residuals[index], parts[index])
            grads.append(grad)
            dxs.append(dx)
        return tuple(grads), _sum(dxs)

    rebuild = functools.partial(Parallel, combine=combine)
    return made_of(layers, "Parallel", rebuild, Layer(init, forward, backward))


def _sum(arrays):
    return sum(map(widen, arrays)).astype(arrays[0].dtype)


def _several(name, layers):
    """init for a tuple of layers, and check_length(what, entries) for what has one entry each."""
    check_layers(name, layers)

    def init(key):
        return tuple(
            layer.init(jax.random.fold_in(key, index)) for index, layer in enumerate(layers)
        )

    def check_length(what, entries):
        is_tuple = isinstance(entries, tuple)
        if not is_tuple or len(entries) != len(layers):
            got = f"{len(entries)} entries" if is_tuple else type(entries).__name__
            raise ValueError(
                f"{name}: expected {what} to be a tuple of {len(layers)} entries, got {got}"
            )

    return init, check_length
