"""Combinators: many layers -> one layer."""

import functools
import math
from itertools import accumulate

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array, check_choice, check_integer, note_on_error
from fnn._numerics import sum_of, upcast
from fnn.layer import Layer, check_is_layer, fold_key, transformed, type_of


def Sequential(*layers: Layer) -> Layer:
    """y = f_n(... f_2(f_1(x))): forward through the layers, backward through them in reverse.

    A layer's y is the next layer's x. A layer's dx is the dy of the layer before.

    params, grads and residuals are tuples with one entry for each layer. Layer i draws from
    fold_in(key, i), so a layer added at the end leaves the random numbers of the others alone. A
    Sequential may stand inside another. An empty one is the identity.

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


def Parallel(*layers: Layer, combine: str = "concat", axis: int = -1) -> Layer:
    """y = the layers' outputs for the same x, side by side along an axis, or their sum or product.

    dx is the sum of the layers' dx. With combine="concat" each layer gets its slice of dy. With
    "sum" it gets the whole dy. With "product" it gets dy times the other layers' outputs, which are
    kept for that. params and grads are tuples with one entry for each layer; layer i draws from
    fold_in(key, i).

    Shapes: x any that every layer accepts. All outputs have one dtype, which is y's.
        "concat": the outputs differ along `axis` alone. y has the sum of their lengths there. A
            negative axis counts from the end, and so is the same with and without a batch.
        "sum": all outputs and y have one shape.
        "product": y has the shape of the output with the most axes. Each other output has the same
            shape, or is a gate, which lacks axes before its last: (..., channels) beside
            (..., height, width, channels). It is repeated along these, and its dy is the sum.

    Squeeze-and-excitation (Hu et al., 2018), and SwiGLU (Shazeer, 2020):

        Parallel(
            Identity(),
            Sequential(GlobalAvgPool(), Linear(64, 16), ReLU(), Linear(16, 64), Sigmoid()),
            combine="product",
        )
        Parallel(Linear(64, 256), Sequential(Linear(64, 256), SiLU()), combine="product")

    Raises:
        ValueError: no layers, or an argument is not a Layer; combine is not "concat", "sum" or
            "product"; axis is not an integer, or is given with another combine than "concat"; the
            layers' outputs do not fit together; a layer's dx has another shape than x; params are
            not a tuple with one entry for each layer. An error of a layer inside gets a note that
            says in which layer it was.
    """
    if not layers:
        raise ValueError("Parallel: expected at least one layer, got none")
    check_choice("Parallel", "combine", combine, ("concat", "sum", "product"))
    axis = check_integer("Parallel", "axis", axis, -math.inf)
    if combine != "concat" and axis != -1:
        raise ValueError(f"Parallel: expected an axis with combine='concat' alone, got {combine!r}")
    init, check_length = _init_and_check("Parallel", layers)
    fits, join, share = _concatenation(axis) if combine == "concat" else _COMBINATIONS[combine]

    def forward(params, x, key=None):
        check_length("params", params)
        x, ys, residuals = as_array("Parallel", "x", x), [], []
        for index, layer in enumerate(layers):
            with note_on_error(f"in layer {index} of Parallel, forward"):
                y, kept = layer.forward(params[index], x, fold_key(key, index))
            ys.append(y)
            residuals.append(kept)
        if len({y.dtype for y in ys}) > 1 or not fits([y.shape for y in ys]):
            verb = "multiply" if combine == "product" else combine
            got = ", ".join(str(type_of(y)) for y in ys)
            raise ValueError(f"Parallel: expected outputs to {verb} that fit, got {got}")
        y, kept = join(ys), tuple(ys if combine == "product" else map(type_of, ys))
        return y, (tuple(residuals), kept, type_of(y), type_of(x))

    def backward(params, residuals, dy):
        check_length("params", params)
        residuals, kept, y_type, x_type = residuals
        check_length("residuals", residuals)
        dys = share(kept, check_array("Parallel", "dy", dy, *y_type))
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

    settings = {"combine": combine} | ({} if axis == -1 else {"axis": axis})
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


# How Parallel combines outputs: whether their shapes fit, y of the outputs, and each layer's dy of
# dy and of what is kept for each output.


def _concatenation(axis):
    def others(shape):
        return tuple(n for i, n in enumerate(shape) if i not in (axis, axis + len(shape)))

    def fits(shapes):
        have_axis = all(-len(shape) <= axis < len(shape) for shape in shapes)
        return have_axis and len(set(map(others, shapes))) == 1

    def share(y_types, dy):
        ends = accumulate(y_type.shape[axis] for y_type in y_types[:-1])
        return jnp.split(dy, list(ends), axis)

    return fits, functools.partial(jnp.concatenate, axis=axis), share


def _fit_sum(shapes):
    return len(set(shapes)) == 1


def _share_sum(y_types, dy):
    return [dy] * len(y_types)


def _fit_product(shapes):
    longest = max(shapes, key=len)
    return all(shape == longest[: max(len(shape) - 1, 0)] + longest[-1:] for shape in shapes)


def _lacking(y, ndim):
    """The axes that a gate lacks before its last one, to have `ndim` axes."""
    return tuple(range(y.ndim - 1, ndim - 1))


def _factors(ys):
    """The outputs in their accumulation dtype. Gates have length 1 along the axes they lack."""
    ndim = max(y.ndim for y in ys)
    return [jnp.expand_dims(upcast(y), _lacking(y, ndim)) for y in ys]


def _join_product(ys):
    return functools.reduce(jnp.multiply, _factors(ys)).astype(ys[0].dtype)


def _share_product(ys, dy):
    """dy times the other outputs: the product of those before times dy times those after."""
    factors, after, dys = _factors(ys), upcast(dy), []
    before = [*accumulate(factors[:-1], jnp.multiply)]
    while before:
        dys.append(after * before.pop())
        after = after * factors.pop()
    dys = reversed([*dys, after])
    return [
        jnp.sum(wide, _lacking(y, dy.ndim)).astype(y.dtype) for wide, y in zip(dys, ys, strict=True)
    ]


_COMBINATIONS = {
    "sum": (_fit_sum, sum_of, _share_sum),
    "product": (_fit_product, _join_product, _share_product),
}
