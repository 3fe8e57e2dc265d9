"""The rules of fnn.statistics: how a layer's statistic follows from its saved tensors."""

import itertools
import math

import jax
import jax.numpy as jnp

from fnn._checks import check_array
from fnn._numerics import accumulation_dtype, upcast
from fnn.layers._convolve import moved
from fnn.layers.linear import contract


def squares(grads: jax.Array) -> jax.Array:
    """|grad|^2 of each example, from grads (batch, ...)."""
    wide = upcast(grads)
    return jnp.sum(jnp.square(wide), axis=tuple(range(1, wide.ndim)))


def sum_of_squares(grads: jax.Array) -> jax.Array:
    """The sum of grads^2 over the examples, from grads (batch, ...)."""
    return jnp.sum(jnp.square(upcast(grads)), axis=0).astype(grads.dtype)


def linear_squared_norms(
    params: dict[str, jax.Array], x: jax.Array, dy: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """A backward for Linear that gives each example's squared gradient norm in place of grads.

    Linear(...)._replace(backward=linear_squared_norms) uses it, and so does squared_norms. s and t
    number the positions of one example, that is the axes between batch and features:

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
        moments = {"W": sum_of_squares(_product("bto,bti->boi", dys, xs))}
    moments["b"] = sum_of_squares(_sum_over_positions(dy))
    return {name: moments[name].astype(params[name].dtype) for name in params}


def _of_embedding_norms(layer, params, x, dy):
    """sum over s, t with x_s = x_t of dy_s . dy_t: positions of the same index add up."""
    xs, dys = x.reshape(len(x), -1), _positions(dy, 1)
    same = jnp.expand_dims(xs, 2) == jnp.expand_dims(xs, 1)
    is_row = (xs >= 0) & (xs < len(params["W"]))
    products = _product("bsf,btf->bst", dys, dys)
    counted = same & jnp.expand_dims(is_row, 2)
    return {"W": jnp.maximum(jnp.sum(jnp.where(counted, products, 0), axis=(1, 2)), 0)}


def _met_by_places(layer, x, dy):
    """For each place of a kernel the x (batch, t, groups, in) that it meets; and dy, likewise."""
    kernel, steps = layer.settings["kernel"], layer.settings["steps_for"](x)
    images = x.reshape(-1, *x.shape[-1 - len(kernel) :])

    def in_groups(array):
        return array.reshape(len(x), -1, steps.groups, array.shape[-1] // steps.groups)

    places = itertools.product(*map(range, kernel))
    return [in_groups(moved(images, place, kernel, steps)) for place in places], in_groups(dy)


def _of_convolution_norms(layer, params, x, dy):
    parts, dys = _met_by_places(layer, x, dy)
    dys = jnp.moveaxis(dys, 2, 1)
    norms = sum(_squared_norms_of_products(jnp.moveaxis(part, 2, 1), dys) for part in parts)
    statistic = {"W": jnp.sum(norms, axis=-1), "b": squares(_sum_over_positions(dy))}
    return {name: statistic[name] for name in params}


def _of_convolution_moments(layer, params, x, dy):
    parts, dys = _met_by_places(layer, x, dy)
    moments = [sum_of_squares(_product("btgo,btgc->bcgo", dys, part)) for part in parts]
    statistic = {"W": jnp.stack(moments), "b": sum_of_squares(_sum_over_positions(dy))}
    return {name: statistic[name].reshape(p.shape).astype(p.dtype) for name, p in params.items()}


def _sum_over_positions(dy):
    return jnp.sum(upcast(dy), axis=tuple(range(1, dy.ndim - 1)))


def _of_linear_factors(layer, params, x, dy):
    xs, dys = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
    return _factors(params, xs, dys)


def _of_convolution_factors(layer, params, x, dy):
    """Of each position's patch, the numbers that the kernel meets there, in the order of W."""
    parts, dys = _met_by_places(layer, x, dy)
    if dys.shape[2] > 1:
        return jax.tree.map(lambda _: None, params)
    patches = jnp.concatenate(parts, axis=-1)
    return _factors(params, *(array.reshape(-1, array.shape[-1]) for array in (patches, dys)))


def _factors(params, xs, dys):
    """(mean of x x^T, sum of dy dy^T) over xs (n, in) and dys (n, out); a 1 in x for the bias."""
    if "b" in params:
        xs = jnp.concatenate([xs, jnp.ones_like(xs[:, :1])], axis=1)
    pair = _product("ni,nj->ij", xs, xs) / len(xs), _product("ni,nj->ij", dys, dys)
    return {name: pair if name == "W" else None for name in params}


CONVOLUTIONS = "Conv1d", "Conv2d", "Conv3d"
SQUARED_NORMS = {
    "Linear": _of_linear_norms,
    "Embedding": _of_embedding_norms,
    **dict.fromkeys(CONVOLUTIONS, _of_convolution_norms),
}
SECOND_MOMENTS = {
    "Linear": _of_linear_moments,
    **dict.fromkeys(CONVOLUTIONS, _of_convolution_moments),
}
KRONECKER_FACTORS = {
    "Linear": _of_linear_factors,
    **dict.fromkeys(CONVOLUTIONS, _of_convolution_factors),
}
