"""Training: loss and gradients by the hand-written passes, and the training step."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fnn._checks import (
    as_array,
    check_array,
    check_choice,
    check_integer,
    check_key,
    have_same_shapes,
)
from fnn._numerics import accumulation_dtype, upcast
from fnn.layer import Layer, check_is_layer, name_of_first
from fnn.losses import Loss, check_is_loss
from fnn.optimizers import Optimizer, check_is_optimizer
from fnn.sharding import sharded_axes


class TrainState(NamedTuple):
    """The parameters and the optimizer's state: what a training step maps to its successor."""

    params: Any
    opt_state: Any


def loss_and_grads(model: Layer, loss: Loss) -> Callable[..., tuple[jax.Array, Any]]:
    """f(params, x, target, key=None) -> (loss value, grads), by the hand-written passes.

    The counterpart of jax.value_and_grad: grads has the structure, shapes and dtypes of params.
    f is not compiled: jax.jit(f) is.

    Shapes: x as the model accepts, target as the loss accepts for the model's output, value ().

    Raises:
        ValueError: `model` is not a Layer; `loss` is not a Loss, or its value not of shape ().

    For y = 3 * 2 the loss is (6 - 5)^2. Its derivative by W is 2 (6 - 5) * 2:

        >>> f = fnn.loss_and_grads(fnn.Linear(1, 1, bias=False), fnn.MSELoss())
        >>> value, grads = f({"W": jnp.array([[3.0]])}, jnp.array([[2.0]]), jnp.array([[5.0]]))
        >>> print(value, grads["W"])
        1.0 [[4.]]
    """
    check_is_layer("loss_and_grads", model)
    check_is_loss("loss_and_grads", loss)

    def evaluate(params, x, target, key=None):
        prediction, residuals = model.forward(params, x, key)
        value, loss_residuals = loss.forward(prediction, target)
        check_value("loss_and_grads", value)
        dy = loss.backward(loss_residuals)
        dy = check_array("loss_and_grads", "d_prediction", dy, jnp.shape(prediction))
        grads, _ = model.backward(params, residuals, dy)
        return value, grads

    return evaluate


def accumulate_gradients(
    loss_and_grads_fn: Callable[..., tuple[jax.Array, Any]],
    num_microbatches: int,
    *,
    reduction: str = "mean",
) -> Callable[..., tuple[jax.Array, Any]]:
    """f(params, x, target, key=None) -> (loss value, grads), computed part by part.

    A scan over num_microbatches parts adds up their values and grads, 16-bit ones in float32. The
    result is that of loss_and_grads_fn for the whole batch, up to rounding, with the memory of one
    part. Part i has the examples i, i + num_microbatches, ..., and draws from fold_in(key, i). The
    parts interleave, so that on a mesh each device splits only its own examples.

    Shapes: x (batch, ...), target (batch, ...).

    Args:
        loss_and_grads_fn: what loss_and_grads returns, or any function of that signature, such as
            jax.value_and_grad gives. It is called without a key if key is None.
        reduction: "mean" for a loss that averages over the examples, "sum" for one that adds.

    Raises:
        ValueError: num_microbatches is not a positive integer, or does not divide the number of
            examples; an unknown reduction; x and target differ in the number of examples; the
            value is not of shape (), or the grads have another structure or shapes than params.

    This step on 80 examples holds the residuals of 10 of them at a time:

        >>> model, loss, optimizer = fnn.Linear(2, 2), fnn.CrossEntropyLoss(), fnn.sgd(0.1)
        >>> evaluate = fnn.accumulate_gradients(fnn.loss_and_grads(model, loss), num_microbatches=8)
        >>> @jax.jit
        ... def step(state, x, target):
        ...     value, grads = evaluate(state.params, x, target)
        ...     update = optimizer.update(grads, state.opt_state, state.params)
        ...     return fnn.TrainState(*update), value
        >>> state = fnn.init_train_state(model, optimizer, jax.random.key(0))
        >>> state, value = step(state, *fnn.sample_disk(jax.random.key(1), 80))
        >>> print(f"{value:.3f}")
        0.779
    """
    count = check_integer("accumulate_gradients", "num_microbatches", num_microbatches, 1)
    check_choice("accumulate_gradients", "reduction", reduction, ("mean", "sum"))
    if not callable(loss_and_grads_fn):
        got = f"{loss_and_grads_fn!r:.200}"
        raise ValueError(f"accumulate_gradients: expected a function, got {got}")

    def evaluate(params, x, target, key=None):
        x, target = (as_array("accumulate_gradients", *a) for a in (("x", x), ("target", target)))
        num_examples = count_examples("accumulate_gradients", x, target)
        if num_examples % count:
            raise ValueError(
                f"accumulate_gradients: expected a number of examples that {count} divides, "
                f"got {num_examples}"
            )
        parts = [
            jnp.reshape(a, (num_examples // count, count, *jnp.shape(a)[1:])) for a in (x, target)
        ]

        def evaluate_part(index):
            part = [jax.lax.dynamic_index_in_dim(a, index, 1, keepdims=False) for a in parts]
            part_key = () if key is None else (jax.random.fold_in(key, index),)
            return loss_and_grads_fn(params, *part, *part_key)

        def add_part(total, index):
            return jax.tree.map(lambda a, b: a + upcast(b), total, evaluate_part(index)), None

        like = jax.eval_shape(evaluate_part, 0)
        check_value("accumulate_gradients", like[0])
        expected, got = (jax.tree.map(jnp.shape, tree) for tree in (params, like[1]))
        if not have_same_shapes(like[1], params):
            raise ValueError(
                f"accumulate_gradients: expected grads of shapes {expected}, got {got}"
            )
        zeros = jax.tree.map(lambda a: jnp.zeros_like(a, accumulation_dtype(a.dtype)), like)
        total, _ = jax.lax.scan(add_part, zeros, jnp.arange(count))
        divisor = count if reduction == "mean" else 1
        return jax.tree.map(lambda a, b: (a / divisor).astype(b.dtype), total, like)

    return evaluate


def predict(model: Layer, params: Any, x: jax.Array, *, batch_size: int | None = None) -> jax.Array:
    """The model's output y for x, in evaluation mode (no key).

    To compile it, give it the model first: jax.jit(functools.partial(fnn.predict, model)).

    Shapes: x and y those of the model.

    Args:
        batch_size: how many examples (the first axis of x) to evaluate at a time, which bounds the
            memory. By default all at once. On a mesh each device evaluates its own examples.

    Raises:
        ValueError: batch_size is not a positive integer, or x has no axis to divide.
    """
    check_is_layer("predict", model)
    if batch_size is None:
        return model.forward(params, x)[0]
    batch_size = check_integer("predict", "batch_size", batch_size, 1)
    x = as_array("predict", "x", x)
    if x.ndim == 0:
        raise ValueError("predict: expected x of shape (n, ...) with batch_size, got ()")

    def in_batches(params, x):
        num_full = len(x) // batch_size
        full, rest = jnp.split(x, [num_full * batch_size])
        ys = []
        if num_full:
            batches = full.reshape(num_full, batch_size, *x.shape[1:])
            y = jax.lax.map(lambda batch: model.forward(params, batch)[0], batches)
            ys.append(y.reshape(num_full * batch_size, *y.shape[2:]))
        if len(rest) or not num_full:
            ys.append(model.forward(params, rest)[0])
        return jnp.concatenate(ys)

    mesh, axes, num_shards = sharded_axes(x)
    if axes and len(x) % num_shards == 0:
        specs = PartitionSpec(), PartitionSpec(axes)
        in_batches = jax.shard_map(in_batches, mesh=mesh, in_specs=specs, out_specs=specs[1])
    return in_batches(params, x)


def init_train_state(model: Layer, optimizer: Optimizer, key: jax.Array) -> TrainState:
    """Fresh parameters drawn with `key`, and the optimizer's state for them.

    Raises:
        ValueError: `model` is not a Layer, `optimizer` not an Optimizer, or `key` not a key.
    """
    check_is_layer("init_train_state", model)
    check_is_optimizer("init_train_state", optimizer)
    check_key("init_train_state", key)
    # Strong types, as a step returns them: for weak ones JAX would compile the step twice.
    params = jax.tree.map(_strongly_typed, model.init(key))
    return TrainState(params, optimizer.init(params))


def make_train_step(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    donate: bool = False,
    report: Callable[[Any, TrainState], Any] | None = None,
) -> Callable[..., tuple]:
    """A jitted f(state, x, target, key=None) -> (state, loss value before the update).

    Shapes: as in loss_and_grads; x and target are the batch.

    A call returns before the step has run. Do not write into a NumPy array that you passed until
    the results are there: JAX may still read it. JAX wraps NumPy's 64-bit integers to 32 bits, so
    that the label 2**32 + 3 becomes 3.

    Args:
        donate: give the given state's buffers to the new one. This saves the memory of one state;
            the given state cannot be used again.
        report: (grads, state before the update) -> a pytree of arrays, such as the norms of the
            grads. f then returns (state, loss value, what report returned).

    Raises:
        ValueError: `model` is not a Layer, `loss` not a Loss, or `optimizer` not an Optimizer; no
            key for a model that uses one, such as one with Dropout or BatchNorm.
    """
    evaluate = loss_and_grads(model, loss)
    check_is_optimizer("make_train_step", optimizer)

    def step(state, x, target, key=None):
        check_step_key("make_train_step", model, key)
        if not (hasattr(state, "params") and hasattr(state, "opt_state")):
            got = type(state).__name__
            raise ValueError(f"make_train_step: expected a TrainState first, got a {got}")
        value, grads = evaluate(state.params, x, target, key)
        reported = () if report is None else (report(grads, state),)
        params, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(params, opt_state), value, *reported

    return jax.jit(step, donate_argnums=0 if donate else ())


def check_step_key(name: str, model: Layer, key: Any) -> None:
    """Check the key of a training step. A model that uses one must have it."""
    if key is not None:
        check_key(name, key)
    elif model.uses_key:
        layer = name_of_first(model, "uses_key")
        expected = f"a key, another one for each call, because {layer} needs it in training"
        raise ValueError(f"{name}: expected {expected}, got None")


def count_examples(name: str, x: Any, target: Any) -> int:
    """The length of the first axis of x and target.

    Raises:
        ValueError: they are no arrays, differ in that length, or have no example.
    """
    for what, array in (("x", x), ("target", target)):
        if not hasattr(array, "shape"):
            raise ValueError(f"{name}: expected {what} to be an array, got {type(array).__name__}")
    lengths = x.shape[:1], target.shape[:1]
    if () in lengths or (0,) in lengths or lengths[0] != lengths[1]:
        raise ValueError(
            f"{name}: expected x and target with the same number of examples, at least one, on the "
            f"first axis, got shapes {x.shape} and {target.shape}"
        )
    return x.shape[0]


def check_value(name: str, value: Any) -> None:
    """Raise ValueError unless the loss value has the shape ()."""
    shape = None if value is None else jnp.shape(value)
    if shape != ():
        expected = "a loss value of shape (), such as a sum or a mean"
        raise ValueError(f"{name}: expected {expected}, got {shape}")


def _strongly_typed(leaf):
    """The leaf as an array that is not weakly typed."""
    if isinstance(leaf, jax.Array) and not leaf.weak_type:
        return leaf
    leaf = copy.copy(leaf)  # because JAX may keep a view of NumPy's memory
    return jnp.asarray(leaf, jnp.asarray(leaf).dtype)
