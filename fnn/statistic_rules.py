"""The rules of fnn.statistics: how a layer's statistic follows from its saved tensors."""

import itertools
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fnn._checks import check_array
from fnn._numerics import accumulation_dtype, sharding_of, upcast
from fnn.layers._convolve import moved
from fnn.layers.linear import contract


def squares(grads: jax.Array) -> jax.Array:
    """|grad|^2 of each example, from grads (batch, ...)."""
    wide = upcast(grads)
    return jnp.sum(jnp.square(wide), axis=tuple(range(1, wide.ndim)))


def sum_of_squares(grads: jax.Array) -> jax.Array:
    """The sum of grads^2 over the examples, from grads (batch, ...)."""
    wide = upcast(grads)

    def by_sum(wide):
        return jnp.sum(jnp.square(wide), axis=0)

    def by_product(wide):
        return jnp.tensordot(jnp.ones_like(wide, shape=wide.shape[:1]), jnp.square(wide), 1)

    if any(sharding_of(wide).spec):
        return by_sum(wide)
    # On a CPU the loop that XLA makes of a sum over the first axis is about five times slower.
    return jax.lax.platform_dependent(wide, cpu=by_product, default=by_sum)


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


def _positions(array, num_batch_axes=1):
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


def _product(subscripts, a, b, out_sharding=None):
    dtype = accumulation_dtype(a.dtype)
    return jnp.einsum(subscripts, a, b, preferred_element_type=dtype, out_sharding=out_sharding)


def _check_batch(layer, x, num_axes):
    """Of one example without a batch axis, rows would pass for examples."""
    if x.ndim < num_axes + 1:
        expected = "expected x of shape (batch, ...) for a statistic"
        raise ValueError(f"{layer.name}: {expected}, got {x.shape}")


def _of_linear_norms(layer, params, x, dy):
    _check_batch(layer, x, 1)
    return linear_squared_norms(params, x, dy)[0]


def _of_linear_moments(layer, params, x, dy):
    """For each element the sum over examples of (sum over t of dy_t x_t)^2."""
    _check_batch(layer, x, 1)
    xs, dys = _positions(x), _positions(dy)
    if xs.shape[1] == 1:
        wide = (jnp.square(upcast(array)) for array in (dys, xs))
        moments = {"W": _product("bto,bti->oi", *wide, sharding_of(params["W"]))}
    else:
        moments = {"W": sum_of_squares(_product("bto,bti->boi", dys, xs))}
    moments["b"] = sum_of_squares(_sum_over_positions(dy))
    return {name: moments[name] for name in params}


def _gathered(params, x, dy):
    """For each position the sum of dy over the positions of its example with the same index.

    Also (batch, t, t): which positions have the same index, a valid one.
    """
    xs, dys = _positions(jnp.expand_dims(x, -1)), _positions(dy)
    is_row = (xs >= 0) & (xs < len(params["W"]))
    same = is_row & (xs == xs.swapaxes(1, 2))
    return _product("bst,btf->bsf", same.astype(dy.dtype), dys), dys, same


def _of_embedding_norms(layer, params, x, dy):
    """sum over s of u_s . dy_s, where u_s is the sum of the dy_t with x_t = x_s."""
    _check_batch(layer, x, 0)
    sums, dys, _ = _gathered(params, x, dy)
    return {"W": jnp.maximum(jnp.sum(sums * upcast(dys), axis=(1, 2)), 0)}


def _of_embedding_moments(layer, params, x, dy):
    """u_s^2 in row x_s, once in each example: every one of the equal positions brings its share."""
    _check_batch(layer, x, 0)
    sums, _, same = _gathered(params, x, dy)
    count = jnp.sum(same, axis=2, keepdims=True, dtype=sums.dtype)
    shares = jnp.square(sums) / jnp.maximum(count, 1)
    wide = jax.tree.map(upcast, params)
    return layer.backward(wide, x, shares.reshape(dy.shape))[0]


def _met_by_places(layer, x, dy):
    """For each place of a kernel the x (batch, t, groups, in) that it meets; and dy, likewise.

    In a transposed convolution it meets dy, and the other is x.
    """
    kernel, steps = layer.settings["kernel"], layer.settings["steps_for"](x)
    _check_batch(layer, x, len(kernel) + 1)
    met, other = (dy, x) if _is_transposed(layer) else (x, dy)
    images = met.reshape(-1, *met.shape[-1 - len(kernel) :])
    count = math.prod(other.shape[1:-1])

    def in_groups(array):
        flat = array.reshape(len(x), count, array.shape[-1])  # in two steps for Explicit axes
        return flat.reshape(len(x), count, steps.groups, flat.shape[-1] // steps.groups)

    places = itertools.product(*map(range, kernel))
    return [in_groups(moved(images, place, kernel, steps)) for place in places], in_groups(other)


def _is_transposed(layer):
    return layer.settings["kind"].startswith("ConvTranspose")


def _of_convolution_norms(layer, params, x, dy):
    parts, others = _met_by_places(layer, x, dy)
    others = jnp.moveaxis(others, 2, 1)
    norms = sum(_squared_norms_of_products(jnp.moveaxis(part, 2, 1), others) for part in parts)
    statistic = {"W": jnp.sum(norms, axis=-1), "b": squares(_sum_over_positions(dy))}
    return {name: statistic[name] for name in params}


def _of_convolution_moments(layer, params, x, dy):
    parts, others = _met_by_places(layer, x, dy)
    order = "btgo,btgc->bgoc" if _is_transposed(layer) else "btgo,btgc->bcgo"
    moments = [sum_of_squares(_product(order, others, part)) for part in parts]
    statistic = {"W": jnp.stack(moments), "b": sum_of_squares(_sum_over_positions(dy))}
    return {name: statistic[name].reshape(p.shape) for name, p in params.items()}


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
    """(mean of x x^T, sum of dy dy^T) over xs (n, in) and dys (n, out); a 1 in x for the bias.

    Of no examples, zeros.
    """
    if "b" in params:
        xs = jnp.concatenate([xs, jnp.ones_like(xs[:, :1])], axis=1)
    replicated = sharding_of(params["W"])
    if replicated.spec:
        replicated = NamedSharding(replicated.mesh, PartitionSpec(None, None))
    second = [_product("ni,nj->ij", array, array, replicated) for array in (xs, dys)]
    pair = second[0] / max(len(xs), 1), second[1]
    return {name: pair if name == "W" else None for name in params}


CONVOLUTIONS = "Conv1d", "Conv2d", "Conv3d"
TRANSPOSED = "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"
SQUARED_NORMS = {
    "Linear": _of_linear_norms,
    "Embedding": _of_embedding_norms,
    **dict.fromkeys(CONVOLUTIONS + TRANSPOSED, _of_convolution_norms),
}
SECOND_MOMENTS = {
    "Linear": _of_linear_moments,
    "Embedding": _of_embedding_moments,
    **dict.fromkeys(CONVOLUTIONS + TRANSPOSED, _of_convolution_moments),
}
KRONECKER_FACTORS = {
    "Linear": _of_linear_factors,
    **dict.fromkeys(CONVOLUTIONS, _of_convolution_factors),
}
