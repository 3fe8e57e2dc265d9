"""What the compiler counts: the hand-written passes beside those that JAX derives.

A training step counts no more operations and no more temporary memory than the same one by
jax.grad: for every single layer, the report's network, and deep ones. The exceptions:

- Attention computes its weights again in backward. That is up to a quarter more operations, for a
  memory that grows with time and not with its square. These tests grant it.
- With ReLU there are up to 1 % more operations in a network. The networks here have Tanh and
  LeakyReLU.
- Where convolutions, normalisations and pooling follow each other, memory is between a tenth less
  and a sixth more. Such networks are not tested here.

Exceptions in time are in tests/compare_autodiff.py.
"""

import functools
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, VARIANTS, LayerCase, draw, layer_inputs, with_key

import fnn

pytestmark = pytest.mark.usefixtures("on_the_cpu")

mse = fnn.MSELoss()


def cost(function, *args):
    """FLOPs and bytes of temporary memory of the compiled function."""
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.cost_analysis().get("flops", 0), compiled.memory_analysis().temp_size_in_bytes


def num_bytes(tree):
    """Bytes of the tree's arrays, each counted once."""
    return sum({id(leaf): leaf.nbytes for leaf in jax.tree.leaves(tree)}.values())


def bytes_kept(forward, *args):
    """Bytes of what forward returns beside y, without what is y or an argument; each array once."""
    jaxpr, shapes = jax.make_jaxpr(forward, return_shape=True)(*args)
    num_y = len(jax.tree.leaves(shapes[0]))
    kept = {id(var): var.aval for var in jaxpr.jaxpr.outvars[num_y:]}
    for var in jaxpr.jaxpr.invars + jaxpr.jaxpr.outvars[:num_y]:
        kept.pop(id(var), None)
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept.values())


# Their passes are loops, whose body the compiler counts once: tests/test_sequences.py counts these.
LOOPS = ("Attention-in-blocks", "RNN", "LSTM", "GRU")
CASES = {
    **{name: case for name, case in {**LAYERS, **VARIANTS}.items() if not name.startswith(LOOPS)},
    "Dropout": LayerCase(lambda: with_key(fnn.Dropout(0.5)), (3,), (3,)),
    "StochasticDepth": LayerCase(
        lambda: with_key(fnn.StochasticDepth(fnn.Linear(3, 4), 0.5)), (3,), (4,)
    ),
    "LayerNorm-256": LayerCase(lambda: fnn.LayerNorm(256), (256,), (256,)),
    "RMSNorm-256": LayerCase(lambda: fnn.RMSNorm(256), (256,), (256,)),
    "Softmax-256": LayerCase(fnn.Softmax, (256,), (256,)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_layers_passes_cost_no_more_than_jax_vjps(case):
    """In FLOPs; and in bytes, of what forward keeps beside y and of a pass's temporaries.

    Attention computes its weights again, which is one product more than the six of both passes.
    """
    layer, params, x, dy = layer_inputs(case, (64,))

    def cost_of(forward, backward):
        kept = jax.eval_shape(forward, params, x)[1]
        costs = cost(forward, params, x), cost(backward, kept, dy)
        flops, temporary = zip(*costs, strict=True)
        return sum(flops), max(temporary) + bytes_kept(forward, params, x)

    by_jax = functools.partial(jax.vjp, lambda *args: layer.forward(*args)[0])
    again = 5 / 4 if "Attention" in repr(layer) else 1
    flops, memory = cost_of(
        layer.forward, lambda residuals, dy: layer.backward(params, residuals, dy)
    )
    most_flops, most_memory = cost_of(by_jax, lambda vjp, dy: vjp(dy))
    assert flops <= again * most_flops
    assert memory <= most_memory


def make_network(widths, activation):
    layers = [layer for dims in pairwise(widths) for layer in (fnn.Linear(*dims), activation())]
    return fnn.Sequential(*layers)


NETWORKS = {
    "report": ([2, 25, 25, 25, 2], fnn.LeakyReLU),
    "deep-tanh": ([64] * 17, fnn.Tanh),
    "deep-leaky": ([16] * 17, fnn.LeakyReLU),
}


def assert_a_step_costs_no_more_than_by_jax_grad(model, params, x, target):
    optimizer = fnn.sgd(0.1, momentum=0.9)
    state = fnn.TrainState(params, optimizer.init(params))
    by_jax = jax.value_and_grad(lambda p, x, y: mse.forward(model.forward(p, x)[0], y)[0])

    def step(evaluate, state, x, target):
        value, grads = evaluate(state.params, x, target)
        return fnn.TrainState(*optimizer.update(grads, state.opt_state, state.params)), value

    flops, temporary = cost(
        functools.partial(step, fnn.loss_and_grads(model, mse)), state, x, target
    )
    most_flops, most_temporary = cost(functools.partial(step, by_jax), state, x, target)
    assert flops <= most_flops
    assert temporary <= most_temporary


ONE_LAYER = {name: case for name, case in CASES.items() if not name.startswith("Sequential")}


@pytest.mark.parametrize("case", ONE_LAYER.values(), ids=ONE_LAYER.keys())
def test_a_layers_step_costs_no_more_than_by_jax_grad(case):
    assert_a_step_costs_no_more_than_by_jax_grad(*layer_inputs(case, (256,)))


@pytest.mark.parametrize("batch_size", [10, 64])
@pytest.mark.parametrize(("widths", "activation"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_networks_step_costs_no_more_than_by_jax_grad(widths, activation, batch_size):
    """At batch sizes 1 and 2, what XLA's fusions compute again decides: 2 % or 512 bytes."""
    model = make_network(widths, activation)
    batch = draw(1, (batch_size, widths[0])), draw(2, (batch_size, widths[-1]))
    assert_a_step_costs_no_more_than_by_jax_grad(model, model.init(jax.random.key(0)), *batch)


@pytest.mark.parametrize(("widths", "activation"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_networks_residuals_are_its_activations_once_each(widths, activation):
    """Which is less than jax.vjp keeps."""
    model = make_network(widths, activation)
    params, x = model.init(jax.random.key(0)), draw(1, (10, widths[0]))
    residuals = model.forward(params, x)[1]
    assert num_bytes(residuals) == 4 * 10 * sum(widths)
    vjp = jax.vjp(lambda *args: model.forward(*args)[0], params, x)[1]
    assert num_bytes(residuals) < num_bytes(vjp) - num_bytes(params)


def test_the_first_layers_unused_dx_is_not_computed():
    """The compiler counts the same operations with and without it."""
    linear = fnn.Linear(64, 64)

    def backward(params, x, dy):
        grads, _ = linear.backward(params, x, dy)
        return grads, jnp.zeros_like(x)

    examples, targets = draw(1, (32, 64)), draw(2, (32, 64))
    flops = []
    for first in (linear, linear._replace(backward=backward)):
        network = fnn.Sequential(first, fnn.Tanh(), linear)
        run = jax.jit(fnn.loss_and_grads(network, mse))
        compiled = run.lower(network.init(jax.random.key(0)), examples, targets).compile()
        flops.append(compiled.cost_analysis()["flops"])
    assert flops[0] == flops[1]
    assert flops[0] < 6 * 2 * 32 * 64 * 64  # y, dW and dx of both layers are six products
