"""Optimizers made of other optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn._checks import check_nonnegative, check_positive, check_tree, check_type
from fnn._numerics import clipping_factor, global_norm, upcast
from fnn.optimizers._frame import Optimizer, check_decay, check_is_optimizer, decay_of, scaled


def clip_by_global_norm(optimizer: Optimizer, max_norm: float | jax.Array) -> Optimizer:
    """The optimizer that gets grads * min(1, max_norm / norm) in place of grads.

    norm = sqrt(sum of grad^2) over every element of every leaf. Pascanu et al., 2013. The state is
    the inner optimizer's. torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.

    Raises:
        ValueError: `optimizer` is not an Optimizer; max_norm is not a finite number above 0 (a
            traced one passes).
    """
    check_is_optimizer("clip_by_global_norm", optimizer)
    check_positive("clip_by_global_norm", "max_norm", max_norm)

    def update(grads, state, params):
        check_tree("clip_by_global_norm", "grads", grads, params)
        factor = clipping_factor(global_norm(grads), max_norm)

        def clip(g):
            return scaled(factor, upcast(g)).astype(jnp.asarray(g).dtype)

        return optimizer.update(jax.tree.map(clip, grads), state, params)

    return Optimizer(optimizer.init, update)


def with_l2(optimizer: Optimizer, factor: float | jax.Array) -> Optimizer:
    """The optimizer that gets grads + factor * params in place of grads.

    That is the gradient of the loss plus factor / 2 * sum of params^2, and the weight_decay of
    torch.optim.Adam and torch.optim.Adagrad. The weight_decay of fnn.adam acts beside the gradient
    instead. The sum is in float32 for 16-bit leaves. The state is the inner optimizer's.

    Leaves named "mean" or "var" in a dict have no penalty: they are BatchNorm's statistics.

    Raises:
        ValueError: `optimizer` is not an Optimizer; factor is negative or not finite (a traced one
            passes); grads do not match params.
    """
    check_is_optimizer("with_l2", optimizer)
    check_nonnegative("with_l2", "factor", factor)

    def update(grads, state, params):
        check_tree("with_l2", "params", params, params)
        check_tree("with_l2", "grads", grads, params)

        def add(path, g, p):
            wide = upcast(p)
            decay = decay_of(path, factor, wide)
            return g if decay is None else jnp.asarray(g, wide.dtype) + decay

        return optimizer.update(jax.tree.map_with_path(add, grads, params), state, params)

    return Optimizer(optimizer.init, update)


class OnlyState(NamedTuple):
    chosen: Any  # the state for the chosen leaves, of a tree with None in place of the others
    others: Any  # the state for the other leaves; () where they are left alone


def only(
    optimizer: Optimizer,
    where: Callable[[str, jax.ShapeDtypeStruct], bool] | Any,
    otherwise: Optimizer | None = None,
) -> Optimizer:
    """`optimizer` updates the leaves of params that `where` chooses, and `otherwise` the others.

    Without `otherwise` the other leaves stay as they are. Each optimizer gets a tree like params
    with None in place of what is not its own, so its state has nothing for that. Weight decay for
    weights, and not for biases and scales:

        fnn.only(
            fnn.adam(1e-3, weight_decay=0.01),
            where=lambda path, leaf: path.endswith("W"),
            otherwise=fnn.adam(1e-3),
        )

    Go by names rather than by leaf.ndim: in a repeat each leaf has one axis more. A norm such as
    clip_by_global_norm's is over all leaves outside of `only`, and over the optimizer's own leaves
    inside.

    Args:
        where: a function (path, leaf) -> bool, with a path such as "2.W" and the leaf's shape and
            dtype, a jax.ShapeDtypeStruct; or a tree of bools like params.

    Raises:
        ValueError: an optimizer is not an Optimizer; `where` is a tree of another structure than
            params, or gives something else than a bool; grads do not match params.
    """
    check_is_optimizer("only", optimizer)
    if otherwise is not None:
        check_is_optimizer("only", otherwise)

    def divide(params, *trees):
        """Of each tree the chosen leaves, and the others."""
        choice = _choose(where, params)

        def take(side, tree):
            return jax.tree.map(lambda a, is_chosen: a if is_chosen == side else None, tree, choice)

        return [(take(True, tree), take(False, tree)) for tree in trees]

    def init(params):
        check_tree("only", "params", params, params)
        ((chosen, others),) = divide(params, params)
        return OnlyState(optimizer.init(chosen), otherwise.init(others) if otherwise else ())

    def update(grads, state, params):
        check_type("only", state, OnlyState, "a state of only")
        check_tree("only", "params", params, params)
        check_tree("only", "grads", grads, params)
        (chosen, others), (chosen_grads, other_grads) = divide(params, params, grads)
        chosen, chosen_state = optimizer.update(chosen_grads, state.chosen, chosen)
        other_state = state.others
        if otherwise:
            others, other_state = otherwise.update(other_grads, state.others, others)
        params = jax.tree.map(
            lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda leaf: leaf is None
        )
        return params, OnlyState(chosen_state, other_state)

    return Optimizer(init, update)


def _choose(where, params):
    """The tree of bools that `where` gives for params."""
    given = () if callable(where) else (where,)
    if given and jax.tree.structure(where) != jax.tree.structure(params):
        expected, got = jax.tree.structure(params), jax.tree.structure(where)
        raise ValueError(f"only: expected where of the structure {expected}, got {got}")

    def choose(path, leaf, *answers):
        name, leaf = jax.tree_util.keystr(path, simple=True, separator="."), jnp.asarray(leaf)
        (answer,) = answers or (where(name, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)),)
        is_bool = isinstance(answer, bool) or getattr(answer, "dtype", None) == jnp.bool
        if not is_bool or jnp.ndim(answer) or isinstance(answer, jax.core.Tracer):
            raise ValueError(
                f"only: expected where to give a bool for {name!r}, got {answer!r:.200}"
            )
        return bool(answer)

    return jax.tree.map_with_path(choose, params, *given)


class MovingAverageState(NamedTuple):
    inner: Any  # the inner optimizer's state
    average: Any  # of params, like params, in float32 for 16-bit ones


def with_moving_average(optimizer: Optimizer, decay: float | jax.Array) -> Optimizer:
    """The optimizer whose state holds an exponential moving average of params too:

        average = decay * average + (1 - decay) * params        after each update

    It starts at the params that init gets. So there is no bias towards 0 to correct, and no count
    of steps. torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(decay) gives the same if
    its update_parameters is called once before the training. Polyak and Juditsky, 1992.

    The average is in the state of training, for evaluation and for a checkpoint:

        state = fnn.init_train_state(model, fnn.with_moving_average(fnn.adam(1e-3), 0.999), key)
        ...
        scores = fnn.predict(model, state.opt_state.average, x)

    For 16-bit params it is in float32. BatchNorm's statistics are averaged as all leaves are;
    fnn.calibrate computes those that belong to the average. fnn.fit evaluates and returns params,
    and not the average.

    Raises:
        ValueError: `optimizer` is not an Optimizer; decay is not in [0, 1) (a traced one passes);
            the average does not match params.
    """
    check_is_optimizer("with_moving_average", optimizer)
    check_decay("with_moving_average", "decay", decay)

    def init(params):
        check_tree("with_moving_average", "params", params, params)
        # Copies, because a donated state must not have the same array at two places.
        average = jax.tree.map(lambda p: jnp.array(upcast(p)), params)
        return MovingAverageState(optimizer.init(params), average)

    def update(grads, state, params):
        check_type(
            "with_moving_average", state, MovingAverageState, "a state of with_moving_average"
        )
        check_tree("with_moving_average", "average", state.average, params)
        params, inner = optimizer.update(grads, state.inner, params)

        def move(average, p):
            new = jnp.asarray(p, average.dtype)
            return average + jnp.asarray(1 - decay, average.dtype) * (new - average)

        return params, MovingAverageState(inner, jax.tree.map(move, state.average, params))

    return Optimizer(init, update)
