"""Statistics: one layer -> one layer whose backward gives another quantity than the gradient."""

import math

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_array
from fnn._numerics import accumulation_dtype, upcast
from fnn.layer import Layer, check_is_layer, name_of_first, transformed, type_of
from fnn.layers.linear import contract


def per_example(layer: Layer) -> Layer:
    """The layer with a gradient for each example: vmap of forward and backward over x's first axis.

    Changes grads: every leaf gains a first axis, the batch. The sum over it is the layer's grads.
    They take the memory of one copy of params for each example; if the norms are all you need, see
    linear_squared_norms. Example i draws from fold_in(key, i) under vmap. (Keys of JAX's
    implementation "rbg" draw other numbers under vmap than outside it.)

    Shapes: x (batch, ...), y (batch, ...), as the layer's; grads (batch, *shape) for params of
    that shape.

    Raises:
        ValueError: `layer` is not a Layer; its examples depend on each other, as BatchNorm's do; x
            has no axis.
    """
    check_is_layer("per_example", layer)
    if layer.couples_examples:
        got = name_of_first(layer, "couples_examples")
        raise ValueError(f"per_example: expected each example by itself, got {got}")

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


def linear_squared_norms(
    params: dict[str, jax.Array], x: jax.Array, dy: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """A backward for Linear that gives each example's squared gradient norm in place of grads.

    Linear(...)._replace(backward=linear_squared_norms) uses it. In a Sequential the sum of
    jax.tree.leaves(grads) is then each example's squared norm for the whole network.

    s and t number the positions of one example, that is the axes between batch and features:

        |dW|^2 = sum over s, t of (x_s . x_t)(dy_s . dy_t)       with one position |x|^2 |dy|^2
        |db|^2 = |sum over t of dy_t|^2

    No example's dW is formed. Goodfellow, 2015; Li et al., 2022. dx = dy W as in Linear.

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
    positions = math.prod(x.shape[len(batch) : -1])

    def inner_products(array):
        """a_s . a_t for all positions s, t of each example."""
        dtype = accumulation_dtype(array.dtype)
        return jnp.einsum("...sf,...tf->...st", array, array, preferred_element_type=dtype)

    xs, dys = (array.reshape(*batch, positions, array.shape[-1]) for array in (x, dy))
    # Rounding may make a sum that should be 0 slightly negative.
    grads = {"W": jnp.maximum(jnp.sum(inner_products(xs) * inner_products(dys), axis=(-2, -1)), 0)}
    if "b" in params:
        grads["b"] = jnp.sum(jnp.square(jnp.sum(upcast(dys), axis=-2)), axis=-1)
    return grads, contract(dy, W, -1, 0).astype(x.dtype)
