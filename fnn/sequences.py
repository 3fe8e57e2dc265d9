"""For sequences (..., time, features): layers made of other layers."""

import jax.numpy as jnp

from fnn._checks import as_array
from fnn.combinators import Sequential
from fnn.layer import Layer, transformed
from fnn.layers.attention import Attention
from fnn.layers.linear import Linear


def MultiHeadAttention(
    dim: int,
    num_heads: int,
    *,
    causal: bool = False,
    rotary_base: float | None = None,
    bias: bool = True,
) -> Layer:
    """Attends with queries, keys and values of its own: Linear, Attention, Linear.

    It is Sequential(Linear(dim, 3 * dim), Attention(num_heads), Linear(dim, dim)), whose backward
    and residuals are those of the three.

    The first W has the rows of queries, keys and values one below the other, as in_proj_weight of
    torch.nn.MultiheadAttention. Unlike there, W starts as Linear's. Vaswani et al., 2017.

    Shapes: x, y (..., time, dim); params a tuple of three, the second ().

    Raises:
        ValueError: as Linear and Attention.

    A block of GPT has two parts, and adds what each computes to its x. With causal=True no position
    sees a later one:

        >>> def part(*inside):
        ...     return fnn.Residual(fnn.Sequential(fnn.LayerNorm(32), *inside))
        >>> network = fnn.Linear(32, 128), fnn.GELU(), fnn.Linear(128, 32)
        >>> attention = fnn.MultiHeadAttention(32, 4, causal=True)
        >>> block = fnn.Sequential(part(attention), part(*network))
        >>> print(fnn.summary(block, (8, 64, 32)))
                        layer                      output shape  parameters  residual bytes
        0.Residual.0    LayerNorm(32)              (8, 64, 32)           64          71,680
        0.Residual.1.0  Linear(32, 96)             (8, 64, 96)        3,168          65,536
        0.Residual.1.1  Attention(4, causal=True)  (8, 64, 32)            0         196,608
        0.Residual.1.2  Linear(32, 32)             (8, 64, 32)        1,056          65,536
        0               Residual                   (8, 64, 32)            0               0
        1.Residual.0    LayerNorm(32)              (8, 64, 32)           64          71,680
        1.Residual.1    Linear(32, 128)            (8, 64, 128)       4,224          65,536
        1.Residual.2    GELU('none')               (8, 64, 128)           0         262,144
        1.Residual.3    Linear(128, 32)            (8, 64, 32)        4,128         262,144
        1               Residual                   (8, 64, 32)            0               0
                        total                                        12,704       1,060,864
    """
    attention = Attention(num_heads, causal=causal, rotary_base=rotary_base)
    return Sequential(Linear(dim, 3 * dim, bias=bias), attention, Linear(dim, dim, bias=bias))


def reverse_time(layer: Layer) -> Layer:
    """The layer from the last position to the first: flip along time, the layer, and flip back.

    Parallel(LSTM(a, b), reverse_time(LSTM(a, b))) is a bidirectional LSTM. Changes the order in
    which the layer sees the positions. params, grads and residuals are the layer's.

    Shapes: x (..., time, features) and y (..., time, features), as the layer's.

    Raises:
        ValueError: `layer` is not a Layer; x or y has fewer than two axes.
    """

    def flip(what, array):
        array = as_array("reverse_time", what, array)
        if array.ndim < 2:
            expected = f"{what} of shape (..., time, features)"
            raise ValueError(f"reverse_time: expected {expected}, got {array.shape}")
        return jnp.flip(array, axis=-2)

    def forward(params, x, key=None):
        y, residuals = layer.forward(params, flip("x", x), key)
        return flip("the layer's y", y), residuals

    def backward(params, residuals, dy):
        grads, dx = layer.backward(params, residuals, flip("dy", dy))
        return grads, flip("the layer's dx", dx)

    return transformed(layer, reverse_time, forward=forward, backward=backward)
