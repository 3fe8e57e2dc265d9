"""Linear, the affine map, and its second backward; Embedding, the linear map of one-hot vectors."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fnn.initializers import standard_normal, xavier_uniform, zeros
from fnn.layer import (
    Layer,
    accumulation_dtype,
    check_array,
    check_integer,
    check_integers,
    check_tree,
    checked_indices,
    widen,
)


def Linear(
    dim_in: int,
    dim_out: int,
    *,
    bias: bool = True,
    weight_init: Callable[..., jax.Array] = xavier_uniform,
    bias_init: Callable[..., jax.Array] = zeros,
    dtype: Any = jnp.float32,
) -> Layer:
    """y = x W^T + b.

    Backward: dW = dy^T x, db = sum of dy, both over all leading axes; dx = dy W.

    Shapes: x (..., dim_in), y (..., dim_out); params {"W": (dim_out, dim_in), "b": (dim_out,)},
    without "b" if `bias` is False.

    Args:
        weight_init, bias_init: functions (key, shape, dtype) -> array.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: a dimension is not a positive integer; x, dy, params or residuals have
            another shape or are not floating.
    """
    dim_in = check_integer("Linear", "dim_in", dim_in, 1)
    dim_out = check_integer("Linear", "dim_out", dim_out, 1)
    name = f"Linear({dim_in}, {dim_out})"
    like = {"W": jax.ShapeDtypeStruct((dim_out, dim_in), dtype)}
    if bias:
        like["b"] = jax.ShapeDtypeStruct((dim_out,), dtype)

    def init(key):
        params = {"W": weight_init(jax.random.fold_in(key, 0), (dim_out, dim_in), dtype)}
        if bias:
            params["b"] = bias_init(jax.random.fold_in(key, 1), (dim_out,), dtype)
        return params

    def forward(params, x, key=None):
        check_tree(name, "params", params, like)
        x = check_array(name, "x", x, (..., dim_in))
        y = _contract(x, params["W"], -1, -1)
        if bias:
            y = y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape)
        return y.astype(x.dtype), x

    def backward(params, x, dy):
        check_tree(name, "params", params, like)
        x = check_array(name, "residuals", x, (..., dim_in))
        dy = check_array(name, "dy", dy, (*x.shape[:-1], dim_out), x.dtype)
        leading = tuple(range(x.ndim - 1))
        grads = {"W": _sum_of_outer_products(dy, x, leading, jax.typeof(params["W"]).sharding)}
        if bias:
            grads["b"] = jnp.sum(dy, axis=leading, dtype=accumulation_dtype(dy.dtype))
        grads = {leaf: grad.astype(params[leaf].dtype) for leaf, grad in grads.items()}
        return grads, _contract(dy, params["W"], -1, 0).astype(x.dtype)

    return Layer(init, forward, backward)


def linear_squared_norms(
    params: dict[str, jax.Array], x: jax.Array, dy: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """A backward for Linear that gives each example's squared gradient norms in place of grads.

    Linear(...)._replace(backward=linear_squared_norms) does so, and in a Sequential the sum of
    jax.tree.leaves(grads) is each example's squared norm for the whole network.

    |dW|^2 = sum over s, t of (x_s . x_t)(dy_s . dy_t) and |db|^2 = |sum over t of dy_t|^2, where
    s and t are an example's positions: one for x (batch, dim_in), where |dW|^2 is |x|^2 |dy|^2,
    all those of the axes between for x (batch, ..., dim_in). No example's dW is formed.
    Goodfellow, 2015; Li et al., 2022. dx = dy W as in Linear.

    Shapes: x, which is Linear's residuals, (batch, ..., dim_in), or (dim_in,) for one example; dy
    (batch, ..., dim_out); grads {"W": (batch,), "b": (batch,)}, "b" where params have it, in
    float32 for 16-bit x.

    Raises:
        ValueError: params are not Linear's; x or dy have another shape or are not floating.
    """
    name = "linear_squared_norms"
    if not isinstance(params, dict) or not {"W"} <= params.keys() <= {"W", "b"}:
        raise ValueError(f"{name}: expected params of a Linear, got {jax.tree.structure(params)}")
    W = check_array(name, "W", params["W"], ("dim_out", "dim_in"))
    x = check_array(name, "residuals", x, (..., W.shape[1]))
    dy = check_array(name, "dy", dy, (*x.shape[:-1], W.shape[0]), x.dtype)

    def by_position(array):
        positions = math.prod(array.shape[1:-1])
        return array.reshape(*array.shape[:-1][:1], positions, array.shape[-1])

    def products(array):
        dtype = accumulation_dtype(array.dtype)
        return jnp.einsum("...sf,...tf->...st", array, array, preferred_element_type=dtype)

    xs, dys = by_position(x), by_position(dy)
    grads = {"W": jnp.maximum(jnp.sum(products(xs) * products(dys), axis=(-2, -1)), 0)}
    if "b" in params:
        grads["b"] = jnp.sum(jnp.square(jnp.sum(widen(dys), axis=-2)), axis=-1)
    return grads, _contract(dy, W, -1, 0).astype(x.dtype)


def Embedding(
    num_embeddings: int,
    dim: int,
    *,
    weight_init: Callable[..., jax.Array] = standard_normal,
    dtype: Any = jnp.float32,
) -> Layer:
    """y = W[x], a row of W for each integer of x; standard normal weights, as in PyTorch.

    Backward: dW[i] = sum of dy where x is i; dx = 0, integers of x's shape and dtype, because x
    cannot move.

    An index outside of 0 to num_embeddings - 1, a negative one too, gives a row of NaN, and
    no gradient to any row: no other row takes its place.

    Shapes: x (...) of an integer dtype, y (..., dim) of W's dtype; params
    {"W": (num_embeddings, dim)}.

    Raises:
        ValueError: a dimension is not a positive integer; x is not of an integer dtype; dy or
            params have another shape or are not floating.
    """
    num_embeddings = check_integer("Embedding", "num_embeddings", num_embeddings, 1)
    dim = check_integer("Embedding", "dim", dim, 1)
    name = f"Embedding({num_embeddings}, {dim})"
    like = {"W": jax.ShapeDtypeStruct((num_embeddings, dim), dtype)}

    def init(key):
        return {"W": weight_init(key, (num_embeddings, dim), dtype)}

    def forward(params, x, key=None):
        check_tree(name, "params", params, like)
        x = check_integers(name, "x", x)
        indices, rows = checked_indices(x, num_embeddings), params["W"].at
        examples, features = jax.typeof(x).sharding, jax.typeof(params["W"]).sharding.spec[1]
        sharding = NamedSharding(examples.mesh, PartitionSpec(*examples.spec, features))
        return rows[indices].get(mode="fill", fill_value=jnp.nan, out_sharding=sharding), x

    def backward(params, x, dy):
        check_tree(name, "params", params, like)
        x, W = check_integers(name, "residuals", x), params["W"]
        dy = check_array(name, "dy", dy, (*x.shape, dim), W.dtype)
        zeros = jnp.zeros_like(widen(W))
        indices = checked_indices(x, num_embeddings)
        sharding = jax.typeof(W).sharding
        dW = zeros.at[indices].add(widen(dy), mode="drop", out_sharding=sharding)
        return {"W": dW.astype(W.dtype)}, jnp.zeros_like(x)

    return Layer(init, forward, backward)


def _contract(a, b, axes_a, axes_b, out_sharding=None):
    """Products of a and b, in a's dtype, summed over the given axes and not yet rounded."""
    return jnp.tensordot(
        a,
        b.astype(a.dtype),
        (axes_a, axes_b),
        preferred_element_type=accumulation_dtype(a.dtype),
        out_sharding=out_sharding,
    )


def _sum_of_outer_products(dy, x, leading, out_sharding):
    """dy^T x over the leading axes, not yet rounded.

    A mesh with Explicit axes asks where the sum is to lie; else out_sharding says nothing.

    For few examples of a narrow layer, XLA's loop over multiplications and additions takes less
    time than one call of its matrix product, about a microsecond on a CPU.
    """
    num_examples = math.prod(x.shape[:-1])
    if num_examples > 32 or num_examples * dy.shape[-1] * x.shape[-1] > 2**14:
        return _contract(dy, x, leading, leading, out_sharding)
    return jnp.sum(widen(dy)[..., :, None] * widen(x)[..., None, :], axis=leading)
