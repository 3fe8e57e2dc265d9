"""clipped_loss_and_grads: the mean of gradients of which none is longer than max_norm."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import as_array, check_positive
from fnn._numerics import clipping_factor, upcast
from fnn.layer import Layer, check_is_layer
from fnn.losses import Loss, check_is_loss
from fnn.statistics import Rule, squared_norms, summed_like_squared_norms
from fnn.training import check_value, count_examples


def clipped_loss_and_grads(
    model: Layer,
    loss: Loss,
    max_norm: float | jax.Array,
    rules: Mapping[str, Rule] | None = None,
) -> Callable[..., tuple[jax.Array, Any, jax.Array]]:
    """f(params, x, target, key=None) -> (value, grads, norms); each example's gradient is clipped.

        grads = mean over i of g_i min(1, max_norm / |g_i|),    norms[i] = |g_i|

    g_i is the gradient of example i's own loss: that of loss for a batch of this example alone. So
    it is not divided by the number of examples, whatever the reduction. The value is that of the
    whole batch.

    There are two backward passes over one forward pass: the first gives the norms, and the second
    the gradients of weighted examples. So no example's gradient is formed where squared_norms forms
    none. Li et al., 2022; Lee and Kifer, 2021.

    The second pass is exact because backward is linear in dy. A clip_gradient inside is not linear,
    and is refused. A backward of your own has to be linear too. A norm beyond the square root of
    float32's range, 1e19, becomes inf, and its example has no weight.

    Shapes: x (batch, ...), target (batch, ...), value (), norms (batch,).

    Args:
        rules: as for squared_norms.

    Raises:
        ValueError: `model` is not a Layer, its examples depend on each other, or it has a
            clip_gradient inside; `loss` is not a Loss, or its value not of shape (); max_norm is
            not a finite number above 0 (a traced one passes); x and target differ in the number of
            examples.

    DP-SGD is a step with these gradients plus noise: Abadi et al., 2016,
    https://arxiv.org/abs/1607.00133. The noise's standard deviation is max_norm, divided by the
    number of examples, times a noise multiplier, here 1. fnn does no privacy accounting. These are
    the losses of the first step and of the last of 20 more:

        >>> from jax.flatten_util import ravel_pytree
        >>> x, labels = fnn.sample_disk(jax.random.key(0), 100)
        >>> model, optimizer, max_norm = fnn.Linear(2, 2), fnn.sgd(0.5), 1.0
        >>> evaluate = fnn.clipped_loss_and_grads(model, fnn.CrossEntropyLoss(), max_norm)
        >>> @jax.jit
        ... def private_step(state, key):
        ...     value, grads, _ = evaluate(state.params, x, labels)
        ...     flat, unravel = ravel_pytree(grads)
        ...     noise = max_norm / len(x) * jax.random.normal(key, flat.shape)
        ...     update = optimizer.update(unravel(flat + noise), state.opt_state, state.params)
        ...     return fnn.TrainState(*update), value
        >>> state = fnn.init_train_state(model, optimizer, jax.random.key(1))
        >>> state, first = private_step(state, jax.random.key(2))
        >>> for number in range(3, 23):
        ...     state, value = private_step(state, jax.random.key(number))
        >>> print(f"{first:.3f} {value:.3f}")
        0.998 0.692
    """
    check_is_layer("clipped_loss_and_grads", model)
    check_is_loss("clipped_loss_and_grads", loss)
    if _holds(model, "clip_gradient"):
        expected = "expected a model whose backward is linear in dy"
        raise ValueError(f"clipped_loss_and_grads: {expected}, got clip_gradient")
    check_positive("clipped_loss_and_grads", "max_norm", max_norm)
    measured, summed = squared_norms(model, rules), summed_like_squared_norms(model, rules)

    def own_derivative(prediction, target):
        _, residuals = loss.forward(prediction[None], target[None])
        return loss.backward(residuals)[0]

    def evaluate(params, x, target, key=None):
        x, target = (
            as_array("clipped_loss_and_grads", *pair) for pair in (("x", x), ("target", target))
        )
        num_examples = count_examples("clipped_loss_and_grads", x, target)
        prediction, residuals = measured.forward(params, x, key)
        value, _ = loss.forward(prediction, target)
        check_value("clipped_loss_and_grads", value)
        dy = jax.vmap(own_derivative)(prediction, target)
        squares, _ = measured.backward(params, residuals, dy)
        # In a repeat the leaves are (n, batch).
        by_leaf = [leaf.reshape(-1, num_examples) for leaf in jax.tree.leaves(squares)]
        norms = jnp.sqrt(sum(jnp.sum(leaf, axis=0) for leaf in by_leaf))
        factors = clipping_factor(norms, max_norm)
        weighted = jax.vmap(lambda dy, factor: (upcast(dy) * factor).astype(dy.dtype))(dy, factors)
        # Not before: 16 bits may not hold a small dy divided by the number of examples.
        sums, _ = summed.backward(params, residuals, weighted)
        grads = jax.tree.map(lambda g: (upcast(g) / num_examples).astype(g.dtype), sums)
        return value, grads, norms

    return evaluate


def _holds(layer, name):
    """Whether a layer of that name is inside."""
    return layer.name == name or any(_holds(inner, name) for inner in layer.layers)
