"""Optimizers, pairs of pure functions, and schedules, functions step -> learning rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.layer import accumulation_dtype, check_integer, check_nonnegative, check_tree

Schedule = Callable[[Any], Any]


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

    Arithmetic runs in the parameter's dtype, 16-bit parameters in float32.

    Args:
        learning_rate: a number, a traced array, or a schedule: step -> rate, from step 0.

    Raises:
        ValueError: a negative or non-finite number (traced values pass); nesterov without
            momentum; grads whose structure or shapes are not those of params.
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
        shapes = jax.tree.map(jnp.shape, params)
        check_tree("sgd", "grads", grads, shapes)
        check_tree("sgd", "velocity", state.velocity, shapes if has_momentum else ())
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        if jnp.shape(rate) != ():
            raise ValueError(f"sgd: expected a learning rate of shape (), got {jnp.shape(rate)}")
        old, direction, velocity = _widen((params, grads, state.velocity))
        if has_weight_decay:
            direction = _add_scaled(direction, weight_decay, old)
        if has_momentum:
            velocity = _add_scaled(direction, momentum, velocity)
            direction = _add_scaled(direction, momentum, velocity) if nesterov else velocity
        new = _add_scaled(old, -rate, direction)
        velocity = _round_like(velocity, state.velocity)
        return _round_like(new, params), SGDState(state.step + 1, velocity)

    return Optimizer(init, update)


def _widen(tree):
    """16-bit leaves as float32, the others as they are."""
    return jax.tree.map(lambda a: a.astype(accumulation_dtype(a.dtype)), tree)


def _round_like(tree, like):
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


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
        ValueError: peak is negative or not finite (a traced one passes); total_steps is not a
            positive integer; warmup_steps is not an integer from 0 to total_steps - 1.
    """
    check_nonnegative("cosine_decay", "peak", peak)
    total_steps = check_integer("cosine_decay", "total_steps", total_steps, 1)
    warmup_steps = check_integer("cosine_decay", "warmup_steps", warmup_steps, 0, total_steps - 1)

    def rate(step):
        step = jnp.asarray(step, float)
        progress = jnp.minimum(1, (step - warmup_steps) / float(total_steps - warmup_steps))
        decay = (1 + jnp.cos(jnp.pi * progress)) / 2
        warmup = step / max(1, warmup_steps)
        return jnp.asarray(peak, float) * jnp.where(step < warmup_steps, warmup, decay)

    return rate
