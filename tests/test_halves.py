"""A backward pass in two halves: exact, at the cost of the whole, and what schedules make of it."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, VARIANTS, draw, layer_inputs
from test_costs import cost

import fnn

pytestmark = pytest.mark.usefixtures("on_the_cpu")

key = jax.random.key(0)


def make_deep_network():
    block = fnn.Residual(fnn.Sequential(fnn.LayerNorm(4), fnn.MultiHeadAttention(4, 2)))
    both = fnn.Parallel(fnn.Linear(4, 4), fnn.Sequential(fnn.Tanh(), fnn.PReLU(4)))
    return fnn.Sequential(
        fnn.Embedding(5, 4),
        fnn.repeat(fnn.repeat(block, 2), 2),
        fnn.remat(fnn.Sequential(fnn.Linear(4, 4), fnn.Dropout(0.5))),
        fnn.freeze(fnn.Linear(4, 4)),
        fnn.StochasticDepth(fnn.scale_gradient(fnn.reverse_time(both), 2.0), 0.5),
        fnn.with_compute_dtype(fnn.Linear(8, 3), jnp.float32),
        fnn.Parallel(fnn.Linear(3, 3), fnn.Sigmoid(), combine="product"),
    )


def assert_halves_are_the_whole(layer, params, x, dy, key=None):
    backward_input, backward_params = fnn.split_backward(layer)

    @jax.jit
    def whole(params, x, dy):
        return layer.backward(params, layer.forward(params, x, key)[1], dy)

    @jax.jit
    def first(params, x, dy):
        residuals = layer.forward(params, x, key)[1]
        return residuals, *backward_input(params, residuals, dy)

    grads, dx = whole(params, x, dy)
    residuals, early, kept = first(params, x, dy)
    late = jax.jit(backward_params)(params, residuals, kept)
    chex.assert_trees_all_equal_shapes_and_dtypes((late, early), (grads, dx))
    chex.assert_trees_all_close((late, early), (grads, dx), rtol=1e-6, atol=1e-6)


SOME = ["Linear", "Conv2d-same-strided", "BatchNorm-in-training", "Tanh", "LSTM", "Parallel-gate"]


@pytest.mark.parametrize("name", SOME)
def test_the_halves_of_a_layer_give_what_its_backward_gives(name):
    assert_halves_are_the_whole(*layer_inputs({**LAYERS, **VARIANTS}[name]))


def test_the_halves_of_a_nested_model_give_what_its_backward_gives():
    model, x = make_deep_network(), jnp.arange(20).reshape(4, 5) % 5
    assert_halves_are_the_whole(model, model.init(key), x, draw(2, (4, 5, 3)), jax.random.key(1))


def test_a_layer_without_parameters_keeps_nothing_for_later():
    model = fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh(), fnn.repeat(fnn.Linear(3, 3), 2))
    params, x = model.init(key), draw(1, (4, 3))
    backward_input, _ = fnn.split_backward(model)
    _, kept = backward_input(params, model.forward(params, x)[1], x)
    assert jax.tree.map(jnp.shape, kept) == ((4, 3), ((4, 3), (), (2, 4, 3)))


NETWORKS = {
    "Linear": (fnn.Linear(64, 48), (64,)),
    "Conv2d": (fnn.Conv2d(8, 16, 3, padding=1), (12, 12, 8)),
    "Sequential": (
        fnn.Sequential(
            fnn.Conv2d(4, 8, 3), fnn.Tanh(), fnn.Conv2d(8, 8, 3), fnn.Flatten(), fnn.Linear(512, 9)
        ),
        (12, 12, 4),
    ),
}


@pytest.mark.parametrize(("layer", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
def test_both_halves_together_cost_at_most_a_hundredth_more(layer, shape):
    params, x = layer.init(key), draw(1, (16, *shape))
    y, residuals = jax.eval_shape(layer.forward, params, x)
    backward_input, backward_params = fnn.split_backward(layer)
    _, kept = jax.eval_shape(backward_input, params, residuals, y)
    whole, _ = cost(layer.backward, params, residuals, y)
    first, _ = cost(backward_input, params, residuals, y)
    second, _ = cost(backward_params, params, residuals, kept)
    assert first + second <= 1.01 * whole
    assert 0.3 * whole < first < 0.7 * whole


def test_only_a_layer_can_be_split():
    with pytest.raises(ValueError, match="split_backward: expected a Layer at position 0, got"):
        fnn.split_backward(fnn.Linear)


# Pipelines


def idle_share(num_stages, num_microbatches, is_split):
    """The share of the time in which a stage of a pipeline waits, with one step of optimization.

    Stage s first runs num_stages - s forward passes ("F"), then in turn a backward pass and a
    forward pass. A whole backward pass takes two units of time, and every other pass one. In
    halves the first ("B") goes on to the stage before, and the second ("W") waits until the stage
    has nothing else to do.
    """
    ends, clocks, pending = {}, [0] * num_stages, [0] * num_stages
    orders = []
    for stage in range(num_stages):
        early = min(num_stages - stage, num_microbatches)
        pairs = zip(range(num_microbatches), range(early, num_microbatches + early), strict=True)
        order = [("F", i) for i in range(early)]
        for i, j in pairs:
            order += [("B", i)] + ([("F", j)] if j < num_microbatches else [])
        orders.append(order)
    while any(orders):
        for stage, order in enumerate(orders):
            if not order:
                continue
            kind, i = order[0]
            before = (kind, i, stage - 1 if kind == "F" else stage + 1)
            if kind == "B" and stage == num_stages - 1:
                before = ("F", i, stage)
            is_first = kind == "F" and stage == 0
            if not is_first and before not in ends:
                continue
            start = 0 if is_first else ends[before]
            while pending[stage] and clocks[stage] < start:
                pending[stage] -= 1
                clocks[stage] += 1
            length = 2 if kind == "B" and not is_split else 1
            clocks[stage] = ends[(kind, i, stage)] = max(clocks[stage], start) + length
            pending[stage] += kind == "B" and is_split
            order.pop(0)
    time = max(clock + late for clock, late in zip(clocks, pending, strict=True))
    return 1 - 3 * num_microbatches / time


def test_a_pipeline_of_halves_waits_less_than_half_as_long():
    """Four stages, eight microbatches. Qi et al., 2023, call it ZB-H1."""
    assert round(idle_share(4, 8, is_split=False), 2) == 0.27
    assert round(idle_share(4, 8, is_split=True), 2) == 0.11
    assert idle_share(1, 8, is_split=False) == idle_share(1, 8, is_split=True) == 0
