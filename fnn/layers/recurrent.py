"""Recurrence over the positions of a sequence (..., time, features).

The state before the first position is 0: y[-1] and c[-1] stand for it. One product over all
positions computes what x gives to the gates, a = x W^T + b. A scan over the positions adds
u = y[t - 1] U^T, what the state gives. Backward scans the gates alone, from the last position to
the first. After that scan dW, dU and dx are one product each:

    dW = sum of da[t]^T x[t];  dU = sum of du[t]^T y[t - 1];  db = sum of da[t];  dx[t] = da[t] W

The sums are over all positions and leading axes. b is the sum of PyTorch's bias_ih and bias_hh,
where these are only added to each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_choice, check_integer
from fnn._numerics import broadcast_last_axis, sharding_of, upcast
from fnn.initializers import orthogonal, xavier_uniform, zeros
from fnn.layer import Layer, type_of
from fnn.layers._frame import with_params, without_params
from fnn.layers.linear import contract, sum_of_outer_products, sum_over_leading_axes


def RNN(
    dim_in: int, dim_hidden: int, *, activation: str = "tanh", dtype: Any = jnp.float32
) -> Layer:
    """y[t] = tanh(a[t] + u[t]), with a[t] = x[t] W^T + b and u[t] = y[t - 1] U^T. Elman, 1990.

    Backward, from the last t to the first: da[t] = du[t] = (dy[t] + du[t + 1] U) (1 - y[t]^2). The
    others follow from these, as help(fnn.layers.recurrent) says. With activation="relu", y[t] is
    max(a[t] + u[t], 0), and 1 where y[t] > 0, else 0, takes the place of 1 - y[t]^2.

    Residuals: x and y.

    Shapes: x (..., time, dim_in), y (..., time, dim_hidden); params {"W": (dim_hidden, dim_in),
    "U": (dim_hidden, dim_hidden), "b": (dim_hidden,)}. W starts as xavier_uniform, U orthogonal,
    and b as 0, all of `dtype`.

    Raises:
        ValueError: a dimension is not a positive integer; activation is neither "tanh" nor "relu";
            x, dy, params or residuals have another shape or are not floating.
    """
    check_choice("RNN", "activation", activation, ("tanh", "relu"))

    def step(params, a, u, before):
        return (jnp.tanh(a + u) if activation == "tanh" else jax.nn.relu(a + u),), ()

    def step_back(kept, before, after, dafter):
        (y,), (dy,) = after, dafter
        da = dy * (1 - y) * (1 + y) if activation == "tanh" else jnp.where(y > 0, dy, 0)
        return da, da, (jnp.zeros_like(dy),)

    options = "" if activation == "tanh" else f", activation={activation!r}"
    return _recurrent("RNN", dim_in, dim_hidden, 1, 1, step, step_back, dtype, options)


def LSTM(dim_in: int, dim_hidden: int, *, dtype: Any = jnp.float32) -> Layer:
    """y[t] = o tanh(c[t]) and c[t] = f c[t - 1] + i g, with gates i, f, g, o from a[t] + u[t].

    a[t] = x[t] W^T + b and u[t] = y[t - 1] U^T have four parts, in PyTorch's order: i, f and o are
    the sigmoids of the first, second and fourth, and g is tanh of the third. Hochreiter and
    Schmidhuber, 1997; Gers et al., 2000.

    Backward, from the last t to the first, where dy includes what comes from t + 1 through U:

        dc = dy o (1 - tanh(c[t])^2) + what comes from t + 1, which is f dc there
        di = dc g;  df = dc c[t - 1];  dg = dc i;  do = dy tanh(c[t])

    da[t] = du[t] are these times the slopes i (1 - i), f (1 - f), 1 - g^2 and o (1 - o). The others
    follow from these, as help(fnn.layers.recurrent) says.

    Residuals: x, y, c and the four gates. jax.vjp keeps also tanh(c) and the slopes.

    Shapes: x (..., time, dim_in), y (..., time, dim_hidden); params {"W": (4 * dim_hidden, dim_in),
    "U": (4 * dim_hidden, dim_hidden), "b": (4 * dim_hidden,)}, drawn as RNN's.

    Raises:
        ValueError: as RNN.
    """

    def step(params, a, u, before):
        i, f, g, o = jnp.split(a + u, 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = f * before[1] + i * g
        return (o * jnp.tanh(c), c), (i, f, g, o)

    def step_back(kept, before, after, dafter):
        (i, f, g, o), c_before = kept, before[1]
        dy, dc = dafter
        tanh_c = jnp.tanh(after[1])
        dc = dc + dy * o * (1 - tanh_c) * (1 + tanh_c)
        di, df = dc * g * i * (1 - i), dc * c_before * f * (1 - f)
        dg, do = dc * i * (1 - g) * (1 + g), dy * tanh_c * o * (1 - o)
        da = jnp.concatenate([di, df, dg, do], axis=-1)
        return da, da, (jnp.zeros_like(dy), dc * f)

    return _recurrent("LSTM", dim_in, dim_hidden, 4, 2, step, step_back, dtype)


def GRU(dim_in: int, dim_hidden: int, *, dtype: Any = jnp.float32) -> Layer:
    """y[t] = (1 - z) n + z y[t - 1], with gates r, z and n from a[t] and u[t]. Cho et al., 2014.

    a[t] = x[t] W^T + b and u[t] = y[t - 1] U^T have three parts, in PyTorch's order. r and z are
    the sigmoids of a + u in the first and second part. n = tanh(a + r (u + c)) in the third. There
    r multiplies the second bias c, so c cannot be added to b: c is PyTorch's bias_hh_n.

    Backward, from the last t to the first, where dy includes what comes from t + 1 through U and z:

        dn = dy (1 - z) (1 - n^2);  dz = dy (y[t - 1] - n) z (1 - z);  dr = dn (u + c) r (1 - r)

    da[t] is (dr, dz, dn), du[t] is (dr, dz, r dn), and dc = sum of r dn. The others follow from
    these, as help(fnn.layers.recurrent) says.

    Residuals: x, y, the three gates, and u + c of the third part.

    Shapes: x (..., time, dim_in), y (..., time, dim_hidden); params {"W": (3 * dim_hidden, dim_in),
    "U": (3 * dim_hidden, dim_hidden), "b": (3 * dim_hidden,), "c": (dim_hidden,)}, drawn as RNN's.

    Raises:
        ValueError: as RNN.
    """

    def step(params, a, u, before):
        (y,) = before
        a_r, a_z, a_n = jnp.split(a, 3, axis=-1)
        u_r, u_z, u_n = jnp.split(u, 3, axis=-1)
        r, z = jax.nn.sigmoid(a_r + u_r), jax.nn.sigmoid(a_z + u_z)
        u_n = u_n + broadcast_last_axis(params["c"], u_n)
        n = jnp.tanh(a_n + r * u_n)
        return ((1 - z) * n + z * y,), (r, z, n, u_n)

    def step_back(kept, before, after, dafter):
        (r, z, n, u_n), (y,), (dy,) = kept, before, dafter
        dn, dz = dy * (1 - z) * (1 - n) * (1 + n), dy * (y - n) * z * (1 - z)
        dr = dn * u_n * r * (1 - r)
        da, du = (jnp.concatenate([dr, dz, d], axis=-1) for d in (dn, r * dn))
        return da, du, (dy * z,)

    sizes = dim_in, dim_hidden, 3, 1
    return _recurrent("GRU", *sizes, step, step_back, dtype, has_second_bias=True)


def _recurrent(
    kind: str,
    dim_in: int,
    dim_hidden: int,
    num_gates: int,
    num_states: int,
    step: Callable[..., tuple[tuple, tuple]],
    step_back: Callable[..., tuple[jax.Array, jax.Array, tuple]],
    dtype: Any,
    options: str = "",
    has_second_bias: bool = False,
) -> Layer:
    """The layer whose state, a tuple of y and perhaps others, goes through step at each position.

    Args:
        step: (params, a, u, before) -> (after, kept): the states, and the tuple of saved tensors.
        step_back: (kept, before, after, dafter) -> (da, du, dbefore), without what comes through u.
        options: what the name has after the sizes.
        has_second_bias: whether there is a bias c in u, apart from b. Else da and du are equal.
    """
    dim_in = check_integer(kind, "dim_in", dim_in, 1)
    dim_hidden = check_integer(kind, "dim_hidden", dim_hidden, 1)
    name, size = f"{kind}({dim_in}, {dim_hidden}{options})", num_gates * dim_hidden

    def transposed(initializer):
        return lambda key, shape, dtype: initializer(key, shape[::-1], dtype).T

    params = {"W": ((size, dim_in), transposed(xavier_uniform))}
    params |= {"U": ((size, dim_hidden), transposed(orthogonal)), "b": ((size,), zeros)}
    if has_second_bias:
        params["c"] = ((dim_hidden,), zeros)

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., "time", dim_in))
        a = contract(jnp.moveaxis(x, -2, 0), params["W"], -1, -1)
        a = a + broadcast_last_axis(params["b"], a)
        zero = jnp.zeros_like(jnp.sum(a, axis=0)[..., :dim_hidden])  # with the sharding of a

        def at_position(before, a):
            u = contract(before[0], params["U"], -1, -1)
            (y, *others), kept = step(params, a, u, (upcast(before[0]), *before[1:]))
            y, *rounded = (array.astype(x.dtype) for array in (y, *others, *kept))
            return (y, *others), (y, *rounded)

        start = zero.astype(x.dtype), *[zero] * (num_states - 1)
        _, (ys, *saved) = jax.lax.scan(at_position, start, a)
        y = jnp.moveaxis(ys, 0, -2)
        return y, (x, y, tuple(saved))

    def backward(params, residuals, dy):
        x, y, saved = residuals
        x = check_array(name, "residuals", x, (..., "time", dim_in))
        dy = check_array(name, "dy", dy, (*x.shape[:-1], dim_hidden), x.dtype)
        xs, ys, dys = (jnp.moveaxis(array, -2, 0) for array in (x, y, dy))
        after, kept = (ys, *saved[: num_states - 1]), saved[num_states - 1 :]
        before = [jnp.concatenate([jnp.zeros_like(s[:1]), s[:-1]]) for s in after]

        def at_position(dafter, saved):
            kept, before, after, dy = jax.tree.map(upcast, saved)
            da, du, dbefore = step_back(kept, before, after, (dafter[0] + dy, *dafter[1:]))
            du_rounded = du.astype(x.dtype)
            through_u = contract(du_rounded, params["U"], -1, 0)
            both = (da.astype(x.dtype), du_rounded) if has_second_bias else (du_rounded,)
            return (dbefore[0] + through_u, *dbefore[1:]), both

        zero = jnp.zeros_like(jnp.sum(upcast(dys), axis=0))
        saved = kept, tuple(before), after, dys
        _, both = jax.lax.scan(at_position, (zero,) * num_states, saved, reverse=True)
        da, du = both if has_second_bias else both * 2
        grads = {
            "W": sum_of_outer_products(da, xs, sharding_of(params["W"])),
            "U": sum_of_outer_products(du, before[0], sharding_of(params["U"])),
            "b": sum_over_leading_axes(da),
        }
        if has_second_bias:
            grads["c"] = sum_over_leading_axes(du[..., -dim_hidden:])
        dx = contract(da, params["W"], -1, 0).astype(x.dtype)
        return grads, jnp.moveaxis(dx, 0, -2)

    return with_params(name, params, dtype, forward, backward)


def LastStep() -> Layer:
    """y = x[..., -1, :]; dx is dy at the last position and 0 before.

    Shapes: x (..., time, features), y (..., features); params (). Residuals: none.

    Raises:
        ValueError: x has no position; x or dy have another shape or are not floating.
    """

    def forward(x, key):
        x = check_array("LastStep()", "x", x, (..., "time", "features"))
        if x.shape[-2] == 0:
            raise ValueError(f"LastStep(): expected x with a position, got {x.shape}")
        return x[..., -1, :], type_of(x)

    def backward(x_type, dy):
        *leading, _, features = x_type.shape
        dy = check_array("LastStep()", "dy", dy, (*leading, features), x_type.dtype)
        return jnp.zeros(*x_type).at[..., -1, :].set(dy)

    return without_params("LastStep()", forward, backward)
