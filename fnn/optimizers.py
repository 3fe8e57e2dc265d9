"""Optimizers, pairs of pure functions, and schedules, functions step -> learning rate."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.layer import check_integer, check_nonnegative, check_tree, widen

Schedule = Callable[[Any], Any]  # step () -> rate (), both possibly traced


class Optimizer(NamedTuple):
    """init:   (params) -> state;
    update: (grads, state, params) -> (params, state).
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


class SGDState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far
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
        learning_rate: a number, a traced array, or a schedule: step -> rate, from step 0.

    Raises:
        ValueError: a negative or non-finite number (traced values pass); nesterov without
            momentum; a rate that is no scalar; grads, or the state's velocity, whose structure
            or shapes are not those of params, or that are not floating.
    """
    if not callable(learning_rate):
        check_nonnegative("sgd", "learning_rate", learning_rate)
    check_nonnegative("sgd", "momentum", momentum)
    check_nonnegative("sgd", "weight_decay", weight_decay)
    has_momentum, has_weight_decay = (
        isinstance(factor, jax.core.Tracer) or factor != 0 for factor in (momentum, weight_decay)
    )
    if nesterov and not has_momentum:
        raise ValueError("sgd: expected momentum > 0 with nesterov=True, got 0")

    def init(params):
        velocity = jax.tree.map(jnp.zeros_like, params) if has_momentum else ()
        return SGDState(jnp.zeros((), jnp.int32), velocity)

    def update(grads, state, params):
        check_tree("sgd", "grads", grads, params)
        check_tree("sgd", "velocity", state.velocity, params if has_momentum else ())
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        if jnp.shape(rate) != ():
            raise ValueError(f"sgd: expected a learning rate of shape (), got {jnp.shape(rate)}")
        old, velocity = jax.tree.map(widen, (params, state.velocity))
        direction = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), grads, old)
        if has_weight_decay:
            direction = _add_scaled(direction, weight_decay, old)
        if has_momentum:
            velocity = _add_scaled(direction, momentum, velocity)
            direction = _add_scaled(direction, momentum, velocity) if nesterov else velocity
        new = _add_scaled(old, -rate, direction)
        velocity = _round_like(velocity, state.velocity)
        return _round_like(new, params), SGDState(state.step + 1, velocity)

    return Optimizer(init, update)


def _round_like(tree, like):
    return jax.tree.map(lambda a, b: a.astype(jnp.asarray(b).dtype), tree, like)


def _add_scaled(a, scale, b):
    """a + scale * b, leaf by leaf."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(scale, a.dtype) * b, a, b)


def constant(rate: float | jax.Array) -> Schedule:
    """rate(step) = rate.

    Raises:
        ValueError: rate is negative or not finite. A traced one passes.
    """
    check_nonnegative("constant", "rate", rate)
    return lambda step: rate


def cosine_decay(peak: float | jax.Array, total_steps: int, warmup_steps: int = 0) -> Schedule:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter, 2017, no restarts):

        rate(step) = peak * step / warmup_steps                     while step < warmup_steps
        rate(step) = peak * (1 + cos(pi * progress)) / 2            from then on
        progress   = (step - warmup_steps) / (total_steps - warmup_steps), at most 1

    Raises:
        ValueError: peak is negative or not finite; total_steps is not a positive integer;
            warmup_steps is not an integer from 0 to total_steps - 1. Traced values pass.
    """
    check_nonnegative("cosine_decay", "peak", peak)
    total_steps = check_integer("cosine_decay", "total_steps", total_steps, 1)
    most = math.inf if isinstance(total_steps, jax.core.Tracer) else total_steps - 1
    warmup_steps = check_integer("cosine_decay", "warmup_steps", warmup_steps, 0, most)

    def rate(step):
        step, warmup, total = (jnp.asarray(a, float) for a in (step, warmup_steps, total_steps))
        progress = jnp.minimum(1, (step - warmup) / (total - warmup))
        decay = (1 + jnp.cos(jnp.pi * progress)) / 2
        share = jnp.where(step < warmup, step / jnp.maximum(1, warmup), decay)
        return jnp.asarray(peak, float) * share

    return rate
