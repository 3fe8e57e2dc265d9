"""The optimizers. All of them have this in common:

Arithmetic runs in the parameter's dtype, or in float32 for 16-bit parameters.

Leaves named "mean" or "var" in a dict do not decay: they are BatchNorm's statistics.

learning_rate is a number, or a schedule step -> rate. The first step is 0.

Every update raises a ValueError if the rate is not a scalar, or if params, grads or state do not
match or are not floating.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_nonnegative
from fnn._numerics import log_of, upcast
from fnn.optimizers._frame import Optimizer, check_decay, is_used, make_optimizer, scaled, zeros
from fnn.schedules import Schedule


class SGDState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far, at most 2**31 - 1
    velocity: Any  # like params; () without momentum


def sgd(
    learning_rate: float | jax.Array | Schedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent by torch.optim.SGD's rule (dampening 0):

        g = grad + weight_decay * p
        v = momentum * v + g                      v starts at 0
        p = p - rate * (g + momentum * v)         if nesterov
        p = p - rate * v                          otherwise

    Arithmetic runs in the parameter's dtype, or in float32 for 16-bit parameters. Leaves named
    "mean" or "var" in a dict do not decay: they are BatchNorm's statistics.

    PyTorch has the arguments in another order: lr, momentum, dampening, weight_decay, nesterov.

    Args:
        learning_rate: a number, or a schedule step -> rate. The first step is 0. Unlike in
            PyTorch, no optimizer has a default.

    Raises:
        ValueError: a number is negative or not finite (traced values pass); nesterov without
            momentum; the rate is not a scalar; params, grads or state do not match or are not
            floating.
    """
    check_nonnegative("sgd", "momentum", momentum)
    has_momentum = is_used(momentum)
    if nesterov and not has_momentum:
        raise ValueError("sgd: expected momentum > 0 with nesterov=True, got 0")

    def rule(rate, step, p, g, decay, v):
        g = g if decay is None else g + decay
        if not has_momentum:
            return p - rate * g, None
        v = g + scaled(momentum, v)
        return p - rate * (g + scaled(momentum, v) if nesterov else v), v

    slots = (jnp.zeros_like if has_momentum else None,)
    return make_optimizer("sgd", learning_rate, weight_decay, SGDState, slots, rule)


class AdamState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far, at most 2**31 - 1
    mean: Any  # of the gradients, like params, in float32 for 16-bit ones
    square: Any  # the mean of their squares, likewise


def adam(
    learning_rate: float | jax.Array | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015) with decoupled weight decay, by torch.optim.AdamW's rule:

        m = b1 m + (1 - b1) grad                    m and v start at 0
        v = b2 v + (1 - b2) grad^2
        p = p - rate * (weight_decay * p + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps))

    where t is 1 in the first update. Without weight decay it is torch.optim.Adam; AdamW decays by
    0.01 by default. with_l2 gives the weight decay of torch.optim.Adam.

    Dtypes, Args, and what does not decay: as sgd.

    Raises:
        ValueError: as sgd; b1 or b2 is not in [0, 1).
    """
    check_decay("adam", "b1", b1)
    check_decay("adam", "b2", b2)
    check_nonnegative("adam", "eps", eps)

    def rule(rate, step, p, g, decay, mean, square):
        mean, square = _moving_mean(b1, mean, g), _moving_mean(b2, square, g, g)
        root = _root(square) / jnp.sqrt(_one_minus_power(b2, step, square.dtype))
        m = mean / _one_minus_power(b1, step, mean.dtype)
        direction = m / (root + jnp.asarray(eps, root.dtype))
        direction = direction if decay is None else direction + decay
        return p - rate * direction, mean, square

    return make_optimizer("adam", learning_rate, weight_decay, AdamState, (zeros, zeros), rule)


class RMSPropState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far, at most 2**31 - 1
    square: Any  # the mean of the gradients' squares, like params, in float32 for 16-bit ones
    mean: Any  # of the gradients, likewise; () unless centered
    velocity: Any  # likewise; () without momentum


def rmsprop(
    learning_rate: float | jax.Array | Schedule,
    decay: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """RMSProp (Hinton, 2012; centered: Graves, 2013) by torch.optim.RMSprop's rule:

        g = grad + weight_decay * p
        v = decay v + (1 - decay) g^2               v, m and u start at 0
        m = decay m + (1 - decay) g                 if centered, else 0
        u = momentum * u + g / (sqrt(v - m^2) + eps)
        p = p - rate * u

    PyTorch's name of decay is alpha, and its weight_decay comes before momentum. Rounding may make
    v - m^2 negative: it then counts as 0, where PyTorch gives NaN.

    Dtypes, Args, and what does not decay: as sgd.

    Raises:
        ValueError: as sgd; decay is not in [0, 1).
    """
    check_decay("rmsprop", "decay", decay)
    check_nonnegative("rmsprop", "eps", eps)
    check_nonnegative("rmsprop", "momentum", momentum)
    has_momentum = is_used(momentum)

    def rule(rate, step, p, g, penalty, square, mean, velocity):
        g = g if penalty is None else g + penalty
        square = variance = _moving_mean(decay, square, g, g)
        if centered:
            mean = _moving_mean(decay, mean, g)
            finite = jnp.where(jnp.isinf(square), 0, mean)  # inf - inf would be NaN
            variance = jnp.maximum(square - jnp.square(finite), 0)
        direction = g / (_root(variance) + jnp.asarray(eps, g.dtype))
        if has_momentum:
            direction = velocity = scaled(momentum, velocity) + direction
        return p - rate * direction, square, mean, velocity

    slots = zeros, zeros if centered else None, zeros if has_momentum else None
    return make_optimizer("rmsprop", learning_rate, weight_decay, RMSPropState, slots, rule)


class AdagradState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far, at most 2**31 - 1
    squares: Any  # the sum of the gradients' squares, like params, in float32 for 16-bit ones


def adagrad(
    learning_rate: float | jax.Array | Schedule,
    initial_accumulator: float = 0.0,
    eps: float = 1e-10,
) -> Optimizer:
    """Adagrad (Duchi et al., 2011) by torch.optim.Adagrad's rule:

        v = v + grad^2                              v starts at initial_accumulator
        p = p - rate * grad / (sqrt(v) + eps)

    PyTorch's lr_decay is a schedule here, and its weight_decay is with_l2.

    Dtypes, Args, Raises: as sgd.
    """
    check_nonnegative("adagrad", "initial_accumulator", initial_accumulator)
    check_nonnegative("adagrad", "eps", eps)

    def start(p):
        return jnp.full_like(upcast(p), initial_accumulator)

    def rule(rate, step, p, g, decay, squares):
        squares = squares + jnp.square(g)
        return p - rate * (g / (_root(squares) + jnp.asarray(eps, g.dtype))), squares

    return make_optimizer("adagrad", learning_rate, 0.0, AdagradState, (start,), rule)


class LionState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far, at most 2**31 - 1
    mean: Any  # of the gradients, like params, in float32 for 16-bit ones


def lion(
    learning_rate: float | jax.Array | Schedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Lion (Chen et al., 2023), with decoupled weight decay:

        p = p - rate * (sign(b1 m + (1 - b1) grad) + weight_decay * p)
        m = b2 m + (1 - b2) grad                    m starts at 0

    The first line has the m from before the update. Every number moves by the rate, whatever the
    size of its gradient. So the authors advise a rate 3 to 10 times smaller than Adam's, and a
    weight_decay larger by the same factor. optax.lion decays by 0.001 by default.

    Dtypes, Args, and what does not decay: as sgd.

    Raises:
        ValueError: as sgd; b1 or b2 is not in [0, 1).
    """
    check_decay("lion", "b1", b1)
    check_decay("lion", "b2", b2)

    def rule(rate, step, p, g, decay, mean):
        direction = jnp.sign(_moving_mean(b1, mean, g))
        direction = direction if decay is None else direction + decay
        return p - rate * direction, _moving_mean(b2, mean, g)

    return make_optimizer("lion", learning_rate, weight_decay, LionState, (zeros,), rule)


def _moving_mean(decay, mean, x, factor=1):
    """decay mean + (1 - decay) x factor. x * factor alone might overflow."""
    return scaled(decay, mean) + jnp.asarray(1 - decay, mean.dtype) * x * factor


def _root(square):
    """sqrt(square), without sqrt's infinite derivative at 0."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _one_minus_power(base, exponent, dtype):
    """1 - base^exponent, for an exponent of at least 1, exact also where base is close to 1."""
    exponent = exponent.astype(dtype)
    if isinstance(base, jax.core.Tracer):  # log has no derivative at 0
        base = jnp.asarray(base, dtype)
        by_log = -jnp.expm1(exponent * jnp.log(jnp.where(base == 0, 1, base)))
        return jnp.where(base == 0, 1 - base**exponent, by_log)
    return -jnp.expm1(exponent * jnp.asarray(log_of(base), dtype))
