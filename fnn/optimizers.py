"""Optimizers, pairs of pure functions, and schedules, functions step -> learning rate."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.layer import (
    check_integer,
    check_nonnegative,
    check_positive,
    check_tree,
    clipping_factor,
    global_norm,
    widen,
)

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
    rate_at = _rate_at("sgd", learning_rate)
    check_nonnegative("sgd", "momentum", momentum)
    check_nonnegative("sgd", "weight_decay", weight_decay)
    has_momentum, has_weight_decay = map(_may_differ_from_zero, (momentum, weight_decay))
    if nesterov and not has_momentum:
        raise ValueError("sgd: expected momentum > 0 with nesterov=True, got 0")

    def init(params):
        velocity = jax.tree.map(jnp.zeros_like, params) if has_momentum else ()
        return SGDState(jnp.zeros((), jnp.int32), velocity)

    def update(grads, state, params):
        check_tree("sgd", "grads", grads, params)
        check_tree("sgd", "velocity", state.velocity, params if has_momentum else ())
        rate = rate_at(state.step)
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


class AdamState(NamedTuple):
    step: jax.Array  # () int32: the updates made so far
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
        learning_rate: a number, a traced array, or a schedule: step -> rate, from step 0.

    Raises:
        ValueError: b1 or b2 is not from 0 to below 1, or another number is negative or not finite
            (traced values pass); a rate that is no scalar; grads, or the state's means, whose
            structure or shapes are not those of params, or that are not floating.
    """
    for what, value in {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}.items():
        check_nonnegative("adam", what, value)
        if what in ("b1", "b2") and not isinstance(value, jax.core.Tracer) and value >= 1:
            raise ValueError(f"adam: expected {what} to be below 1, got {value!r}")
    rate_at = _rate_at("adam", learning_rate)
    has_weight_decay = _may_differ_from_zero(weight_decay)

    def init(params):
        mean, square = (jax.tree.map(lambda p: jnp.zeros_like(widen(p)), params) for _ in range(2))
        return AdamState(jnp.zeros((), jnp.int32), mean, square)

    def update(grads, state, params):
        check_tree("adam", "grads", grads, params)
        check_tree("adam", "mean", state.mean, params)
        check_tree("adam", "square", state.square, params)
        rate, step = rate_at(state.step), state.step + 1

        def moving_mean(decay, means, values):
            return jax.tree.map(
                lambda m, x: jnp.asarray(decay, m.dtype) * m + jnp.asarray(1 - decay, m.dtype) * x,
                means,
                values,
            )

        def new(p, m, v):
            m = m / _one_minus_power(b1, step, m.dtype)
            v = v / _one_minus_power(b2, step, v.dtype)
            direction = m / (jnp.sqrt(v) + jnp.asarray(eps, v.dtype))
            if has_weight_decay:
                direction = direction + jnp.asarray(weight_decay, p.dtype) * p
            return p - jnp.asarray(rate, p.dtype) * direction

        old = jax.tree.map(widen, params)
        grads = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), grads, old)
        mean = moving_mean(b1, state.mean, grads)
        square = moving_mean(b2, state.square, jax.tree.map(jnp.square, grads))
        params = _round_like(jax.tree.map(new, old, mean, square), params)
        return params, AdamState(step, mean, square)

    return Optimizer(init, update)


def _one_minus_power(base, exponent, dtype):
    """1 - base^exponent, for an exponent of at least 1, exact also where base is close to 1."""
    if isinstance(base, jax.core.Tracer):
        log = jnp.log(base)
    else:
        log = math.log(base) if base > 0 else -math.inf
    return -jnp.expm1(exponent.astype(dtype) * jnp.asarray(log, dtype))


def clip_by_global_norm(optimizer: Optimizer, max_norm: float | jax.Array) -> Optimizer:
    """The optimizer, given grads * min(1, max_norm / norm), norm that of all grads together.

    norm = sqrt(sum of grad^2) over every element of every leaf. Pascanu et al., 2013. The state
    is the optimizer's.

    Raises:
        ValueError: max_norm is not a finite number above 0 (a traced one passes).
    """
    check_positive("clip_by_global_norm", "max_norm", max_norm)

    def update(grads, state, params):
        check_tree("clip_by_global_norm", "grads", grads, params)
        factor = clipping_factor(global_norm(grads), max_norm)
        scaled = jax.tree.map(lambda g: g * factor.astype(g.dtype), jax.tree.map(widen, grads))
        return optimizer.update(_round_like(scaled, grads), state, params)

    return Optimizer(optimizer.init, update)


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


def _may_differ_from_zero(factor):
    return isinstance(factor, jax.core.Tracer) or factor != 0


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


def exponential_decay(
    rate: float | jax.Array, decay_steps: int | jax.Array, decay_rate: float | jax.Array
) -> Schedule:
    """rate(step) = rate * decay_rate^(step / decay_steps).

    Raises:
        ValueError: rate or decay_rate is negative or not finite; decay_steps is not a positive
            integer. Traced values pass.
    """
    check_nonnegative("exponential_decay", "rate", rate)
    check_nonnegative("exponential_decay", "decay_rate", decay_rate)
    decay_steps = check_integer("exponential_decay", "decay_steps", decay_steps, 1)

    def rate_at(step):
        start, step, steps, base = (
            jnp.asarray(a, float) for a in (rate, step, decay_steps, decay_rate)
        )
        return start * base ** (step / steps)

    return rate_at


def piecewise_constant(boundaries: Sequence[int], values: Sequence[float] | jax.Array) -> Schedule:
    """rate(step) = values[i], where i boundaries are not above the step.

    values[0] holds before step boundaries[0], and values[-1] from step boundaries[-1] on.

    Raises:
        ValueError: boundaries are not integers >= 0 in increasing order; values are not one more
            than they, or one of them is negative or not finite (traced values pass).
    """
    name = "piecewise_constant"
    boundaries = [check_integer(name, "each boundary", boundary, 0) for boundary in boundaries]
    if any(later <= earlier for earlier, later in pairwise(boundaries)):
        raise ValueError(f"{name}: expected boundaries in increasing order, got {boundaries}")
    if len(values) != len(boundaries) + 1:
        raise ValueError(
            f"{name}: expected {len(boundaries) + 1} values, one more than boundaries, "
            f"got {len(values)}"
        )
    for value in values:
        check_nonnegative(name, "each value", value)

    def rate_at(step):
        step = jnp.asarray(step, int)
        passed = jnp.searchsorted(jnp.array(boundaries, int), step, side="right")
        return jnp.stack([jnp.asarray(value, float) for value in values])[passed]

    return rate_at
