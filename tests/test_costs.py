"""What the compiler reports of the hand-written passes, beside those that jax.grad derives."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, draw, layer_inputs

import fnn

REPORT = fnn.Sequential(
    *(fnn.Linear(2, 25), fnn.LeakyReLU(), fnn.Linear(25, 25), fnn.LeakyReLU()),
    *(fnn.Linear(25, 25), fnn.LeakyReLU(), fnn.Linear(25, 2), fnn.Sigmoid()),
)
DEEP = fnn.Sequential(*(part for _ in range(16) for part in (fnn.Linear(64, 64), fnn.Tanh())))
NETWORKS = {"report": (REPORT, 2, 2), "deep": (DEEP, 64, 64)}


def costs(function, *arguments):
    """(floating-point operations, bytes of temporary memory) of the compiled function."""
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return compiled.cost_analysis().get("flops", 0.0), memory


def assert_no_dearer(actual, reference):
    assert actual[0] <= reference[0]
    assert actual[1] <= reference[1]


@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())
def test_passes_cost_no_more_than_vjps(case):
    layer, params, x, dy = layer_inputs(case, (64,))

    def by_hand(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    def by_jax(params, x, dy):
        y, vjp = jax.vjp(lambda params, x: layer.forward(params, x)[0], params, x)
        return y, vjp(dy)

    assert_no_dearer(costs(by_hand, params, x, dy), costs(by_jax, params, x, dy))


@pytest.mark.parametrize(("model", "dim_in", "dim_out"), NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("batch_size", [1, 10, 100, 1000])
def test_steps_cost_no_more_than_with_grad(model, dim_in, dim_out, batch_size):
    loss, optimizer = fnn.MSELoss(), fnn.sgd(0.1, momentum=0.9)
    state = fnn.init_train_state(model, optimizer, jax.random.key(0))
    x, target = draw(1, (batch_size, dim_in)), draw(2, (batch_size, dim_out))

    def step(evaluate, state, x, target):
        value, grads = evaluate(state.params, x, target)
        return optimizer.update(grads, state.opt_state, state.params), value

    def by_jax(params, x, target):
        return loss.forward(model.forward(params, x)[0], target)[0]

    by_hand = functools.partial(step, fnn.loss_and_grads(model, loss))
    by_grad = functools.partial(step, jax.value_and_grad(by_jax))
    assert_no_dearer(costs(by_hand, state, x, target), costs(by_grad, state, x, target))


def test_the_first_layers_unused_dx_is_not_computed():
    linear = fnn.Linear(64, 64)

    def backward(params, x, dy):
        grads, _ = linear.backward(params, x, dy)
        return grads, jnp.zeros_like(x)

    without_dx = linear._replace(backward=backward)
    x, target = draw(1, (32, 64)), draw(2, (32, 64))
    flops = []
    for first in (linear, without_dx):
        model = fnn.Sequential(first, fnn.Tanh(), linear)
        params = model.init(jax.random.key(0))
        flops.append(costs(fnn.loss_and_grads(model, fnn.MSELoss()), params, x, target)[0])
    assert flops[0] == flops[1]
    assert flops[0] < 6 * 2 * 32 * 64 * 64  # two layers with y, dW and dx each make six products


def test_residuals_are_the_activations_and_each_of_them_once():
    """x of every Linear and y of the last layer; LeakyReLU's y is the next Linear's x."""
    params = REPORT.init(jax.random.key(0))
    _, residuals = REPORT.forward(params, draw(1, (10, 2)))
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(residuals)}.values()
    assert sorted(array.shape for array in arrays) == [(10, 2), (10, 2)] + 3 * [(10, 25)]
