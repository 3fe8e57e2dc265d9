"""Training: the hand-written passes put together, whole or in parts; a step, an epoch."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fnn.layer import Layer, accumulation_dtype, check_integer, widen
from fnn.losses import Loss
from fnn.optimizers import Optimizer
from fnn.sharding import sharded_axes

MOST_BYTES_TO_COPY = 2**24  # shuffled at once; more than that is gathered batch by batch


class TrainState(NamedTuple):
    """What a training step maps to its successor: a pytree."""

    params: Any
    opt_state: Any


def loss_and_grads(model: Layer, loss: Loss) -> Callable[..., tuple[jax.Array, Any]]:
    """f(params, x, target, key=None) -> (loss value, grads), by the hand-written passes.

    The counterpart of jax.value_and_grad: grads has the structure, shapes and dtypes of params.
    Shapes: x what the model takes, target what the loss takes beside its output, value ().
    """

    def evaluate(params, x, target, key=None):
        prediction, residuals = model.forward(params, x, key)
        value, loss_residuals = loss.forward(prediction, target)
        grads, _ = model.backward(params, residuals, loss.backward(loss_residuals))
        return value, grads

    return evaluate


def accumulate_gradients(
    loss_and_grads_fn: Callable[..., tuple[jax.Array, Any]],
    num_microbatches: int,
    *,
    reduction: str = "mean",
) -> Callable[..., tuple[jax.Array, Any]]:
    """f(params, x, target, key=None) -> (loss value, grads), computed part by part.

    The value and grads of loss_and_grads_fn for the whole batch, up to rounding, with the memory
    of one part: a scan over num_microbatches parts adds up theirs, 16-bit ones in float32. Part i
    has the examples i, i + num_microbatches, ..., so that a batch over many devices is divided
    where it is, and draws from fold_in(key, i).

    Shapes: x (batch, ...), target (batch, ...).

    Args:
        loss_and_grads_fn: what loss_and_grads returns, or any function of that signature, such as
            jax.value_and_grad gives; the key is passed on only if there is one.
        reduction: "mean" for a loss that averages over the examples, "sum" for one that adds.

    Raises:
        ValueError: num_microbatches is not a positive integer, or does not divide the number of
            examples; an unknown reduction; x and target differ in the number of examples.
    """
    count = check_integer("accumulate_gradients", "num_microbatches", num_microbatches, 1)
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"accumulate_gradients: expected reduction 'mean' or 'sum', got {reduction!r}"
        )

    def evaluate(params, x, target, key=None):
        x, target = jnp.asarray(x), jnp.asarray(target)
        num_examples = _count_examples("accumulate_gradients", x, target)
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
            return jax.tree.map(lambda a, b: a + widen(b), total, evaluate_part(index)), None

        like = jax.eval_shape(evaluate_part, 0)
        zeros = jax.tree.map(lambda a: jnp.zeros_like(a, accumulation_dtype(a.dtype)), like)
        total, _ = jax.lax.scan(add_part, zeros, jnp.arange(count))
        divisor = count if reduction == "mean" else 1
        return jax.tree.map(lambda a, b: (a / divisor).astype(b.dtype), total, like)

    return evaluate


def predict(model: Layer, params: Any, x: jax.Array, *, batch_size: int | None = None) -> jax.Array:
    """The model's output y for x, of the model's shapes, in evaluation mode (no key).

    Args:
        batch_size: evaluate so many examples of x (n, ...) at a time, which needs less memory.
            Over a mesh each device evaluates its own examples.
    """

    def forward(params, x):
        y, _ = model.forward(params, x)
        return y

    if batch_size is None:
        return forward(params, x)
    batch_size = check_integer("predict", "batch_size", batch_size, 1)

    def by_batches(params, x):
        return jax.lax.map(functools.partial(forward, params), x, batch_size=batch_size)

    mesh, axes = sharded_axes(x)
    if axes and len(x) % math.prod(mesh.shape[axis] for axis in axes) == 0:
        specs = PartitionSpec(), PartitionSpec(axes)
        by_batches = jax.shard_map(by_batches, mesh=mesh, in_specs=specs, out_specs=specs[1])
    return by_batches(params, x)


def init_train_state(model: Layer, optimizer: Optimizer, key: jax.Array) -> TrainState:
    """Fresh parameters drawn with `key`, and the optimizer's state for them."""
    params = model.init(key)
    return TrainState(params, optimizer.init(params))


def make_train_step(
    model: Layer, loss: Loss, optimizer: Optimizer, *, donate: bool = False
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """A jitted f(state, x, target, key=None) -> (state, loss value before the update).

    Shapes: as in loss_and_grads; x and target are the batch.

    Args:
        donate: give the given state's buffers to the new one. The given state cannot be used
            again; big models need the memory of one state less.
    """
    step = _train_step(model, loss, optimizer)
    return jax.jit(step, donate_argnums=0 if donate else ())


def make_train_epoch(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    *,
    shuffle: bool = True,
    donate: bool = False,
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """A jitted f(state, x, target, key) -> (state, loss values): one pass over the examples.

    The epoch is one compiled program, a scan of training steps over minibatches. Where
    batch_size does not divide the number of examples n, the last batch is the smaller rest, so
    that every example is seen once.

    On a data set over a mesh of N devices (see fnn.sharding) a batch is batch_size / N examples of
    each device's own, in an order of their own that each device draws: no example moves, and the
    batches are stratified by device. Without shuffling they are the next ones of each.

    Shapes: x (n, ...), target (n, ...), loss values (ceil(n / batch_size),), one a step.

    Args:
        shuffle: visit the examples in an order drawn with the key, else in the given order.
            Without shuffling the key may be None, which runs the model in evaluation mode.
        donate: as in make_train_step.

    Raises:
        ValueError: batch_size is not a positive integer; no examples; x and target differ in
            the number of examples; no key to shuffle with; N does not divide batch_size or n.
    """
    batch_size = check_integer("make_train_epoch", "batch_size", batch_size, 1)
    step = _train_step(model, loss, optimizer)

    def epoch(state, x, target, key=None):
        num_examples = _count_examples("make_train_epoch", x, target)
        step_key = None
        if key is not None:
            shuffle_key, step_key = jax.random.split(key)
        x, target = jnp.asarray(x), jnp.asarray(target)
        if shuffle and key is None:
            raise ValueError("make_train_epoch: expected a key to shuffle with, got None")

        num_full = num_examples // batch_size
        axes, num_shards, on_shards = _shards(x, num_examples, batch_size)
        copies = (x.nbytes + target.nbytes) // num_shards <= MOST_BYTES_TO_COPY
        examples = PartitionSpec(axes)

        @on_shards(in_specs=examples, out_specs=examples)
        def take(order, x, target):
            return x[order], target[order]

        @on_shards(
            in_specs=(PartitionSpec(), examples, examples),
            out_specs=(PartitionSpec(None, axes), examples),
        )
        def batches(key, x, target):
            """The full batches, stacked, and the rest: examples, or their numbers."""
            parts = x, target
            if shuffle:
                if num_shards > 1:
                    key = jax.random.fold_in(key, jax.lax.axis_index(axes))
                order = _random_order(key, len(x))
                parts = (x[order], target[order]) if copies else (order,)
            size = batch_size // num_shards
            split = num_full * size
            full = tuple(a[:split].reshape(num_full, size, *a.shape[1:]) for a in parts)
            return full, tuple(a[split:] for a in parts)

        def numbered_step(state, batch):
            index, parts = batch
            key = None if step_key is None else jax.random.fold_in(step_key, index)
            examples = take(*parts, x, target) if shuffle and not copies else parts
            return step(state, *examples, key)

        full, rest = batches(shuffle_key if shuffle else None, x, target)
        losses = []
        if num_full:
            state, values = jax.lax.scan(numbered_step, state, (jnp.arange(num_full), full))
            losses.append(values)
        if num_full * batch_size < num_examples:
            state, value = numbered_step(state, (num_full, rest))
            losses.append(value[None])
        return state, jnp.concatenate(losses)

    return jax.jit(epoch, donate_argnums=0 if donate else ())


def _train_step(model, loss, optimizer):
    evaluate = loss_and_grads(model, loss)

    def step(state, x, target, key=None):
        value, grads = evaluate(state.params, x, target, key)
        params, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(params, opt_state), value

    return step


def _shards(x, num_examples, batch_size):
    """The mesh axes over which x is sharded, the number of shards, and a decorator.

    on_shards(in_specs=..., out_specs=...) makes a function run on each shard by itself.
    """
    mesh, axes = sharded_axes(x)
    num_shards = math.prod(mesh.shape[axis] for axis in axes)
    if not axes:
        return axes, 1, lambda **specs: lambda function: function
    if batch_size % num_shards or num_examples % num_shards:
        raise ValueError(
            "make_train_epoch: expected a batch_size and a number of examples that "
            f"{num_shards} devices divide, got {batch_size} and {num_examples}"
        )
    return axes, num_shards, functools.partial(jax.shard_map, mesh=mesh, axis_names={*axes})


def _random_order(key, length):
    """The numbers from 0 to length - 1 in random order.

    Sorting numbers by separate random keys, as jax.random.permutation does, would be most of an
    epoch of few and large batches. Up to 4096 numbers are sorted as the low bits of random words
    instead; where two words have the same high bits, for any pair with a probability of 2**-20 at
    most, the smaller number comes first.
    """
    num_bits = (length - 1).bit_length()
    if num_bits > 12:
        return jax.random.permutation(key, length)
    words = jax.random.bits(key, (length,), jnp.uint32) >> num_bits << num_bits
    return jnp.sort(words | jnp.arange(length, dtype=jnp.uint32)) & (2**num_bits - 1)


def _count_examples(name, x, target):
    x_shape, target_shape = jnp.shape(x), jnp.shape(target)
    if not x_shape or not target_shape or not x_shape[0] == target_shape[0] > 0:
        raise ValueError(
            f"{name}: expected x and target with the same number of examples, at least one, on the "
            f"first axis, got shapes {x_shape} and {target_shape}"
        )
    return x_shape[0]
