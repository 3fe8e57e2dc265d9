"""Optimizers. An optimizer is a pair of pure functions: init makes a state, update uses it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_nonnegative, check_positive, check_tree, check_type
from fnn._numerics import clipping_factor, global_norm, log_of, upcast
from fnn.schedules import Schedule

LAST_STEP = 2**31 - 1  # the largest int32; a step counter that reaches it stays there


class Optimizer(NamedTuple):
    """The rule by which parameters change.

    init:   (params) -> state.
    update: (grads, state, params) -> (params, state).
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


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

    Arithmetic runs in the parameter's dtype, or in float32 for 16-bit parameters.

    Args:
        learning_rate: a number, or a schedule step -> rate. The first step is 0.

    Raises:
        ValueError: a number is negative or not finite (traced values pass); nesterov without
            momentum; the rate is not a scalar; params, grads or state do not match or are not
            floating.
    """
    rate_at = _rate_at("sgd", learning_rate)
    check_nonnegative("sgd", "momentum", momentum)
    check_nonnegative("sgd", "weight_decay", weight_decay)
    has_momentum, has_weight_decay = _is_used(momentum), _is_used(weight_decay)
    if nesterov and not has_momentum:
        raise ValueError("sgd: expected momentum > 0 with nesterov=True, got 0")

    def init(params):
        check_tree("sgd", "params", params, params)
        velocity = jax.tree.map(jnp.zeros_like, params) if has_momentum else ()
        return SGDState(jnp.zeros((), jnp.int32), velocity)

    def update(grads, state, params):
        check_type("sgd", state, SGDState, "a state of sgd")
        check_tree("sgd", "params", params, params)
        check_tree("sgd", "grads", grads, params)
        check_tree("sgd", "velocity", state.velocity, params if has_momentum else ())
        rate = rate_at(state.step)
        old, velocity = jax.tree.map(upcast, (params, state.velocity))
        direction = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), grads, old)
        if has_weight_decay:
            direction = _add_scaled(direction, weight_decay, old)
        if has_momentum:
            velocity = _add_scaled(direction, momentum, velocity)
            direction = _add_scaled(direction, momentum, velocity) if nesterov else velocity
        new = _add_scaled(old, -rate, direction)
        velocity = _round_like(velocity, state.velocity)
        return _round_like(new, params), SGDState(_next_step(state.step), velocity)

    return Optimizer(init, update)


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

    where t is 1 in the first update. Arithmetic runs in the parameter's dtype, or in float32 for
    16-bit parameters. Without weight decay it is torch.optim.Adam.

    Args:
        learning_rate: a number, or a schedule step -> rate. The first step is 0.

    Raises:
        ValueError: as sgd; b1 or b2 is not in [0, 1).
    """
    for what, value in {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}.items():
        check_nonnegative("adam", what, value)
        if what in ("b1", "b2") and not isinstance(value, jax.core.Tracer) and value >= 1:
            raise ValueError(f"adam: expected {what} to be below 1, got {value!r}")
    rate_at = _rate_at("adam", learning_rate)
    has_weight_decay = _is_used(weight_decay)

    def init(params):
        check_tree("adam", "params", params, params)

        def zeros():  # twice: a donated state must not have the same array at two places
            return jax.tree.map(lambda p: jnp.zeros_like(upcast(p)), params)

        return AdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    def update(grads, state, params):
        check_type("adam", state, AdamState, "a state of adam")
        check_tree("adam", "params", params, params)
        check_tree("adam", "grads", grads, params)
        check_tree("adam", "mean", state.mean, params)
        check_tree("adam", "square", state.square, params)
        rate, step = rate_at(state.step), _next_step(state.step)

        def moving_mean(decay, m, x, factor=1):
            """decay m + (1 - decay) x factor. x * factor alone might overflow."""
            return jnp.asarray(decay, m.dtype) * m + jnp.asarray(1 - decay, m.dtype) * x * factor

        def new(p, m, v):
            m = m / _one_minus_power(b1, step, m.dtype)
            # where avoids sqrt's infinite derivative at 0.
            root = jnp.where(v == 0, 0, jnp.sqrt(jnp.where(v == 0, 1, v)))
            root = root / jnp.sqrt(_one_minus_power(b2, step, v.dtype))
            direction = m / (root + jnp.asarray(eps, v.dtype))
            if has_weight_decay:
                direction = direction + jnp.asarray(weight_decay, p.dtype) * p
            return p - jnp.asarray(rate, p.dtype) * direction

        old = jax.tree.map(upcast, params)
        grads = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), grads, old)
        mean = jax.tree.map(lambda m, g: moving_mean(b1, m, g), state.mean, grads)
        square = jax.tree.map(lambda v, g: moving_mean(b2, v, g, g), state.square, grads)
        params = _round_like(jax.tree.map(new, old, mean, square), params)
        return params, AdamState(step, mean, square)

    return Optimizer(init, update)


def _one_minus_power(base, exponent, dtype):
    """1 - base^exponent, for an exponent of at least 1, exact also where base is close to 1."""
    exponent = exponent.astype(dtype)
    if isinstance(base, jax.core.Tracer):  # log has no derivative at 0
        base = jnp.asarray(base, dtype)
        by_log = -jnp.expm1(exponent * jnp.log(jnp.where(base == 0, 1, base)))
        return jnp.where(base == 0, 1 - base**exponent, by_log)
    return -jnp.expm1(exponent * jnp.asarray(log_of(base), dtype))


def clip_by_global_norm(optimizer: Optimizer, max_norm: float | jax.Array) -> Optimizer:
    """The optimizer that gets grads * min(1, max_norm / norm) in place of grads.

    norm = sqrt(sum of grad^2) over every element of every leaf. Pascanu et al., 2013. The state is
    the inner optimizer's.

    Raises:
        ValueError: `optimizer` is not an Optimizer; max_norm is not a finite number above 0 (a
            traced one passes).
    """
    check_is_optimizer("clip_by_global_norm", optimizer)
    check_positive("clip_by_global_norm", "max_norm", max_norm)

    def update(grads, state, params):
        check_tree("clip_by_global_norm", "grads", grads, params)
        factor = clipping_factor(global_norm(grads), max_norm)
        scaled = jax.tree.map(lambda g: g * factor.astype(g.dtype), jax.tree.map(upcast, grads))
        return optimizer.update(_round_like(scaled, grads), state, params)

    return Optimizer(optimizer.init, update)


def check_is_optimizer(name: str, optimizer: Any) -> None:
    """Raise ValueError unless `optimizer` is an Optimizer."""
    check_type(name, optimizer, Optimizer, "an Optimizer such as fnn.sgd(0.1)")


def _next_step(step):
    return jnp.minimum(step, LAST_STEP - 1) + 1


def _rate_at(name, learning_rate):
    """The learning rate as a function of the step."""
    if not callable(learning_rate):
        check_nonnegative(name, "learning_rate", learning_rate)

    def rate_at(step):
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        if jnp.shape(rate) != ():
            raise ValueError(f"{name}: expected a learning rate of shape (), got {jnp.shape(rate)}")
        return rate

    return rate_at


def _is_used(factor):
    return isinstance(factor, jax.core.Tracer) or factor != 0


def _round_like(tree, like):
    """Convert each leaf to the dtype of `like`'s."""
    return jax.tree.map(lambda a, b: a.astype(jnp.asarray(b).dtype), tree, like)


def _add_scaled(a, scale, b):
    """a + scale * b, leaf by leaf."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b, a, b)
