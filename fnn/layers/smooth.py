"""Smooth activations, for x of any shape. Each keeps y alone.

Keeping y is usually free, because a Linear that follows keeps the same array. All raise a
ValueError for an x that is not floating, and for a dy of another shape than y.
"""

import jax
import jax.numpy as jnp

from fnn.layer import Layer
from fnn.layers._elementwise import keep_y


def Tanh() -> Layer:
    """y = tanh(x); dx = dy (1 - y)(1 + y), as the slope is 1 - tanh(x)^2. Any shape; params ()."""
    return keep_y("Tanh()", jnp.tanh, lambda y, dy: dy * (1 - y) * (1 + y))


def Sigmoid() -> Layer:
    """y = 1 / (1 + exp(-x)); dx = dy y (1 - y). Any shape; params ()."""
    return keep_y("Sigmoid()", jax.nn.sigmoid, lambda y, dy: dy * y * (1 - y))


def LogSigmoid() -> Layer:
    """y = log(1 / (1 + exp(-x))); dx = dy (1 - exp(y)). Any shape; params ()."""
    return keep_y("LogSigmoid()", jax.nn.log_sigmoid, lambda y, dy: -dy * jnp.expm1(y))


def Softplus() -> Layer:
    """y = log(1 + exp(x)); dx = dy (1 - exp(-y)). Any shape; params ().

    Unlike torch.nn.Softplus, it has no beta and does not switch to y = x above 20.
    """
    return keep_y("Softplus()", jax.nn.softplus, lambda y, dy: -dy * jnp.expm1(-y))


def Softsign() -> Layer:
    """y = x / (1 + |x|); dx = dy (1 - |y|)^2, as 1 - |y| = 1 / (1 + |x|). Any shape; params ().

    Only y is kept. In 16 bits dx is therefore inexact where |x| is large: there |y| is rounded to
    nearly 1. For x = inf, y is its limit 1, where torch.nn.Softsign gives NaN.
    """

    def function(x):
        finite = jnp.finfo(x.dtype)
        x = jnp.clip(x, finite.min, finite.max)  # because inf / inf is NaN
        return x / (1 + jnp.abs(x))

    return keep_y("Softsign()", function, lambda y, dy: dy * jnp.square(1 - jnp.abs(y)))
