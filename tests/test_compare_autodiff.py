"""What the compiler counts for transformed layers, beside autodiff and beside the bare ones."""

import functools

import chex
import compare_autodiff
import jax
import jax.numpy as jnp
import pytest
from test_costs import cost
from test_transforms import passes

import fnn

pytestmark = pytest.mark.usefixtures("on_the_cpu")

key = jax.random.key(0)


def step_cost(model, x):
    """FLOPs and temporary bytes of both passes, with a key."""
    params = jax.eval_shape(model.init, key)
    return cost(functools.partial(passes, model), params, x, x, key)


def test_remat_trades_memory_for_operations_without_a_scan():
    """Products, and masks drawn from the key; neither is merged with the first pass's."""
    wide = fnn.Sequential(
        fnn.Linear(32, 32), fnn.Tanh(), fnn.Linear(32, 32), fnn.Tanh(), fnn.Dropout(0.5)
    )
    x = jax.ShapeDtypeStruct((512, 32), jnp.float32)
    flops, temporary = step_cost(fnn.Sequential(*[wide] * 5), x)
    more_flops, less = step_cost(fnn.Sequential(*[fnn.remat(wide)] * 5), x)
    assert more_flops > 1.25 * flops  # eight products of a block for six
    assert less < 0.7 * temporary


@pytest.mark.parametrize("wrap", [fnn.Sequential, lambda layer: fnn.repeat(layer, 2)])
def test_nothing_is_computed_for_a_frozen_layers_grads(wrap):
    linear, x = fnn.Linear(64, 64), jax.ShapeDtypeStruct((32, 64), jnp.float32)
    product = 2 * 32 * 64 * 64
    before = fnn.Sequential(linear, fnn.Tanh())
    flops, _ = step_cost(fnn.Sequential(before, wrap(linear)), x)
    fewer, _ = step_cost(fnn.Sequential(before, wrap(fnn.freeze(linear))), x)
    assert fewer <= flops - product


def temporary_bytes(comparison):
    by_fnn, other, make_arguments = comparison
    args = jax.eval_shape(make_arguments)
    return cost(by_fnn, *args)[1], cost(other, *args)[1]


def test_repeated_remat_needs_a_third_of_autodiffs_memory():
    temporary, by_jax = temporary_bytes(compare_autodiff.scanned_blocks())
    assert 3 * temporary <= by_jax


def test_accumulated_gradients_need_a_quarter_of_the_memory():
    temporary, of_whole_batch = temporary_bytes(compare_autodiff.eight_microbatches())
    assert 4 * temporary <= of_whole_batch


def test_squared_norms_need_no_more_memory_than_vmapped_grads():
    in_closed_form, by_jax, make_arguments = compare_autodiff.squared_norms_of_two_layers()
    args = make_arguments()
    actual, expected = jax.jit(in_closed_form)(*args), jax.jit(by_jax)(*args)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
    (flops, temporary), (most_flops, most) = cost(in_closed_form, *args), cost(by_jax, *args)
    assert temporary <= most
    assert flops < 0.6 * most_flops


def test_repeats_program_does_not_grow_with_n():
    lengths = [len(compare_autodiff.deep_step(depth).as_text().splitlines()) for depth in (4, 64)]
    assert lengths[0] == lengths[1]


def test_an_epoch_by_hand_costs_no_more_than_one_whose_passes_vjp_derives():
    by_hand, by_vjp, make_arguments = compare_autodiff.epochs(100)
    shapes = jax.eval_shape(make_arguments)
    (flops, temporary), (flops_by_vjp, temporary_by_vjp) = (
        cost(epoch, *shapes) for epoch in (by_hand, by_vjp)
    )
    assert flops <= flops_by_vjp
    assert temporary <= temporary_by_vjp
