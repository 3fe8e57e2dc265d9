"""A whole epoch of training as one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fnn._checks import check_integer
from fnn.layer import Layer, fold_key
from fnn.losses import Loss
from fnn.optimizers import Optimizer
from fnn.sharding import sharded_axes
from fnn.training import TrainState, check_step_key, count_examples, make_train_step

# Up to this many bytes a data set is copied in shuffled order before the epoch: one gather takes
# less time than one for each batch. A larger one is gathered batch by batch, to save the memory.
MOST_BYTES_TO_COPY = 2**24


def make_train_epoch(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    *,
    shuffle: bool = True,
    donate: bool = False,
    report: Callable[[Any, TrainState], Any] | None = None,
) -> Callable[..., tuple]:
    """A jitted f(state, x, target, key) -> (state, loss values): one pass over the examples.

    The epoch is one compiled program: a scan of training steps over minibatches. Every example is
    seen once. If batch_size does not divide the number of examples n, the last batch is smaller.
    Step i draws from fold_in(k, i), where k is the second key of jax.random.split(key).

    On a data set over a mesh of N devices (see fnn.sharding) a batch takes batch_size / N examples
    from each device. Each device draws an order of its own for its own examples, so that no example
    moves. Without shuffling a batch has the next examples of each device.

    Shapes: x (n, ...), target (n, ...), loss values (ceil(n / batch_size),), one for each step.

    Args:
        shuffle: visit the examples in an order drawn with the key, else in the given order.
            Without shuffling the key may be None, which runs the model in evaluation mode. A model
            that uses a key, such as one with Dropout or BatchNorm, needs it all the same.
        donate: as in make_train_step.
        report: as in make_train_step. The epoch then returns (state, loss values, reports). Every
            leaf of the reports has a first axis with an entry for each step.

    Raises:
        ValueError: `model` is not a Layer, `loss` not a Loss, or `optimizer` not an Optimizer;
            batch_size is not a positive integer; x or target is no array; they have no examples, or
            differ in their number; there is no key to shuffle with, or to draw from; N does not
            divide batch_size or n.

    Here report gives the norm of each gradient, for each of the 10 steps:

        >>> x, labels = fnn.sample_disk(jax.random.key(0), 100)
        >>> model, loss = fnn.Linear(2, 2), fnn.CrossEntropyLoss()
        >>> def norms(grads, state):
        ...     return jax.tree.map(jnp.linalg.norm, grads)
        >>> epoch = fnn.make_train_epoch(model, loss, fnn.sgd(0.1), 10, report=norms)
        >>> state = fnn.init_train_state(model, fnn.sgd(0.1), jax.random.key(1))
        >>> state, losses, reports = epoch(state, x, labels, jax.random.key(2))
        >>> jax.tree.map(jnp.shape, reports)
        {'W': (10,), 'b': (10,)}

    The epoch is a pure function, so jax.vmap trains with three learning rates at once:

        >>> def loss_after(learning_rate):
        ...     optimizer = fnn.sgd(learning_rate)
        ...     epoch = fnn.make_train_epoch(model, loss, optimizer, batch_size=10)
        ...     state = fnn.init_train_state(model, optimizer, jax.random.key(1))
        ...     return epoch(state, x, labels, jax.random.key(2))[1].mean()
        >>> print(jax.vmap(loss_after)(jnp.array([0.01, 0.1, 1.0])))
        [0.98... 0.87... 0.78...]
    """
    batch_size = check_integer("make_train_epoch", "batch_size", batch_size, 1)
    step = make_train_step(model, loss, optimizer, report=report)

    def epoch(state, x, target, key=None):
        num_examples = count_examples("make_train_epoch", x, target)
        x, target = jnp.asarray(x), jnp.asarray(target)
        if shuffle and key is None:
            raise ValueError("make_train_epoch: expected a key to shuffle with, got None")
        check_step_key("make_train_epoch", model, key)
        shuffle_key, step_key = (None, None) if key is None else jax.random.split(key)
        num_full = num_examples // batch_size
        axes, num_shards, on_shards = _shards(x, num_examples, batch_size)
        is_copied = (x.nbytes + target.nbytes) // num_shards <= MOST_BYTES_TO_COPY
        examples, stacked = PartitionSpec(axes), PartitionSpec(None, axes)

        @on_shards(in_specs=(PartitionSpec(), examples, examples), out_specs=(stacked, examples))
        def divide(shuffle_key, x, target):
            """The full batches, stacked, and the rest of the examples.

            Each is (x, target), or (indices,) if the examples are gathered later.
            """
            arrays = x, target
            if shuffle:
                if num_shards > 1:
                    shuffle_key = jax.random.fold_in(shuffle_key, jax.lax.axis_index(axes))
                order = _random_order(shuffle_key, len(x))
                arrays = (x[order], target[order]) if is_copied else (order,)
            size = batch_size // num_shards
            full = tuple(a[: num_full * size].reshape(num_full, size, *a.shape[1:]) for a in arrays)
            return full, tuple(a[num_full * size :] for a in arrays)

        @on_shards(in_specs=examples, out_specs=examples)
        def gather(indices, x, target):
            return x[indices], target[indices]

        def numbered_step(state, numbered_batch):
            index, batch = numbered_batch
            if shuffle and not is_copied:
                batch = gather(*batch, x, target)
            state, *results = step(state, *batch, fold_key(step_key, index))
            return state, results

        full, rest = divide(shuffle_key, x, target)
        parts = []
        if num_full:
            state, results = jax.lax.scan(numbered_step, state, (jnp.arange(num_full), full))
            parts.append(results)
        if num_full * batch_size < num_examples:
            state, results = numbered_step(state, (num_full, rest))
            parts.append(jax.tree.map(lambda result: jnp.asarray(result)[None], results))
        return state, *jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)

    return jax.jit(epoch, donate_argnums=0 if donate else ())


def _shards(x, num_examples, batch_size):
    """The mesh axes over which x is sharded, the number of shards, and a decorator.

    on_shards(in_specs=..., out_specs=...) makes a function run on each shard by itself.
    """
    mesh, axes, num_shards = sharded_axes(x)
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

    jax.random.permutation sorts the numbers by separate random keys. In an epoch of few and large
    batches that would be most of the time. Up to 4096 numbers are sorted as the low bits of random
    words instead, which takes a fraction of it. The random bits of a pair are equal with a
    probability of at most 2**-20. Such a pair keeps its order.
    """
    num_bits = (length - 1).bit_length()
    if num_bits > 12:
        return jax.random.permutation(key, length)
    words = jax.random.bits(key, (length,), jnp.uint32) >> num_bits << num_bits
    return jnp.sort(words | jnp.arange(length, dtype=jnp.uint32)) & (2**num_bits - 1)
