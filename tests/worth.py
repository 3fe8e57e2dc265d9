"""What the transforms are worth beside autodiff; tests/test_transforms.py holds them to the memory.

As a program it prints the times too:

    PYTHONPATH=scripts python tests/worth.py
"""

import statistics
import time

import jax
import jax.numpy as jnp
from test_costs import cost

import fnn

mse = fnn.MSELoss("sum")


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def loss_by_jax(model):
    return lambda params, x, target: mse.forward(model.forward(params, x)[0], target)[0]


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

    params = network(None).init(jax.random.key(0))
    by_jax = jax.vmap(of_example, (None, 0, 0))
    return in_closed_form, by_jax, (params, random(1, 256, 512), random(2, 256, 512))


def sixteen_blocks():
    """The gradient of 16 blocks of two Linear(256, 256) and Tanh, batch 1024, run by lax.scan."""
    block = fnn.Sequential(fnn.Linear(256, 256), fnn.Tanh(), fnn.Linear(256, 256), fnn.Tanh())
    by_hand = fnn.loss_and_grads(fnn.repeat(fnn.remat(block), 16), mse)
    model = fnn.repeat(block, 16)
    params = model.init(jax.random.key(0))
    batch = random(1, 1024, 256), random(2, 1024, 256)
    return by_hand, jax.value_and_grad(loss_by_jax(model)), (params, *batch)


def eight_microbatches():
    """The gradient of 16 layers of width 32, batch 8192, in 8 parts and in one."""
    linear = fnn.Linear(32, 32)
    whole = fnn.loss_and_grads(fnn.Sequential(*[linear, fnn.Tanh()] * 16), mse)
    params = fnn.Sequential(*[linear, fnn.Tanh()] * 16).init(jax.random.key(0))
    batch = random(1, 8192, 32), random(2, 8192, 32)
    return fnn.accumulate_gradients(whole, 8, reduction="sum"), whole, (params, *batch)


def deep_step(depth):
    """Lowers the gradient of `depth` blocks of two 64-wide Linear and Tanh."""
    block = fnn.Sequential(fnn.Linear(64, 64), fnn.Tanh(), fnn.Linear(64, 64), fnn.Tanh())
    model = fnn.repeat(block, depth)
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    return jax.jit(fnn.loss_and_grads(model, mse)).lower(params, x, x)


def main(rounds=9):
    from benchmark import describe_machine, take_turns

    jax.config.update("jax_enable_compilation_cache", False)
    print(describe_machine())
    for compare in (squared_norms_of_two_layers, sixteen_blocks, eight_microbatches):
        print(f"\n{compare.__doc__}")
        *functions, args = compare()
        programs = {"fnn": jax.jit(functions[0]), "beside": jax.jit(functions[1])}
        calls = {
            name: lambda program=program: program(*args)  # noqa: B023
            for name, program in programs.items()
        }
        for name, seconds in take_turns(calls, rounds).items():
            _, temporary = cost(programs[name], *args)
            median = statistics.median(seconds)
            print(f"  {name:<8} {1e3 * median:8.1f} ms {temporary / 1e6:8.2f} MB of temporaries")
    seconds = {4: [], 64: []}
    for _ in range(rounds):
        for depth, measured in seconds.items():
            started = time.perf_counter()
            deep_step(depth).compile()
            measured.append(time.perf_counter() - started)
    print("\nTracing and compiling repeat(block, n)")
    for depth, measured in seconds.items():
        print(f"  n = {depth:<4} {1e3 * statistics.median(measured):8.1f} ms")


if __name__ == "__main__":
    main()
