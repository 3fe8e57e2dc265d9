"""Gates: activations y = x g(x), which keep x, and GLU, whose gate is one half of x.

All raise a ValueError for an x that is not floating, and for a dy of another shape than y.
"""

import math

import jax
import jax.numpy as jnp

from fnn._checks import check_array, check_choice, check_integer
from fnn._numerics import upcast
from fnn.layer import Layer
from fnn.layers._elementwise import check_axis, keep_x
from fnn.layers._frame import without_params

# For |x| beyond these bounds the gate is exactly 0 or 1 in float64, and its derivative 0. There
# exp(-40^2 / 2) and exp(-800) are below the smallest float64, about exp(-745).
GELU_BOUND, EXP_BOUND = 40, 800


def GELU(approximate: str = "none") -> Layer:
    """y = x P(x), where P is the standard normal distribution's cumulative function.

    dx = dy (P(x) + x p(x)), with p(x) = exp(-x^2 / 2) / sqrt(2 pi). With approximate="tanh",
    P(x) = (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), and p = dP/dx.
    Hendrycks and Gimpel, 2016. Any shape; params (). y does not determine x, so x is kept.

    Raises:
        ValueError: approximate is neither "none" nor "tanh".
    """
    check_choice("GELU", "approximate", approximate, ("none", "tanh"))

    def exact(x):
        density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
        return jax.lax.erfc(-x / math.sqrt(2)) / 2, density

    def by_tanh(x):
        scale = 2 * math.sqrt(2 / math.pi)
        s = jax.nn.sigmoid(scale * (x + 0.044715 * x**3))  # (1 + tanh(u)) / 2, without cancellation
        return s, s * (1 - s) * scale * (1 + 3 * 0.044715 * jnp.square(x))

    return _gated(f"GELU({approximate!r})", exact if approximate == "none" else by_tanh, GELU_BOUND)


def SiLU() -> Layer:
    """y = x s(x) with s(x) = 1 / (1 + exp(-x)); dx = dy s(x) (1 + x (1 - s(x))).

    Elfwing et al., 2018. Any shape; params (). y does not determine x, so x is kept.
    """

    def gate(x):
        s = jax.nn.sigmoid(x)
        return s, s * (1 - s)

    return _gated("SiLU()", gate, EXP_BOUND)


def Mish() -> Layer:
    """y = x t with t = tanh(log(1 + exp(x))); dx = dy (t + x (1 - t^2) / (1 + exp(-x))).

    Misra, 2019. Any shape; params (). y does not determine x, so x is kept.
    """

    def gate(x):
        t = jnp.tanh(jax.nn.softplus(x))
        return t, (1 - t) * (1 + t) * jax.nn.sigmoid(x)

    return _gated("Mish()", gate, EXP_BOUND)


def Hardswish() -> Layer:
    """y = x h(x) with h(x) = (x + 3) / 6, but 0 below -3 and 1 above 3; dx = dy (h(x) + x h'(x)).

    h is Hardsigmoid. h' is 1 / 6 between -3 and 3, else 0, also at both ends as in
    torch.nn.Hardswish. Howard et al., 2019. Any shape; params (). y does not determine x, so x is
    kept.
    """

    def gate(x):
        return (x + 3) / 6, jnp.where(jnp.abs(x) < 3, 1 / 6, 0).astype(x.dtype)

    return _gated("Hardswish()", gate, 3)


def GLU(axis: int = -1) -> Layer:
    """y = a s with s = 1 / (1 + exp(-b)), where a and b are the halves of x along the axis.

    da = dy s, db = dy y (1 - s). Dauphin et al., 2017. Residuals: y and s, because they take no
    more memory than x, and y is usually free: a Linear that follows keeps the same array.

    Shapes: x of any shape with an even length 2 n along the axis, y with n there; params (). 16-bit
    numbers are computed in float32. s is kept in x's dtype, so in 16 bits db is inexact where s is
    near 1.

    Raises:
        ValueError: axis is not an integer; x has no such axis, or one of an odd length.
    """
    axis = check_integer("GLU", "axis", axis, -math.inf)
    name = f"GLU({axis})"

    def forward(x, key):
        x = check_array(name, "x", x, (...,))
        check_axis(name, x, axis)
        if x.shape[axis] % 2:
            raise ValueError(f"{name}: expected x of an even length at {axis}, got {x.shape}")
        a, b = jnp.split(upcast(x), 2, axis)
        s = jax.nn.sigmoid(b)
        y = (a * s).astype(x.dtype)
        return y, (y, s.astype(x.dtype))

    def backward(residuals, dy):
        y, s = map(upcast, residuals)
        dtype = residuals[0].dtype
        dy = upcast(check_array(name, "dy", dy, y.shape, dtype))
        return jnp.concatenate([dy * s, dy * y * (1 - s)], axis).astype(dtype)

    return without_params(name, forward, backward)


def _gated(name, gate, bound):
    """The layer y = x g(x), dx = dy (g(x) + x g'(x)); gate(x) is (g(x), g'(x)).

    Below -bound g is 0, above bound it is 1. Clipping x there avoids 0 times infinity. 16-bit
    numbers are computed in float32.
    """

    def function(x):
        wide = upcast(x)
        y = jnp.maximum(wide, -bound) * gate(jnp.clip(wide, -bound, bound))[0]
        return y.astype(x.dtype)

    def pullback(x, dy):
        # XLA would keep the gate that forward computed. A GPU computes it again sooner than it
        # reads it. The barrier hides from XLA that both are equal.
        barrier = jax.lax.optimization_barrier
        x = jax.lax.platform_dependent(x, cpu=lambda x: x, default=barrier)
        wide = jnp.clip(upcast(x), -bound, bound)
        value, slope = gate(wide)
        return (upcast(dy) * (value + wide * slope)).astype(x.dtype)

    return keep_x(name, function, pullback)
