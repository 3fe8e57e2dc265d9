"""Attention between the positions of a sequence (..., time, features)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from fnn._checks import check_array, check_integer, check_positive, check_type
from fnn._numerics import accumulation_dtype, broadcast_last_axis, upcast
from fnn.layer import Layer, type_of
from fnn.layers._frame import with_params, without_params

small_normal = jax.nn.initializers.normal(0.02)

# So many queries at a time are compared with all keys. A sequence up to this length is one block.
QUERIES_IN_BLOCK = 128


def Attention(num_heads: int, *, causal: bool = False, rotary_base: float | None = None) -> Layer:
    """y[t] = sum over s of p[t, s] v[s], with p[t] = softmax over s of q[t] . k[s] / sqrt(d).

    x holds the queries q, the keys k and the values v, side by side. Each is num_heads vectors of
    length d, and each head attends by itself. With causal=True the sums are over s <= t alone. The
    values are those of torch.nn.functional.scaled_dot_product_attention. Vaswani et al., 2017.

    Backward, with ds[t, s] = p[t, s] (dy[t] . v[s] - dy[t] . y[t]) / sqrt(d):

        dq[t] = sum over s of ds[t, s] k[s]
        dk[s] = sum over t of ds[t, s] q[t]
        dv[s] = sum over t of p[t, s] dy[t]

    rotary_base, such as 10000, turns queries and keys first: at position t each pair of neighbours
    (q[2i], q[2i + 1]) by the angle t / rotary_base^(2i / d). Then q[t] . k[s] depends on t - s, and
    not on t itself. Backward turns dq and dk back. Su et al., 2021.

    Residuals: x. From it backward computes p again, for a block of queries and all keys at a time.
    So neither pass holds an array of time x time where time is long: what it holds grows with time.
    For 2048 positions of width 128 in 4 heads both hold 20 MB; by jax.vjp of JAX's
    dot_product_attention it is 272 MB.
    Dao et al., 2022, do it for blocks of keys too, and keep y and the logarithms of the sums.

    A value v that is not finite makes all queries NaN, causal ones before it too: 0 * inf is NaN.

    Shapes: x (..., time, 3 * dim), y (..., time, dim) with dim = num_heads * d; params ().

    Raises:
        ValueError: num_heads is not a positive integer, or rotary_base not a finite number above 0;
            causal is neither True nor False; num_heads does not divide dim; d is odd, with
            rotary_base; x or dy have another shape or are not floating.
    """
    num_heads = check_integer("Attention", "num_heads", num_heads, 1)
    check_type("Attention", causal, bool, "causal to be True or False")
    if rotary_base is not None:
        check_positive("Attention", "rotary_base", rotary_base)
    options = ", causal=True" if causal else ""
    options += "" if rotary_base is None else f", rotary_base={rotary_base}"
    name = f"Attention({num_heads}{options})"
    divisor = num_heads if rotary_base is None else 2 * num_heads

    def check_x(what, x):
        x = check_array(name, what, x, (..., "time", "3 * dim"))
        if x.shape[-1] % (3 * divisor):
            expected = f"shape (..., time, 3 * dim) with a dim that {divisor} divides"
            raise ValueError(f"{name}: expected {what} of {expected}, got {x.shape}")
        return x

    def heads_of(x, count):
        """x as (..., heads, time, d): the products of a CPU are faster in this order."""
        return jnp.moveaxis(x.reshape(*x.shape[:-1], count, x.shape[-1] // count), -2, -3)

    def side_by_side(heads):
        """(..., heads, time, d) as (..., time, heads * d)."""
        heads = jnp.moveaxis(heads, -3, -2)
        return heads.reshape(*heads.shape[:-2], heads.shape[-2] * heads.shape[-1])

    def split(x):
        """Queries, keys and values (..., heads, time, d)."""
        q, k, v = jnp.split(heads_of(x, 3 * num_heads), 3, axis=-3)
        return _turn(q, rotary_base), _turn(k, rotary_base), v

    def join(dq, dk, dv):
        dq, dk = (_turn(part, rotary_base, backwards=True) for part in (dq, dk))
        return side_by_side(jnp.concatenate([dq, dk, dv], axis=-3))

    def powers_of(q, k, first):
        """p times its sum over the keys, and that sum, for queries from position `first` on."""
        s = _product("...qd,...kd->...qk", q, k)  # q . k
        if causal:
            query, key = (jax.lax.broadcasted_iota(jnp.int32, s.shape[-2:], n) for n in (0, 1))
            s = jnp.where(jnp.broadcast_to(key <= first + query, s.shape), s, -jnp.inf)
        # To jax.jvp the largest is a constant, because it cancels.
        largest = jax.lax.stop_gradient(jnp.max(s, -1, keepdims=True, initial=-jnp.inf))
        powers = jnp.exp((s - largest) / math.sqrt(q.shape[-1]))
        return powers, jnp.sum(powers, -1, keepdims=True)

    def forward(x, key):
        x = check_x("x", x)
        q, k, v = split(x)

        def attend(first, q):
            powers, total = powers_of(q, k, first)
            weighted = _product("...qk,...kd->...qd", powers.astype(x.dtype), v)
            return (weighted / total).astype(x.dtype), ()

        y, _ = _by_blocks(attend, (q,), ())
        return side_by_side(y), x

    def backward(x, dy):
        x = check_x("residuals", x)
        dy = check_array(name, "dy", dy, (*x.shape[:-1], x.shape[-1] // 3), x.dtype)
        q, k, v = split(x)
        dy = heads_of(dy, num_heads)

        def pull_back(first, q, dy):
            powers, total = powers_of(q, k, first)
            root = math.sqrt(q.shape[-1])
            share = (upcast(dy) / (root * total)).astype(x.dtype)
            dp = _product("...qd,...kd->...qk", share, v)  # dy[t] . v[s] / (sqrt(d) total)
            inner = jnp.sum(powers * dp, -1, keepdims=True) / total  # the same of dy[t] . y[t]
            ds = (powers * (dp - inner)).astype(x.dtype)
            dq = _product("...qk,...kd->...qd", ds, k)
            dk = _product("...qk,...qd->...kd", ds, q)
            dv = root * _product("...qk,...qd->...kd", powers.astype(x.dtype), share)
            return dq, (dk, dv)

        start = jnp.zeros_like(upcast(k)), jnp.zeros_like(upcast(v))
        dq, (dk, dv) = _by_blocks(pull_back, (q, dy), start)
        return join(dq, dk, dv).astype(x.dtype)

    return without_params(name, forward, backward)


def _product(subscripts, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=accumulation_dtype(a.dtype))


def _by_blocks(function, arrays, start):
    """function(first, *blocks) -> (outputs, sums), for all blocks of the arrays along axis -2.

    `first` is the position where the block begins. The outputs of the blocks are joined, and the
    sums are added up from `start` on. The last block is filled up with zeros.
    """
    time, size = arrays[0].shape[-2], QUERIES_IN_BLOCK
    if time <= size:
        return function(0, *arrays)
    count = math.ceil(time / size)

    def cut(array):
        widths = [(0, 0)] * (array.ndim - 2) + [(0, count * size - time), (0, 0)]
        blocks = jnp.pad(array, widths).reshape(*array.shape[:-2], count, size, array.shape[-1])
        return jnp.moveaxis(blocks, -3, 0)

    def join(blocks):
        blocks = jnp.moveaxis(blocks, 0, -3)
        whole = blocks.reshape(*blocks.shape[:-3], count * size, blocks.shape[-1])
        return jax.lax.slice_in_dim(whole, 0, time, axis=whole.ndim - 2)

    def step(sums, block):
        outputs, more = function(*block)
        return jax.tree.map(jnp.add, sums, more), outputs

    firsts = jnp.arange(count, dtype=jnp.int32) * size
    sums, blocks = jax.lax.scan(step, start, (firsts, *map(cut, arrays)))
    return jax.tree.map(join, blocks), sums


def _turn(x, base, backwards=False):
    """Each pair of neighbours of x (..., heads, time, d) turned by its angle; see Attention."""
    if base is None:
        return x
    wide = upcast(x)
    time, half = x.shape[-2], x.shape[-1] // 2
    position, pair = (jnp.arange(n, dtype=wide.dtype) for n in (time, half))
    frequency = jnp.asarray(base, wide.dtype) ** (-pair / half)
    angle = position.reshape(time, 1) * frequency.reshape(1, half)
    pairs = wide.reshape(*x.shape[:-1], half, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = (jnp.broadcast_to(f(angle), a.shape) for f in (jnp.cos, jnp.sin))
    sin = -sin if backwards else sin
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def PositionalEmbedding(
    max_length: int,
    dim: int,
    *,
    weight_init: Callable[..., jax.Array] = small_normal,
    dtype: Any = jnp.float32,
) -> Layer:
    """y[t] = x[t] + W[t], a learned vector for each position.

    Backward: dW[t] = sum of dy[t] over all leading axes, and 0 for positions that x does not have;
    dx = dy. Residuals: none. W starts normal with a standard deviation of 0.02, as in GPT-2.

    Shapes: x, y (..., time, dim) with time <= max_length; params {"W": (max_length, dim)}.

    Raises:
        ValueError: a number is not a positive integer; x is longer than max_length; x, dy or params
            have another shape or are not floating.
    """
    max_length = check_integer("PositionalEmbedding", "max_length", max_length, 1)
    dim = check_integer("PositionalEmbedding", "dim", dim, 1)
    name = f"PositionalEmbedding({max_length}, {dim})"

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., "time", dim))
        time = x.shape[-2]
        if time > max_length:
            raise ValueError(f"{name}: expected x of at most {max_length} positions, got {x.shape}")
        return x + broadcast_last_axis(params["W"][:time], x), type_of(x)

    def keep_layout(dy):
        """dy, stored row by row. Else XLA would put the batch innermost in a whole network."""
        return with_layout_constraint(dy, Layout(tuple(range(dy.ndim))))

    def backward(params, x_type, dy):
        dy = check_array(name, "dy", dy, *x_type)
        kept = jax.lax.platform_dependent(dy, cpu=lambda dy: dy, default=keep_layout)
        dW = jnp.sum(upcast(kept), axis=tuple(range(dy.ndim - 2)))
        return {"W": jnp.pad(dW, ((0, max_length - dy.shape[-2]), (0, 0)))}, dy

    params = {"W": ((max_length, dim), weight_init)}
    return with_params(name, params, dtype, forward, backward)
