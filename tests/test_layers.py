"""The properties that every layer has."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LAYERS, LEADING, cast, layer_inputs

import fnn

every_layer = pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS.keys())
every_leading = pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING.keys())
DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def output(layer, params, x):
    return layer.forward(params, x)[0]


def pass_through(layer, params, x, dy):
    """y, grads and dx of one forward and one backward pass."""
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, dy)


@every_layer
@every_leading
def test_backward_matches_jax_vjp(case, leading):
    with jax.enable_x64(True):
        layer, params, x, dy = layer_inputs(case, leading, jnp.float64)

        @jax.jit
        def by_hand_and_by_jax(params, x, dy):
            y, vjp = jax.vjp(functools.partial(output, layer), params, x)
            return pass_through(layer, params, x, dy), (y, *vjp(dy))

        actual, expected = by_hand_and_by_jax(params, x, dy)
        chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-14)


@every_layer
def test_backward_matches_finite_differences(case):
    layer, _, x, _ = layer_inputs(case)
    fnn.check_layer(layer, x, jax.random.key(3))


@every_layer
def test_jit_equals_eager_without_nans(case):
    layer, params, x, dy = layer_inputs(case)
    expected = jax.jit(functools.partial(pass_through, layer))(params, x, dy)
    with jax.disable_jit(), jax.debug_nans(True):
        chex.assert_trees_all_close(
            pass_through(layer, params, x, dy), expected, rtol=1e-5, atol=1e-6
        )


@every_layer
def test_vmap_over_examples_equals_the_batch(case):
    layer, params, x, dy = layer_inputs(case)
    y, grads, dx = pass_through(layer, params, x, dy)
    over_examples = jax.vmap(functools.partial(pass_through, layer), (None, 0, 0))
    y_each, grads_each, dx_each = over_examples(params, x, dy)
    chex.assert_trees_all_close((y_each, dx_each), (y, dx), rtol=1e-5, atol=1e-6)
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads_each)
    chex.assert_trees_all_close(summed, grads, rtol=1e-5, atol=1e-6)


@every_layer
def test_batch_of_one_equals_the_example(case):
    layer, params, x, dy = layer_inputs(case, ())
    y, grads, dx = pass_through(layer, params, x, dy)
    batch = pass_through(layer, params, x[None], dy[None])
    chex.assert_trees_all_close(batch, (y[None], grads, dx[None]), rtol=1e-6)


@every_layer
def test_empty_batch_gives_zero_grads(case):
    layer, params, x, dy = layer_inputs(case, (0,))
    y, grads, dx = pass_through(layer, params, x, dy)
    assert y.shape == (0, *case.y)
    assert dx.shape == x.shape
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, params))


@every_layer
@every_dtype
def test_dtypes_are_preserved(case, dtype):
    with jax.enable_x64(True):
        layer, params, x, dy = layer_inputs(case, dtype=dtype)
        results = jax.eval_shape(functools.partial(pass_through, layer), params, x, dy)
        for leaf in jax.tree.leaves(results):
            assert leaf.dtype == dtype


@every_layer
@pytest.mark.parametrize("x_dtype", [jnp.bfloat16, jnp.float64])
def test_x_decides_the_dtype_of_y_and_params_that_of_grads(case, x_dtype):
    with jax.enable_x64(True):
        layer, params, x, dy = layer_inputs(case, dtype=x_dtype)
        params = cast(params, jnp.float32)
        y, grads, dx = jax.eval_shape(functools.partial(pass_through, layer), params, x, dy)
        assert y.dtype == dx.dtype == x_dtype
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
        layer, params, x, dy = layer_inputs(case, (1000,), jnp.bfloat16)
        run = jax.jit(functools.partial(pass_through, layer))
        exact = run(*cast((params, x, dy), jnp.float64))
        actual = cast(run(params, x, dy), jnp.float64)
        for rounded, leaf in zip(jax.tree.leaves(actual), jax.tree.leaves(exact), strict=True):
            assert jnp.max(jnp.abs(rounded - leaf)) < 0.03 * jnp.max(jnp.abs(leaf))


@every_layer
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_wrong_dy_is_refused(case, wrap):
    layer, params, x, dy = layer_inputs(case)
    if not jax.tree.leaves(jax.eval_shape(layer.forward, params, x)[1]):
        return  # the empty Sequential passes on what it gets
    for wrong in (dy[:-1], dy[..., None], dy[0], jnp.ones(dy.shape, jnp.int32)):
        with pytest.raises(ValueError, match=r"expected dy of .* got"):
            wrap(functools.partial(pass_through, layer))(params, x, wrong)


@every_layer
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_wrong_params_are_refused(case, wrap):
    layer, params, x, dy = layer_inputs(case)
    _, residuals = layer.forward(params, x)
    cut = jax.tree.map(lambda leaf: leaf[:-1], params)
    integers = cast(params, jnp.int32)
    for wrong in (None, {"W": x}, (params,) * 20, *([cut, integers] if params else [])):
        with pytest.raises(ValueError, match="expected params"):
            wrap(lambda p: layer.forward(p, x))(wrong)
        with pytest.raises(ValueError, match="expected params"):
            wrap(lambda p: layer.backward(p, residuals, dy))(wrong)


@every_layer
def test_integers_are_refused_as_x(case):
    layer, params, x, _ = layer_inputs(case)
    if jax.tree.leaves(jax.eval_shape(layer.forward, params, x)[1]):
        with pytest.raises(ValueError, match="expected x of a floating dtype, got int32"):
            layer.forward(params, jnp.ones(x.shape, jnp.int32))


@every_layer
def test_layer_is_pure(case):
    layer, params, x, dy = layer_inputs(case)
    before = jax.tree.map(jnp.copy, (params, x, dy))
    first = pass_through(layer, params, x, dy)
    chex.assert_trees_all_equal(first, pass_through(layer, params, x, dy))
    chex.assert_trees_all_equal(before, (params, x, dy))


@every_layer
def test_init_depends_on_the_key_alone(case):
    layer = case.make()
    one, same, other = (layer.init(jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(one, same)
    weights = [leaf for leaf in jax.tree.leaves(one) if leaf.ndim > 1]
    others = [leaf for leaf in jax.tree.leaves(other) if leaf.ndim > 1]
    for weight, other_weight in zip(weights, others, strict=True):
        assert jnp.all(weight != other_weight)


@every_layer
def test_second_call_compiles_nothing(case):
    layer, params, x, dy = layer_inputs(case)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, x, dy):
        return pass_through(layer, params, x, dy)

    run(params, x, dy)
    run(params, x + 1, dy)
