"""Combinators: many layers -> one layer."""

import functools
from itertools import accumulate

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_choice, note_on_error
from fnn._numerics import sum_of
from fnn.layer import Layer, check_is_layer, fold_key, transformed, type_of


def Sequential(*layers: Layer) -> Layer:
    """y = f_n(... f_2(f_1(x))): forward through the layers, backward through them in reverse.

    A layer's y is the next layer's x. A layer's dx is the dy of the layer before.

    params, grads and residuals are tuples with one entry for each layer. Layer i draws from
    fold_in(key, i), so adding a layer leaves the others' random numbers alone. A Sequential may
    stand inside another. An empty one is the identity.

    Raises:
        ValueError: an argument is not a Layer; params or residuals are not a tuple with one entry
            for each layer. An error of a layer inside gets a note that says in which layer it was.
    """
    init, check_length = _init_and_check("Sequential", layers)

    def forward(params, x, key=None):
        check_length("params", params)
        residuals = []
        for index, layer in enumerate(layers):
            with note_on_error(f"in layer {index} of Sequential, forward"):
                x, kept = layer.forward(params[index], x, fold_key(key, index))
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

    name = "Sequential" if layers else "Identity()"
    return Layer(init, forward, backward, name=name, layers=layers, rebuild=Sequential)


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

    def forward(params, x, key=None):
        x = check_array("Residual", "x", x, (...,))
        with note_on_error("in Residual, forward"):
            y, residuals = layer.forward(params, x, key)
        return x.astype(y.dtype) + check_array("Residual", "the layer's y", y, x.shape), residuals

    def backward(params, residuals, dy):
        with note_on_error("in Residual, backward"):
            grads, dx = layer.backward(params, residuals, dy)
        dx = check_array("Residual", "the layer's dx", dx, jnp.shape(dy))
        return grads, jnp.asarray(dy, dx.dtype) + dx

    return transformed(layer, Residual, forward=forward, backward=backward)


def Parallel(*layers: Layer, combine: str = "concat") -> Layer:
    """y = the layers' outputs for the same x, side by side along the last axis, or their sum.

    dx is the sum of the layers' dx. With combine="concat" each layer gets its slice of dy, with
    "sum" the whole dy. params and grads are tuples with one entry for each layer; layer i draws
    from fold_in(key, i).

    Shapes: x any that every layer accepts. With combine="concat" y is (..., sum of the layers'
    features), and the axes before must be equal. With "sum" all outputs and y have one shape. All
    outputs have one dtype, which is y's.

    Raises:
        ValueError: no layers, or an argument is not a Layer; combine is neither "concat" nor
            "sum"; the layers' outputs do not fit together; a layer's dx has another shape than x;
            params are not a tuple with one entry for each layer. An error of a layer inside gets a
            note that says in which layer it was.
    """
    if not layers:
        raise ValueError("Parallel: expected at least one layer, got none")
    check_choice("Parallel", "combine", combine, ("concat", "sum"))
    init, check_length = _init_and_check("Parallel", layers)

    def forward(params, x, key=None):
        check_length("params", params)
        x, ys, residuals = as_array("Parallel", "x", x), [], []
        for index, layer in enumerate(layers):
            with note_on_error(f"in layer {index} of Parallel, forward"):
                y, kept = layer.forward(params[index], x, fold_key(key, index))
            ys.append(y)
            residuals.append(kept)
        # The axes that must be equal: all, or all but the last.
        equal_axes = slice(None) if combine == "sum" else slice(-1)
        is_scalar = combine == "concat" and not ys[0].shape
        if is_scalar or len({(y.dtype, y.ndim, y.shape[equal_axes]) for y in ys}) > 1:
            got = ", ".join(str(type_of(y)) for y in ys)
            raise ValueError(f"Parallel: expected outputs to {combine} that fit, got {got}")
        y = sum_of(ys) if combine == "sum" else jnp.concatenate(ys, axis=-1)
        return y, (tuple(residuals), tuple(map(type_of, ys)), type_of(x))

    def backward(params, residuals, dy):
        check_length("params", params)
        residuals, y_types, x_type = residuals
        check_length("residuals", residuals)
        shape, dtype = y_types[0]
        if combine == "sum":
            dys = [check_array("Parallel", "dy", dy, shape, dtype)] * len(layers)
        else:
            ends = list(accumulate(y_type.shape[-1] for y_type in y_types))
            dy = check_array("Parallel", "dy", dy, (*shape[:-1], ends[-1]), dtype)
            dys = jnp.split(dy, ends[:-1], axis=-1)
        grads, dxs = [], []
        for index, layer in enumerate(layers):
            with note_on_error(f"in layer {index} of Parallel, backward"):
                grad, dx = layer.backward(params[index], residuals[index], dys[index])
            dx = as_array("Parallel", f"dx of layer {index}", dx)
            if dx.shape != x_type.shape:
                expected = f"expected dx of layer {index} of shape {x_type.shape}"
                raise ValueError(f"Parallel: {expected}, got {dx.shape}")
            grads.append(grad)
            dxs.append(dx)
        return tuple(grads), sum_of(dxs)

    settings = {"combine": combine}
    inside = {"layers": layers, "rebuild": functools.partial(Parallel, **settings)}
    return Layer(init, forward, backward, name="Parallel", settings=settings, **inside)


def _init_and_check(name, layers):
    """Check the layers. Return their common init, and check_length(what, entries)."""
    check_is_layer(name, *layers)

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
