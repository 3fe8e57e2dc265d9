"""What every optimizer is made with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_nonnegative, check_tree, check_type
from fnn._numerics import upcast
from fnn.layer import is_statistic
from fnn.schedules import Schedule

LAST_STEP = 2**31 - 1  # the largest int32; a step counter that reaches it stays there


class Optimizer(NamedTuple):
    """The rule by which parameters change.

    init:   (params) -> state.
    update: (grads, state, params) -> (params, state).
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


def check_is_optimizer(name: str, optimizer: Any) -> None:
    """Raise ValueError unless `optimizer` is an Optimizer."""
    check_type(name, optimizer, Optimizer, "an Optimizer such as fnn.sgd(0.1)")


def make_optimizer(
    name: str,
    learning_rate: float | jax.Array | Schedule,
    weight_decay: float,
    state_type: type,
    slots: tuple[Callable[[Any], jax.Array] | None, ...],
    rule: Callable[..., tuple[jax.Array | None, ...]],
) -> Optimizer:
    """Build an Optimizer from rule(rate, step, p, g, decay, *slots) -> (p, *slots) for one leaf.

    p, g and the slots come in the accumulation dtype, and the rate in p's. The first step is 1.
    decay is weight_decay * p, or None where nothing decays.

    Args:
        state_type: a NamedTuple of the step and, for each slot, of a tree like params.
        slots: for each, the function that makes its first value from a leaf of params. A slot of
            None is not used: the state has () for it, and the rule gets and returns None.
    """
    rate_at = _rate_at(name, learning_rate)
    check_nonnegative(name, "weight_decay", weight_decay)
    fields = state_type._fields[1:]

    def init(params):
        check_tree(name, "params", params, params)
        # A tree for each: a donated state must not have the same array at two places.
        trees = [jax.tree.map(start, params) if start else () for start in slots]
        return state_type(jnp.zeros((), jnp.int32), *trees)

    def update(grads, state, params):
        check_type(name, state, state_type, f"a state of {name}")
        check_tree(name, "params", params, params)
        check_tree(name, "grads", grads, params)
        for field, start in zip(fields, slots, strict=True):
            check_tree(name, field, getattr(state, field), params if start else ())
        rate, step = rate_at(state.step), _next_step(state.step)

        def update_leaf(path, p, g, *old):
            wide, *wide_old = (None if a is None else upcast(a) for a in (p, *old))
            g, decay = jnp.asarray(g, wide.dtype), decay_of(path, weight_decay, wide)
            new = rule(jnp.asarray(rate, wide.dtype), step, wide, g, decay, *wide_old)
            pairs = zip(new, (p, *old), strict=True)
            return [None if a is None else a.astype(jnp.asarray(b).dtype) for a, b in pairs]

        unused = jax.tree.map(lambda _: None, params)
        old = [tree if start else unused for tree, start in zip(state[1:], slots, strict=True)]
        new = jax.tree.map_with_path(update_leaf, params, grads, *old)

        def column(index):
            return jax.tree.map(lambda _, leaves: leaves[index], params, new)

        trees = [column(index) if start else () for index, start in enumerate(slots, 1)]
        return column(0), state_type(step, *trees)

    return Optimizer(init, update)


def decay_of(path: tuple[Any, ...], weight_decay: float, p: jax.Array) -> jax.Array | None:
    """weight_decay * p for the leaf p at `path`; None where nothing decays.

    The leaves named "mean" or "var" in a dict are BatchNorm's statistics, which no decay may move.
    """
    return None if is_statistic(path) or not is_used(weight_decay) else scaled(weight_decay, p)


def scaled(factor: float | jax.Array, array: jax.Array) -> jax.Array:
    """factor * array, in the array's dtype."""
    return jnp.asarray(factor, array.dtype) * array


def zeros(p: Any) -> jax.Array:
    """Zeros like the leaf p, in float32 for 16 bits."""
    return jnp.zeros_like(upcast(p))


def is_used(factor: float | jax.Array) -> bool:
    """Whether a factor may be other than 0."""
    return isinstance(factor, jax.core.Tracer) or factor != 0


def check_decay(name: str, what: str, value: float | jax.Array) -> None:
    """Check that `value` is a number from 0 to below 1. A traced one passes."""
    check_nonnegative(name, what, value)
    if not isinstance(value, jax.core.Tracer) and value >= 1:
        raise ValueError(f"{name}: expected {what} to be below 1, got {value!r}")


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
