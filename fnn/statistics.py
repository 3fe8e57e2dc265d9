"""Statistics: a model -> the model whose backward gives another quantity in place of grads.

    squares = fnn.squared_norms(model)
    value, statistic = fnn.loss_and_grads(squares, fnn.MSELoss("sum"))(params, x, target)

The statistic is a tree like params with other leaves. It is that of dy as it comes: a loss that
averages over n examples divides each example's gradient by n, and "sum" does not.

y and dx are the model's own. Combinators and transforms are looked into, and the layers inside are
changed. A rule says how a layer's statistic follows from its saved tensors. It is one function

    (layer, params, residuals, dy) -> statistic

and stands under the layer's name without its arguments: rules={"Linear": function}. A layer with
parameters and without a rule goes through per_example, so a layer of one's own needs none.

x is (batch, ...). A layer whose examples depend on each other, as BatchNorm's do, is refused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array
from fnn._numerics import accumulation_dtype, upcast
from fnn.inspection import map_layers
from fnn.layer import Layer, check_is_layer, name_of_first, transformed, type_of
from fnn.layers.linear import contract

Rule = Callable[[Layer, Any, Any, jax.Array], Any]


def per_example(layer: Layer) -> Layer:
    """The layer with a gradient for each example: vmap of forward and backward over x's first axis.

    Changes grads: every leaf gains a first axis, the batch. The sum over it is the layer's grads.
    They take the memory of one copy of params for each example. squared_norms and second_moments
    say what is often wanted of them, in less. Example i draws from fold_in(key, i) under vmap. (Keys
    of JAX's implementation "rbg" draw other numbers under vmap than outside it.)

    Shapes: x (batch, ...), y (batch, ...), as the layer's; grads (batch, *shape) for params of
    that shape.

    Raises:
        ValueError: `layer` is not a Layer; its examples depend on each other, as BatchNorm's do; x
            has no axis.
    """
    _check_each_by_itself("per_example", layer)

    def forward(params, x, key=None):
        x = as_array("per_example", "x", x)
        if x.ndim == 0:
            raise ValueError("per_example: expected x of shape (batch, ...), got ()")
        y, residuals = jax.vmap(forward_one, (None, 0, None), axis_name="example")(params, x, key)
        return y, (residuals, type_of(y))

    def forward_one(params, x, key):
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index("example"))
        return layer.forward(params, x, key)

    def backward(params, residuals, dy):
        residuals, y_type = residuals
        dy = check_array("per_example", "dy", dy, *y_type)
        return jax.vmap(layer.backward, (None, 0, 0))(params, residuals, dy)

    return transformed(layer, per_example, forward=forward, backward=backward)


def squared_norms(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model with each example's squared gradient norm, |grad|^2, leaf by leaf.

    Changes grads: every leaf has shape (batch,), in float32 for parameters of 16 bits. In a repeat
    it is (n, batch). The sum of jax.tree.leaves(statistic) is that of the whole model, for a model
    without a repeat.

    Linear, Conv2d and Embedding have rules that form no example's gradient where the positions are
    few: see linear_squared_norms. The other layers have few parameters or go through per_example.

    Raises:
        ValueError: `model` is not a Layer; its examples depend on each other.
    """
    return _with_statistic("squared_norms", model, SQUARED_NORMS | (rules or {}), _squares)


def summed_like_squared_norms(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model with its own grads, and with the residuals of squared_norms(model, rules)."""
    kept = dict.fromkeys(SQUARED_NORMS | (rules or {}))
    return _with_statistic("squared_norms", model, kept, lambda grads: jnp.sum(grads, axis=0))


def second_moments(model: Layer, rules: Mapping[str, Rule] | None = None) -> Layer:
    """The model with the sum over the examples of grad^2, element by element.

    Changes grads: leaves have the shapes of params. With the mean gradient g of n examples, the
    variance of an element is second_moment / n - g^2.

    Raises:
        ValueError: as squared_norms.
    """
    return _with_statistic("second_moments", model, SECOND_MOMENTS | (rules or {}), _sum_of_squares)


def _with_statistic(name, model, rules, of_examples):
    """The model whose layers have the statistic of a rule, or of_examples(grads of per_example).

    A rule of None leaves the layer as it is.
    """
    _check_each_by_itself(name, model)

    def change(place, layer):
        kind = layer.name.partition("(")[0]
        if kind not in rules:
            is_opened = layer.layers and layer.rebuild
            return layer if is_opened else _through_per_example(layer, of_examples)
        rule = rules[kind]
        if rule is None:
            return layer

        def backward(params, residuals, dy):
            _, dx = layer.backward(params, residuals, dy)
            return rule(layer, params, residuals, dy), dx

        return layer._replace(backward=backward)

    return map_layers(change, model)


def _through_per_example(layer, of_examples):
    each = per_example(layer)

    def forward(params, x, key=None):
        return (each if jax.tree.leaves(params) else layer).forward(params, x, key)

    def backward(params, residuals, dy):
        if not jax.tree.leaves(params):
            return layer.backward(params, residuals, dy)
        grads, dx = each.backward(params, residuals, dy)
        return jax.tree.map(of_examples, grads), dx

    facts = {"name": layer.name, "uses_key": layer.uses_key}
    return Layer(layer.init, forward, backward, **facts)


def _squares(grads):
    """|grad|^2 of each example, from grads (batch, ...)."""
    wide = upcast(grads)
    return jnp.sum(jnp.square(wide), axis=tuple(range(1, wide.ndim)))


def _sum_of_squares(grads):
    return jnp.sum(jnp.square(upcast(grads)), axis=0).astype(grads.dtype)


def _check_each_by_itself(name, layer):
    check_is_layer(name, layer)
    if layer.couples_examples:
        got = name_of_first(layer, "couples_examples")
        raise ValueError(f"{name}: expected each example by itself, got {got}")


def linear_squared_norms(
    params: dict[str, jax.Array], x: jax.Array, dy: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """A backward for Linear that gives each example's squared gradient norm in place of grads.

    squared_norms(Linear(...)) is Linear(...)._replace(backward=linear_squared_norms). s and t number
    the positions of one example, that is the axes between batch and features:

        |dW|^2 = sum over s, t of (x_s . x_t)(dy_s . dy_t)       with one position |x|^2 |dy|^2
        |db|^2 = |sum over t of dy_t|^2

    No example's dW is formed, unless the positions are so many that these products would take more
    memory than dW. Goodfellow, 2015; Li et al., 2022. dx = dy W as in Linear.

    Shapes:
        x: (batch, ..., dim_in), or (dim_in,) for one example. These are Linear's residuals.
        dy: (batch, ..., dim_out).
        grads: {"W": (batch,), "b": (batch,)}, "b" where params have it, in float32 for 16-bit x.

    Raises:
        ValueError: params are not Linear's; x or dy have another shape or are not floating.
    """
    name = "linear_squared_norms"
    if not isinstance(params, dict) or not {"W"} <= params.keys() <= {"W", "b"}:
        raise ValueError(f"{name}: expected params of a Linear, got {jax.tree.structure(params)}")
    W = check_array(name, "W", params["W"], ("dim_out", "dim_in"))
    x = check_array(name, "residuals", x, (..., W.shape[1]))
    dy = check_array(name, "dy", dy, (*x.shape[:-1], W.shape[0]), x.dtype)
    batch = x.shape[:1] if x.ndim > 1 else ()
    xs, dys = (_positions(array, len(batch)) for array in (x, dy))
    grads = {"W": _squared_norms_of_products(xs, dys)}
    if "b" in params:
        grads["b"] = jnp.sum(jnp.square(jnp.sum(upcast(dys), axis=-2)), axis=-1)
    return grads, contract(dy, W, -1, 0).astype(x.dtype)


def _positions(array, num_batch_axes):
    """The axes between batch and features, merged."""
    count = math.prod(array.shape[num_batch_axes:-1])
    return array.reshape(*array.shape[:num_batch_axes], count, array.shape[-1])


def _squared_norms_of_products(xs, dys):
    """|sum over t of dy_t^T x_t|^2 for each example, of xs (..., t, in) and dys (..., t, out)."""
    if 2 * xs.shape[-2] ** 2 <= xs.shape[-1] * dys.shape[-1]:
        squares = _product("...sf,...tf->...st", xs, xs) * _product("...sf,...tf->...st", dys, dys)
    else:
        squares = jnp.square(_product("...to,...ti->...oi", dys, xs))
    # Rounding may make a sum that should be 0 slightly negative.
    return jnp.maximum(jnp.sum(squares, axis=(-2, -1)), 0)


def _product(subscripts, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=accumulation_dtype(a.dtype))


def _of_linear_norms(layer, params, x, dy):
    return linear_squared_norms(params, x, dy)[0]


def _of_linear_moments(layer, params, x, dy):
    """For each element the sum over examples of (sum over t of dy_t x_t)^2."""
    xs, dys = _positions(x, 1), _positions(dy, 1)
    if xs.shape[1] == 1:
        moments = {"W": _product("bto,bti->oi", jnp.square(upcast(dys)), jnp.square(upcast(xs)))}
    else:
        moments = {"W": _sum_of_squares(_product("bto,bti->boi", dys, xs))}
    if "b" in params:
        moments["b"] = _sum_of_squares(jnp.sum(upcast(dys), axis=1))
    return {name: moments[name].astype(params[name].dtype) for name in params}


def _of_embedding_norms(layer, params, x, dy):
    """sum over s, t with x_s = x_t of dy_s . dy_t: positions of the same index add up."""
    xs, dys = x.reshape(len(x), -1), _positions(dy, 1)
    same = jnp.expand_dims(xs, 2) == jnp.expand_dims(xs, 1)
    is_row = (xs >= 0) & (xs < len(params["W"]))
    products = _product("bsf,btf->bst", dys, dys)
    counted = same & jnp.expand_dims(is_row, 2)
    return {"W": jnp.maximum(jnp.sum(jnp.where(counted, products, 0), axis=(1, 2)), 0)}


SQUARED_NORMS = {"Linear": _of_linear_norms, "Embedding": _of_embedding_norms}
SECOND_MOMENTS = {"Linear": _of_linear_moments}
