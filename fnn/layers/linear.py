"""Linear, the affine map, and Embedding, the linear map of one-hot vectors."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_integer, check_integer_array
from fnn._numerics import (
    accumulation_dtype,
    broadcast_last_axis,
    mark_invalid,
    sharding_of,
    sharding_of_rows,
    upcast,
)
from fnn.initializers import standard_normal, xavier_uniform, zeros
from fnn.layer import Layer
from fnn.layers._frame import with_params

# On a CPU one call of XLA's matrix product costs about a microsecond. Up to both of these limits,
# multiplying and summing in a loop is faster.
FEW_EXAMPLES, FEW_MULTIPLICATIONS = 32, 2**14


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

    Backward: grads {"W": dW, "b": db} with dW = dy^T x and db = sum of dy, both over all leading
    axes; dx = dy W. Residuals: x.

    Shapes: x (..., dim_in), y (..., dim_out); params {"W": (dim_out, dim_in), "b": (dim_out,)},
    without "b" if `bias` is False.

    Args:
        weight_init: a function (key, shape, dtype) -> array, such as fnn.lecun_normal or
            jax.nn.initializers.he_normal(). It is called with JAX's shape (dim_in, dim_out), and W
            is the transpose of what it draws.
        bias_init: the same for b, called with (dim_out,). torch.nn.Linear draws W and b uniformly
            from +-1 / sqrt(dim_in).
        dtype: the dtype of the parameters.

    Raises:
        ValueError: a dimension is not a positive integer; x, dy, params or residuals have another
            shape or are not floating.

    Where the backward pass comes from. Take one example, two inputs, two outputs, and a loss L that
    is computed from y:

        y[0] = W[0, 0] x[0] + W[0, 1] x[1] + b[0]
        y[1] = W[1, 0] x[0] + W[1, 1] x[1] + b[1]

    backward is given dy[i], the derivative of L with respect to y[i]. The chain rule multiplies the
    derivatives along each path from a number to L, and adds up the paths:

        dW[i, j] = dy[i] x[j]                       W[i, j] acts on y[i] alone, by the factor x[j]
        db[i]    = dy[i]                            b[i] acts on y[i] alone, by the factor 1
        dx[j]    = dy[0] W[0, j] + dy[1] W[1, j]    x[j] acts on y[0] and on y[1]: two paths

    All examples of a batch use the same W and b, so W[i, j] has a path through each example. The
    paths add up: dW = dy^T x, and db is the sum of dy. Each example has an x of its own, so each
    has its own row of dx = dy W.

    With numbers:

        >>> model, loss = fnn.Linear(2, 2), fnn.MSELoss("sum")
        >>> params = {"W": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.array([0.5, -0.5])}
        >>> x, target = jnp.array([1.0, 2.0]), jnp.array([5.0, 11.0])
        >>> fnn.trace(model, loss, params, x, target)
                        shape     norm   numbers
        Linear(2, 2)
          x             (2,)     2.236         1        2
          params['W']   (2, 2)   5.477         1        2
                                               3        4
          params['b']   (2,)    0.7071       0.5     -0.5
          y             (2,)     11.85       5.5     10.5
          residuals     = x
          dy            (2,)     1.414         1       -1
          grads['W']    (2, 2)   3.162         1        2
                                              -1       -2
          grads['b']    (2,)     1.414         1       -1
          dx            (2,)     2.828        -2       -2
        loss
          prediction    (2,)     11.85       5.5     10.5
          target        (2,)     12.08         5       11
          value         ()         0.5       0.5
          d_prediction  (2,)     1.414         1       -1

    The loss gives dy = 2 (prediction - target) = [1, -1]. Then dW[0, 1] = dy[0] x[1] = 1 * 2 = 2,
    and dx[0] = dy[0] W[0, 0] + dy[1] W[1, 0] = 1 * 1 - 1 * 3 = -2.

    No formula is needed to confirm dW[0, 1]: put 2.001 in place of W[0, 1] = 2. Then y[0] is 5.502,
    and L grows from 0.5 to 0.502^2 + 0.5^2 = 0.502004. The difference divided by 0.001 is 2.004. It
    comes nearer to 2 with a smaller step. fnn.check_layer compares every derivative in this way.
    """
    dim_in = check_integer("Linear", "dim_in", dim_in, 1)
    dim_out = check_integer("Linear", "dim_out", dim_out, 1)
    name = f"Linear({dim_in}, {dim_out})"

    def init_W(key, shape, dtype):
        return weight_init(key, shape[::-1], dtype).T

    params = {"W": ((dim_out, dim_in), init_W)}
    if bias:
        params["b"] = ((dim_out,), bias_init)

    def forward(params, x, key=None):
        x = check_array(name, "x", x, (..., dim_in))
        y = contract(x, params["W"], -1, -1)  # x W^T
        if bias:
            y = y + broadcast_last_axis(params["b"], y)
        return y.astype(x.dtype), x

    def backward(params, x, dy):
        x = check_array(name, "residuals", x, (..., dim_in))
        dy = check_array(name, "dy", dy, (*x.shape[:-1], dim_out), x.dtype)
        dW = sum_of_outer_products(dy, x, sharding_of(params["W"]))  # dy^T x
        db = sum_over_leading_axes(dy)
        dx = contract(dy, params["W"], -1, 0)  # dy W
        return ({"W": dW, "b": db} if bias else {"W": dW}), dx.astype(x.dtype)

    return with_params(name, params, dtype, forward, backward)


def Embedding(
    num_embeddings: int,
    dim: int,
    *,
    weight_init: Callable[..., jax.Array] = standard_normal,
    dtype: Any = jnp.float32,
) -> Layer:
    """y = W[x], a row of W for each integer of x. W starts standard normal, as in PyTorch.

    Backward: dW[i] = sum of dy where x is i; dx = 0, of x's shape and dtype, because integers have
    no derivative. Residuals: x.

    A negative or too large index gives a row of NaN, and contributes no gradient.

    Shapes: x (...) of an integer dtype, y (..., dim) of W's dtype; params
    {"W": (num_embeddings, dim)}. weight_init gets this shape.

    Raises:
        ValueError: a dimension is not a positive integer; x or residuals are not of an integer
            dtype; dy or params have another shape or are not floating.
    """
    num_embeddings = check_integer("Embedding", "num_embeddings", num_embeddings, 1)
    dim = check_integer("Embedding", "dim", dim, 1)
    name = f"Embedding({num_embeddings}, {dim})"

    def forward(params, x, key=None):
        x, W = check_integer_array(name, "x", x), jnp.asarray(params["W"])
        rows = W.at[mark_invalid(x, num_embeddings)]
        sharding = sharding_of_rows(x, W)
        return rows.get(mode="fill", fill_value=jnp.nan, out_sharding=sharding), x

    def backward(params, x, dy):
        x, W = check_integer_array(name, "residuals", x), params["W"]
        dy = check_array(name, "dy", dy, (*x.shape, dim), W.dtype)
        rows = jnp.zeros_like(upcast(W)).at[mark_invalid(x, num_embeddings)]
        dW = rows.add(upcast(dy), mode="drop", out_sharding=sharding_of(W))
        return {"W": dW}, jnp.zeros_like(x)

    params = {"W": ((num_embeddings, dim), weight_init)}
    return with_params(name, params, dtype, forward, backward)


def contract(a, b, axes_a, axes_b, out_sharding=None):
    """The sum of products of a and b over the given axes.

    b is converted to a's dtype. The result has the accumulation dtype.
    """
    return jnp.tensordot(
        a,
        b.astype(a.dtype),
        (axes_a, axes_b),
        preferred_element_type=accumulation_dtype(a.dtype),
        out_sharding=out_sharding,
    )


def sum_of_outer_products(dy, x, out_sharding):
    """dy^T x over all leading axes, in the accumulation dtype."""
    leading = tuple(range(x.ndim - 1))
    num_examples = math.prod(x.shape[:-1])
    # Under jax.export the number may be symbolic, and not an int.
    is_small = isinstance(num_examples, int) and num_examples <= FEW_EXAMPLES
    if is_small and num_examples * dy.shape[-1] * x.shape[-1] <= FEW_MULTIPLICATIONS:
        return jnp.sum(upcast(dy)[..., :, None] * upcast(x)[..., None, :], axis=leading)
    return contract(dy, x, leading, leading, out_sharding)


def sum_over_leading_axes(array):
    """The sum over all axes but the last, in the accumulation dtype."""
    return jnp.sum(upcast(array), axis=tuple(range(array.ndim - 1)))
