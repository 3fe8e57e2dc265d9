"""Compares fnn's passes and transforms with autodiff, in time, memory and operations.

Every comparison is two functions, fnn's and the other, and one that makes their arguments.
tests/test_compare_autodiff.py asserts the memory of the transforms. As a program this file
prints the times too:

    PYTHONPATH=scripts python tests/compare_autodiff.py

These figures are of one run on two shared cores of an AMD EPYC, with JAX 0.10.2, on 27 November
2026. Times are medians of 9 rounds in which the candidates take turns. MB are the compiler's count
of temporary memory. A factor says how much more the function beside fnn's takes.

    squared gradient norms of 256 examples, two 512 x 512 layers
        fnn.linear_squared_norms                2.0 ms,  1.05 MB
        jax.vmap of jax.grad                    241 ms,  1.57 MB    x 118 in time
    gradient of repeat(block, 16), a block of two 256-wide Linear and Tanh, batch 1024
        repeat(remat(block), 16)                 57 ms,  22.8 MB
        autodiff through the same scan           61 ms,  88.6 MB    x 3.9 in memory
    gradient of 16 such blocks in a Sequential
        remat                                    51 ms,  19.9 MB
        jax.checkpoint                           50 ms,  50.3 MB    x 2.5 in memory
    gradient of 16 layers of width 32, batch 8192
        accumulate_gradients in 8 parts         8.6 ms,   2.4 MB
        the whole batch                         5.8 ms,  17.8 MB    x 7.5 in memory
    tracing and compiling
        repeat(block, 64)                       0.23 s
        repeat(block, 4)                        0.22 s

remat computes a third more, which shows where products dominate. The norms of sequences take time
and memory by the square of their length.

An epoch of the report's network takes 23 % less time than with the passes that jax.vjp derives, at
batch size 10. It takes 5 % more at 100, and 6 % more at 1000. The cause is LeakyReLU. A narrow
network with GELU takes up to 7 % more time for batches of up to 32.
"""

import operator
import statistics
import time

import jax
import jax.numpy as jnp
from test_costs import cost

import fnn

mse = fnn.MSELoss("sum")


def arguments(model, *shape):
    """Makes params, x and target, of which the latter two have the shape."""

    def make():
        keys = jax.random.split(jax.random.key(0), 3)
        return model.init(keys[0]), *(jax.random.normal(key, shape) for key in keys[1:])

    return make


def loss_by_jax(model):
    return lambda params, x, target: mse.forward(model.forward(params, x)[0], target)[0]


def derived_by_jax(layer):
    """The layer with the passes that jax.vjp derives from its forward."""

    def forward(params, x, key=None):
        return jax.vjp(lambda *args: layer.forward(*args, key)[0], params, x)

    return layer._replace(forward=forward, backward=lambda params, vjp, dy: vjp(dy))


def epochs(batch_size):
    """An epoch of the report's network, and the same with the passes that jax.vjp derives."""
    from benchmark import REPORT, make_training

    (model, loss, optimizer), start, data = make_training(REPORT, 1000)
    loss_by_jax = fnn.Loss(
        lambda y, target: jax.vjp(lambda y: loss.forward(y, target)[0], y),
        lambda vjp: vjp(jnp.ones(()))[0],
    )
    by_hand = fnn.make_train_epoch(model, loss, optimizer, batch_size)
    by_jax = fnn.make_train_epoch(derived_by_jax(model), loss_by_jax, optimizer, batch_size)

    def make_arguments():
        return start(jax.random.key(1)), *data, jax.random.key(2)

    return by_hand, by_jax, make_arguments


def squared_norms_of_two_layers():
    """The squared gradient norm of each of 256 examples, for two 512 x 512 layers."""

    def network(backward):
        linear = fnn.Linear(512, 512)
        layer = linear._replace(backward=backward or linear.backward)
        return fnn.Sequential(layer, fnn.Tanh(), layer)

    def in_closed_form(params, x, target):
        _, squares = fnn.loss_and_grads(network(fnn.linear_squared_norms), mse)(params, x, target)
        return sum(jax.tree.leaves(squares))

    def of_example(params, x, target):
        grads = jax.grad(loss_by_jax(network(None)))(params, x, target)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))

    by_jax = jax.vmap(of_example, (None, 0, 0))
    return in_closed_form, by_jax, arguments(network(None), 256, 512)


def two_layers(width):
    layers = fnn.Linear(width, width), fnn.Tanh(), fnn.Linear(width, width), fnn.Tanh()
    return fnn.Sequential(*layers)


def scanned_blocks():
    """The gradient of 16 blocks of two Linear(256, 256) and Tanh, batch 1024, run by lax.scan."""
    block = two_layers(256)
    by_hand = fnn.loss_and_grads(fnn.repeat(fnn.remat(block), 16), mse)
    by_jax = jax.value_and_grad(loss_by_jax(fnn.repeat(block, 16)))
    return by_hand, by_jax, arguments(fnn.repeat(block, 16), 1024, 256)


def blocks_in_sequence():
    """The same without a scan: fnn.remat beside jax.checkpoint."""
    block = two_layers(256)

    def loss_with_checkpoints(params, x, target):
        for block_params in params:
            x = jax.checkpoint(lambda p, x: block.forward(p, x)[0])(block_params, x)
        return mse.forward(x, target)[0]

    model = fnn.Sequential(*[fnn.remat(block)] * 16)
    by_hand, by_jax = fnn.loss_and_grads(model, mse), jax.value_and_grad(loss_with_checkpoints)
    return by_hand, by_jax, arguments(model, 1024, 256)


def eight_microbatches():
    """The gradient of 16 layers of width 32, batch 8192, in 8 parts and in one."""
    linear = fnn.Linear(32, 32)
    model = fnn.Sequential(*[linear, fnn.Tanh()] * 16)
    whole = fnn.loss_and_grads(model, mse)
    in_parts = fnn.accumulate_gradients(whole, 8, reduction="sum")
    return in_parts, whole, arguments(model, 8192, 32)


def deep_step(depth):
    """Lowers the gradient of `depth` blocks of two 64-wide Linear and Tanh."""
    model = fnn.repeat(two_layers(64), depth)
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return jax.jit(fnn.loss_and_grads(model, mse)).lower(params, x, x)


def main(rounds=9):
    from shared.measure import describe_machine, take_turns

    jax.config.update("jax_enable_compilation_cache", False)
    print(describe_machine())
    comparisons = {
        compare.__doc__: compare()
        for compare in (
            squared_norms_of_two_layers,
            scanned_blocks,
            blocks_in_sequence,
            eight_microbatches,
        )
    }
    comparisons |= {f"{epochs.__doc__} Batch {size}.": epochs(size) for size in (1, 10, 100, 1000)}
    for title, (by_fnn, other, make_arguments) in comparisons.items():
        print(f"\n{title}")
        programs, args = {"fnn": jax.jit(by_fnn), "beside": jax.jit(other)}, make_arguments()
        calls = {
            name: lambda program=program: program(*args)  # noqa: B023
            for name, program in programs.items()
        }
        turns = take_turns(calls, rounds, 0.0)
        for name, seconds in turns.items():
            flops, temporary = cost(programs[name], *args)
            ratio = statistics.median(map(operator.truediv, turns["beside"], seconds))
            print(
                f"  {name:<8} {1e3 * statistics.median(seconds):8.2f} ms, beside / it {ratio:5.2f}"
                f"; {temporary / 1e6:8.3f} MB of temporaries, {flops:14,.0f} FLOPs"
            )
    shapes = jax.eval_shape(epochs(100)[2])
    preparations = {
        "Tracing and compiling repeat(block, 4)": lambda: deep_step(4).compile(),
        "Tracing and compiling repeat(block, 64)": lambda: deep_step(64).compile(),
        "Tracing and lowering an epoch, batch 100": lambda: epochs(100)[0].lower(*shapes),
        "Tracing and lowering it, passes by jax.vjp": lambda: epochs(100)[1].lower(*shapes),
    }
    measured = {title: [] for title in preparations}
    for _ in range(rounds):
        for title, prepare in preparations.items():
            started = time.perf_counter()
            prepare()
            measured[title].append(time.perf_counter() - started)
    print()
    for title, seconds in measured.items():
        print(f"{title:<44} {1e3 * statistics.median(seconds):8.1f} ms")


if __name__ == "__main__":
    main()
