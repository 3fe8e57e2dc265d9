"""Schedules: functions step -> learning rate, for the argument learning_rate of an optimizer.

Step and rate are scalars of shape (). The first step is 0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_integer, check_nonnegative, check_positive
from fnn._numerics import log_of

Schedule = Callable[[Any], Any]  # step -> rate, possibly traced


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

    num_decaying = total_steps - warmup_steps

    def rate(step):
        step, warmup = jnp.asarray(step, float), jnp.asarray(warmup_steps, float)
        progress = jnp.clip((step - warmup) / jnp.asarray(num_decaying, float), 0, 1)
        decay = (1 + jnp.cos(jnp.pi * progress)) / 2
        share = jnp.where(step < warmup, step / jnp.maximum(1, warmup), decay)
        return jnp.asarray(peak, float) * share

    return rate


def linear_decay(
    peak: float | jax.Array, total_steps: int, end: float | jax.Array = 0.0
) -> Schedule:
    """rate(step) = peak + (end - peak) * progress, with progress = step / total_steps, at most 1.

    It is torch.optim.lr_scheduler.LinearLR with the factors 1 and end / peak.

    Raises:
        ValueError: peak or end is negative or not finite; total_steps is not a positive integer.
            Traced values pass.
    """
    check_nonnegative("linear_decay", "peak", peak)
    check_nonnegative("linear_decay", "end", end)
    total_steps = check_integer("linear_decay", "total_steps", total_steps, 1)

    def rate(step):
        step, total, first, last = (jnp.asarray(a, float) for a in (step, total_steps, peak, end))
        progress = jnp.clip(step / total, 0, 1)
        return (1 - progress) * first + progress * last

    return rate


def one_cycle(
    peak: float | jax.Array,
    total_steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Half a cosine up to the peak, and half a cosine down (Smith and Topin, 2018):

        start = peak / div_factor         at step 0, if pct_start * total_steps > 1
        peak                              at step pct_start * total_steps - 1
        start / final_div_factor          from step total_steps - 1 on

    It is torch.optim.lr_scheduler.OneCycleLR with its defaults. Unlike there, the momentum does not
    change.

    Raises:
        ValueError: peak is negative or not finite; total_steps is not a positive integer; pct_start
            is not from 0 to 1; a factor is not a finite number above 0. Traced values pass.
    """
    check_nonnegative("one_cycle", "peak", peak)
    total_steps = check_integer("one_cycle", "total_steps", total_steps, 1)
    check_nonnegative("one_cycle", "pct_start", pct_start)
    if not isinstance(pct_start, jax.core.Tracer) and pct_start > 1:
        raise ValueError(f"one_cycle: expected pct_start to be at most 1, got {pct_start!r}")
    check_positive("one_cycle", "div_factor", div_factor)
    check_positive("one_cycle", "final_div_factor", final_div_factor)

    def rate(step):
        step, top, total = (jnp.asarray(a, float) for a in (step, peak, total_steps))
        start = top / jnp.asarray(div_factor, float)
        end = start / jnp.asarray(final_div_factor, float)
        turn = jnp.asarray(pct_start, float) * total - 1
        is_rising = step <= turn
        begin, length = jnp.where(is_rising, 0, turn), jnp.where(is_rising, turn, total - 1 - turn)
        # A phase of no length is at its end.
        progress = jnp.where(length > 0, (step - begin) / jnp.where(length > 0, length, 1), 1)
        first, last = jnp.where(is_rising, start, top), jnp.where(is_rising, top, end)
        return last + (first - last) * (1 + jnp.cos(jnp.pi * jnp.minimum(progress, 1))) / 2

    return rate


def warmup(schedule: float | jax.Array | Schedule, steps: int) -> Schedule:
    """Linear warm-up from 0, and then the schedule, or a number, from its first step on:

        rate(step) = schedule(0) * step / steps         while step < steps
        rate(step) = schedule(step - steps)             from then on

    The schedule's own steps are counted after the warm-up. The warmup_steps of cosine_decay count
    in its total_steps: cosine_decay(peak, n, k) is warmup(cosine_decay(peak, n - k), k).
    torch.optim.lr_scheduler.LinearLR starts from a third of the rate by default.

    Raises:
        ValueError: the schedule is a number that is negative or not finite; steps is a negative
            integer or not one. Traced values pass.
    """
    steps = check_integer("warmup", "steps", steps, 0)
    if not callable(schedule):
        check_nonnegative("warmup", "schedule", schedule)
        schedule = constant(schedule)

    def rate(step):
        after = jnp.asarray(step, int) - jnp.asarray(steps, int)
        share = jnp.asarray(step, float) / jnp.maximum(1, jnp.asarray(steps, float))
        after_warmup = jnp.asarray(schedule(jnp.maximum(after, 0)), float)
        return jnp.where(after < 0, share, 1) * after_warmup

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

    log = log_of(decay_rate)

    def rate_at(step):
        start, step, steps = (jnp.asarray(a, float) for a in (rate, step, decay_steps))
        # At step 0 the power is 1. The inner where avoids 0 * log(0).
        exponent = jnp.where(step == 0, 1, step) / steps * jnp.asarray(log, float)
        # Two factors, of which neither overflows where their product with the rate does not.
        root = jnp.exp(jnp.where(step == 0, 0, exponent) / 2)
        return jnp.where(start == 0, 0, start * root * root)

    return rate_at


def piecewise_constant(boundaries: Sequence[int], values: Sequence[float] | jax.Array) -> Schedule:
    """rate(step) = values[number of boundaries <= step].

    values[0] holds before step boundaries[0], and values[-1] from step boundaries[-1] on.

    Raises:
        ValueError: boundaries are not integers from 0 to 2**31 - 1 in increasing order, or are
            traced; len(values) is not len(boundaries) + 1; a value is negative or not finite.
    """
    name = "piecewise_constant"
    boundaries = [check_integer(name, "each boundary", b, 0, 2**31 - 1) for b in boundaries]
    if any(isinstance(boundary, jax.core.Tracer) for boundary in boundaries):
        raise ValueError(f"{name}: expected boundaries with values, got traced ones")
    if any(later <= earlier for earlier, later in pairwise(boundaries)):
        raise ValueError(f"{name}: expected boundaries in increasing order, got {boundaries}")
    values = [*values]
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
