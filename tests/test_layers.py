"""The properties that every layer has."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import (
    LAYERS,
    LEADING,
    VARIANTS,
    cast,
    draw,
    draw_integers,
    is_floating,
    layer_inputs,
    zeros_like,
)

import fnn

every_layer = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())
ALL = {**LAYERS, **VARIANTS}
every_layer_and_variant = pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
every_leading = pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING.keys())
DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def pass_through(layer, params, x, dy):
    """y, grads and dx of one forward and one backward pass."""
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, dy)


def pass_through_jax(layer, params, x, dy):
    """The same by jax.vjp, with zeros as dx of an integer x."""
    y, vjp = jax.vjp(lambda *args: layer.forward(*args)[0], params, x)
    grads, dx = vjp(dy)
    return y, grads, dx if is_floating(x) else jnp.zeros_like(x)


def passes_everything_on(layer, params, x):
    """As the empty Sequential does."""
    return not jax.tree.leaves(jax.eval_shape(layer.forward, params, x)[1])


class Results(NamedTuple):
    """Of one program in float64, called twice: y, grads and dx for x and dy of all LEADING.

    They are on the host, where no program is compiled for what the tests do with them.
    """

    inputs: dict  # (params, x, dy)
    by_hand: dict
    again: dict
    by_jax: dict
    over_examples: tuple | None  # of "batch", one by one; None for a variant
    empty: tuple | None  # of a batch of none; None for a variant


@functools.cache
def results(case):
    layer = case.make()
    chex.clear_trace_counter()  # which counts by the function's name

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(inputs, empty):
        by_hand = {name: pass_through(layer, *given) for name, given in inputs.items()}
        by_jax = {name: pass_through_jax(layer, *given) for name, given in inputs.items()}
        if case not in LAYERS.values():
            return by_hand, by_jax, None, None
        over_examples = jax.vmap(functools.partial(pass_through, layer), (None, 0, 0))
        return by_hand, by_jax, over_examples(*inputs["batch"]), pass_through(layer, *empty)

    with jax.enable_x64(True):
        inputs = {
            name: layer_inputs(case, leading, jnp.float64)[1:] for name, leading in LEADING.items()
        }
        nothing = layer_inputs(case, (0,), jnp.float64)[1:]
        kept = jax.tree.map(lambda leaf: jax.device_get(leaf).copy(), inputs)
        by_hand, by_jax, over_examples, empty = jax.device_get(run(inputs, nothing))
        again, *_ = jax.device_get(run(inputs, nothing))
    chex.assert_trees_all_equal(inputs, kept)
    return Results(inputs, by_hand, again, by_jax, over_examples, empty)


@every_layer_and_variant
def test_backward_matches_jax_vjp(case):
    _, by_hand, _, by_jax, *_ = results(case)
    chex.assert_trees_all_close(by_hand, by_jax, rtol=1e-10, atol=1e-14)


@every_layer_and_variant
def test_backward_matches_finite_differences(case):
    layer, _, x, _ = layer_inputs(case, (2,))
    near, far_out = jax.device_get(x)
    fnn.check_layer(layer, [near, 30 * far_out] if is_floating(x) else x, jax.random.key(3))


@every_layer
def test_jit_equals_eager_without_nans(case):
    layer = case.make()
    with jax.enable_x64(True), jax.disable_jit(), jax.debug_nans(True):
        eager = pass_through(layer, *results(case).inputs["batch"])
    chex.assert_trees_all_close(eager, results(case).by_hand["batch"], rtol=1e-10, atol=1e-14)


@every_layer
def test_layer_is_pure_and_traced_once(case):
    """A second trace in the two calls would have raised AssertionError."""
    chex.assert_trees_all_equal(results(case).by_hand, results(case).again)


@every_layer
def test_vmap_over_examples_equals_the_batch(case):
    y, grads, dx = results(case).by_hand["batch"]
    y_each, grads_each, dx_each = results(case).over_examples
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads_each)
    chex.assert_trees_all_close((y_each, summed, dx_each), (y, grads, dx), rtol=1e-10, atol=1e-14)


@every_layer
def test_batch_of_one_equals_the_example(case):
    y, grads, dx = results(case).by_hand["batch-of-one"]
    example = results(case).by_hand["example"]
    chex.assert_trees_all_close((y[0], grads, dx[0]), example, rtol=1e-10, atol=1e-14)


@every_layer
def test_empty_batch_gives_zero_grads(case):
    y, grads, dx = results(case).empty
    assert y.shape == (0, *case.y)
    assert dx.shape == (0, *case.x)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


@every_layer
@every_dtype
def test_dtypes_are_preserved(case, dtype):
    with jax.enable_x64(True):
        layer, params, x, dy = layer_inputs(case, dtype=dtype)
        y, grads, dx = jax.eval_shape(functools.partial(pass_through, layer), params, x, dy)
        assert dx.dtype == x.dtype
        for leaf in jax.tree.leaves((y, grads)):
            assert leaf.dtype == dtype


@every_layer
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float64])
def test_x_decides_the_dtype_of_y_and_params_that_of_grads(case, x_dtype):
    with jax.enable_x64(True):
        layer, params, x, dy = layer_inputs(case, dtype=x_dtype)
        params = cast(params, jnp.float32)
        y, grads, dx = jax.eval_shape(functools.partial(pass_through, layer), params, x, dy)
        assert dx.dtype == x.dtype
        assert y.dtype == (x_dtype if is_floating(x) else jnp.float32)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)


@every_layer
@every_leading
def test_grads_are_like_params_and_dx_like_x(case, leading):
    layer, params, x, dy = layer_inputs(case, leading)
    y, grads, dx = jax.eval_shape(functools.partial(pass_through, layer), params, x, dy)
    assert y.shape == leading + case.y
    chex.assert_trees_all_equal_shapes_and_dtypes((grads, dx), (params, x))


@every_layer
def test_16_bit_results_are_close_to_exact_ones(case):
    with jax.enable_x64(True):
        layer, *given = layer_inputs(case, (1000,), jnp.bfloat16)
        run = jax.jit(lambda *inputs: [pass_through(layer, *arrays) for arrays in inputs])
        actual, exact = map(jax.tree.leaves, jax.device_get(run(given, cast(given, jnp.float64))))
        for rounded, leaf in zip(actual, exact, strict=True):
            largest = abs(leaf).max()
            assert abs(rounded - leaf).max() < 0.03 * largest or largest == 0


@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
@pytest.mark.parametrize("batch", [30, 1000])
def test_float32_grads_are_not_rounded_to_the_dtype_of_x(name, batch):
    layer, params, x, dy = layer_inputs(LAYERS[name], (batch,), jnp.bfloat16)
    params, wide_x, wide_dy = cast((params, x, dy), jnp.float32)
    run = jax.jit(lambda *inputs: [layer.backward(params, *arrays)[0] for arrays in inputs])
    grads, exact = jax.device_get(run((x, dy), (wide_x, wide_dy)))
    chex.assert_trees_all_close(grads, exact, rtol=1e-4, atol=1e-4)


@every_layer
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_wrong_dy_is_refused(case, wrap):
    layer, params, x, dy = layer_inputs(case)
    if passes_everything_on(layer, params, x):
        return
    residuals = zeros_like(jax.eval_shape(layer.forward, params, x)[1])
    wrong_shapes = (4, *case.y), (5, *case.y, 1), case.y
    for wrong in (*(draw(2, shape) for shape in wrong_shapes), draw_integers(2, dy.shape, 3)):
        with pytest.raises(ValueError, match=r"expected dy of .* got"):
            wrap(functools.partial(layer.backward, params, residuals))(wrong)


@every_layer
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_wrong_params_are_refused(case, wrap):
    layer, params, x, dy = layer_inputs(case)
    residuals = zeros_like(jax.eval_shape(layer.forward, params, x)[1])
    cut = jax.tree.map(lambda leaf: draw(3, (leaf.shape[0] - 1, *leaf.shape[1:])), params)
    integers = cast(params, jnp.int32)
    has_params = bool(jax.tree.leaves(params))
    for wrong in (None, {"W": x}, (params,) * 20, *([cut, integers] if has_params else [])):
        with pytest.raises(ValueError, match="expected params"):
            wrap(lambda p: layer.forward(p, x))(wrong)
        with pytest.raises(ValueError, match="expected params"):
            wrap(lambda p: layer.backward(p, residuals, dy))(wrong)


@every_layer
def test_x_of_the_other_kind_of_dtype_is_refused(case):
    layer, params, x, _ = layer_inputs(case)
    if passes_everything_on(layer, params, x):
        return
    kind, other = ("floating", jnp.int32) if is_floating(x) else ("integer", jnp.float32)
    with pytest.raises(ValueError, match=f"expected x of an? {kind} dtype, got {other.__name__}"):
        layer.forward(params, draw(1, x.shape, other))


@every_layer
def test_init_depends_on_the_key_alone(case):
    layer = case.make()
    one, same, other = (layer.init(jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(one, same)
    weights = [leaf for leaf in jax.tree.leaves(one) if leaf.ndim > 1]
    others = [leaf for leaf in jax.tree.leaves(other) if leaf.ndim > 1]
    for weight, other_weight in zip(weights, others, strict=True):
        assert (jax.device_get(weight) != jax.device_get(other_weight)).all()
