"""Each transform beside the same mathematics in plain JAX, alone and around each other."""

import functools
import operator
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import cast, draw
from jax.flatten_util import ravel_pytree
from test_costs import num_bytes

import fnn

MAX_NORM = 0.1
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
key = jax.random.key(0)


def as_it_is(function):
    return function


def one_after_another(function):
    def repeated(params, x):
        for copy in (0, 1):
            x = function(jax.tree.map(operator.itemgetter(copy), params), x)
        return x

    return repeated


def half_reversed(x):
    fixed = jax.lax.stop_gradient(x)
    return fixed - (x - fixed) / 2


@jax.custom_vjp
def clipped(x):
    return x


def clip_rows(_, dx):
    norms = jnp.linalg.norm(dx, axis=-1, keepdims=True)
    return (jnp.where(norms > MAX_NORM, dx * MAX_NORM / norms, dx),)


clipped.defvjp(lambda x: (x, None), clip_rows)

# A transform of a layer, and the same of a function (params, x) -> y.
TRANSFORMS = {
    "remat": (fnn.remat, as_it_is),
    "repeat": (lambda layer: fnn.repeat(layer, 2), one_after_another),
    "float64": (lambda layer: fnn.with_compute_dtype(layer, jnp.float64), as_it_is),
    "scale": (
        lambda layer: fnn.scale_gradient(layer, -0.5),
        lambda function: lambda params, x: function(params, half_reversed(x)),
    ),
    "clip": (
        lambda layer: fnn.clip_gradient(layer, MAX_NORM),
        lambda function: lambda params, x: function(params, clipped(x)),
    ),
    "observe": (lambda layer: fnn.observe(layer, lambda *report: None), as_it_is),
    "residual": (fnn.Residual, lambda function: lambda params, x: x + function(params, x)),
    "sequential": (
        lambda layer: fnn.Sequential(layer, fnn.Tanh()),
        lambda function: lambda params, x: jnp.tanh(function(params[0], x)),
    ),
}
# Every transform stands once directly around every other.
ORDERS = [
    [list(TRANSFORMS)[(step + shift) % 8] for step in (0, 1, 7, 2, 6, 3, 5, 4)]
    for shift in range(8)
]


def block(*more):
    return fnn.Sequential(fnn.Linear(3, 3), fnn.Tanh(), *more)


def inputs(layer, phase):
    """Parameters that are not at their initial values, x and dy, all in phase's dtype."""
    rows = jnp.zeros((4, 3), phase.dtype)
    like = jax.eval_shape(layer.init, key), rows, rows
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, phase.dtype), like)
    numbers, unravel = ravel_pytree(zeros)
    return unravel(jnp.sin(phase + jnp.square(jnp.arange(numbers.size, dtype=phase.dtype))))


def passes(layer, params, x, dy, key=None):
    """y, grads and dx of one forward and one backward pass."""
    y, residuals = layer.forward(params, x, key)
    return y, *layer.backward(params, residuals, dy)


@pytest.mark.parametrize("order", ORDERS, ids=":".join)
def test_gradients_in_every_order_are_those_of_jax_vjp(order):
    linear = fnn.Linear(3, 3)
    layer, function = linear, lambda params, x: linear.forward(params, x)[0]
    for name in order:
        of_layer, of_function = TRANSFORMS[name]
        layer, function = of_layer(layer), of_function(function)
    with jax.enable_x64(True):

        @quick_jit
        def by_hand_and_by_jax(phase):
            params, x, dy = inputs(layer, phase)
            y, vjp = jax.vjp(function, params, x)
            return passes(layer, params, x, dy), (y, *vjp(dy))

        actual, expected = by_hand_and_by_jax(jnp.ones(()))
        chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-15)
        assert all(leaf.all() for leaf in jax.tree.leaves(jax.device_get(actual)))


def test_what_changes_no_gradient_passes_check_layer():
    layer = fnn.with_compute_dtype(fnn.repeat(fnn.remat(block()), 2), jnp.float64)
    fnn.check_layer(layer, draw(1, (2, 3)), key)


def test_dtypes_are_preserved():
    others = (fnn.freeze, None), (fnn.per_example, None)
    for of_layer, _ in (*TRANSFORMS.values(), *others):
        layer = of_layer(block())
        params = jax.eval_shape(layer.init, key)
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
            with jax.enable_x64(True):
                rows = jax.ShapeDtypeStruct((4, 3), dtype)
                run = functools.partial(passes, layer)
                y, grads, dx = jax.eval_shape(run, params, rows, rows)
            assert (y.dtype, dx.dtype) == (dtype, dtype)
            assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


def test_jit_vmap_and_eager_agree_without_nans():
    layer = fnn.repeat(fnn.clip_gradient(fnn.remat(block()), MAX_NORM), 2)
    params, x, dy = jax.jit(functools.partial(inputs, layer))(jnp.ones(()))
    run = functools.partial(passes, layer)
    y, grads, dx = expected = jax.device_get(jax.jit(run)(params, x, dy))
    with jax.disable_jit(), jax.debug_nans(True):
        chex.assert_trees_all_close(run(params, x, dy), expected, rtol=1e-5, atol=1e-6)
    each = jax.jit(jax.vmap(run, (None, 0, 0)))(params, x, dy)
    y_each, grads_each, dx_each = jax.device_get(each)
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads_each)
    chex.assert_trees_all_close((y_each, summed, dx_each), (y, grads, dx), rtol=1e-5, atol=1e-6)


def test_jvp_of_transformed_layers_is_that_of_the_bare_ones():
    bare = fnn.Sequential(block(), block())
    wrapped = fnn.Sequential(fnn.remat(block()), fnn.clip_gradient(fnn.remat(block()), 1e9))
    params, x, dy = inputs(bare, jnp.ones(()))

    def second_order(layer):
        run = jax.jit(lambda params: passes(layer, params, x, dy.at[0].set(0)))
        return jax.jvp(run, (params,), (params,))

    chex.assert_trees_all_close(second_order(wrapped), second_order(bare), rtol=1e-5, atol=1e-6)


# remat


def test_remat_keeps_x_alone():
    layer = fnn.remat(block())
    x = draw(1, (4, 3))
    residuals = layer.forward(layer.init(key), x)[1]
    assert [leaf is x for leaf in jax.tree.leaves(residuals)] == [True]


def test_remats_second_forward_is_behind_a_barrier_on_a_gpu():
    """Without one XLA would find the first pass to have computed the same."""
    layer = fnn.remat(block())
    args = jax.eval_shape(lambda: inputs(layer, jnp.ones(())))
    traced = jax.jit(lambda *args: passes(layer, *args)).trace(*args)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    (barrier,) = re.findall(r"optimization_barrier (.*) : ", program)
    assert barrier.count("%") == len(jax.tree.leaves(args))


def test_remats_second_forward_is_traced_once_without_jit():
    calls = []

    def forward(params, x, key=None):
        calls.append(x)
        return block().forward(params, x, key)

    layer = fnn.remat(block()._replace(forward=forward))
    args = inputs(layer, jnp.ones(()))
    passes(layer, *args)
    calls.clear()
    passes(layer, *args)
    assert len(calls) == 1


# repeat


def test_repeat_of_remat_equals_sequential_of_the_copies():
    layer = block(fnn.Dropout(0.5))
    sequential, repeated = fnn.Sequential(layer, layer), fnn.repeat(fnn.remat(layer), 2)

    @jax.jit
    def both(key, x, dy):
        params = sequential.init(key)
        y, grads, dx = passes(sequential, params, x, dy, key)
        expected = (
            *(jax.tree.map(lambda *leaves: jnp.stack(leaves), *it) for it in (params, grads)),
            y,
            dx,
        )
        params = repeated.init(key)
        y, grads, dx = passes(repeated, params, x, dy, key)
        return (params, grads, y, dx), expected

    chex.assert_trees_all_close(*both(key, draw(1, (4, 3)), draw(2, (4, 3))), rtol=1e-5, atol=1e-7)


def test_repeats_residuals_are_the_copies_each_array_once():
    layer = block(fnn.Linear(3, 3), fnn.Tanh())
    x = draw(1, (4, 3))
    kept = num_bytes(layer.forward(layer.init(key), x)[1])
    repeated = fnn.repeat(layer, 5)
    assert num_bytes(repeated.forward(repeated.init(key), x)[1]) == 5 * kept


def test_repeat_takes_layers_without_residuals_and_params():
    x = draw(1, (4, 3))
    for layer, factor in (
        (fnn.Identity(), 1),
        (fnn.scale_gradient(fnn.Identity(), -2.0), -8),
        (fnn.Residual(fnn.Identity()), 8),
    ):
        repeated = fnn.repeat(layer, 3)
        params = repeated.init(key)
        _, residuals = repeated.forward(params, x)
        assert jnp.all(repeated.backward(params, residuals, x)[1] == factor * x)


# with_compute_dtype


def dtypes_of_products(function, *args):
    program = jax.jit(function).lower(*args).as_text()
    found = re.findall(r"dot_general .* : \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\)", program)
    return {dtype for operands in found for dtype in operands}


def test_products_and_residuals_have_the_compute_dtype():
    low = fnn.with_compute_dtype(fnn.repeat(fnn.remat(block()), 2), jnp.bfloat16)
    params, x, dy = inputs(low, jnp.ones(()))
    assert dtypes_of_products(functools.partial(passes, low), params, x, dy) == {"bf16"}
    residuals = jax.tree.leaves(jax.eval_shape(low.forward, params, x)[1])
    assert {leaf.dtype for leaf in residuals if leaf.size} == {jnp.dtype(jnp.bfloat16)}


def test_compute_dtype_reaches_what_follows_an_embedding():
    low = fnn.with_compute_dtype(
        fnn.remat(fnn.Sequential(fnn.Embedding(9, 3), block())), "bfloat16"
    )
    params, x, dy = low.init(key), jnp.arange(4), draw(1, (4, 3))
    run = functools.partial(passes, low)
    assert dtypes_of_products(run, params, x, dy) == {"bf16"}
    y, grads, dx = jax.eval_shape(run, params, x, dy)
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes((grads, dx), (params, x))


def test_compute_dtype_is_the_layer_on_converted_arrays():
    with jax.enable_x64(True):
        params, x, dy = jax.jit(functools.partial(inputs, block()))(jnp.ones((), jnp.float64))
        low = fnn.with_compute_dtype(block(), jnp.float32)
        actual = jax.jit(functools.partial(passes, low))(params, x, dy)
        run = jax.jit(functools.partial(passes, block()))
        expected = run(*cast((params, x, dy), jnp.float32))
        chex.assert_trees_all_equal(actual, cast(expected, jnp.float64))


# freeze, scale_gradient, clip_gradient


@pytest.mark.parametrize("wrap", [as_it_is, fnn.remat, fnn.per_example])
def test_frozen_layers_get_no_gradient_and_pass_on_dx(wrap):
    layer, linear = wrap(fnn.Linear(3, 3)), fnn.Linear(3, 3)

    @jax.jit
    def run(phase):
        params, x, dy = inputs(layer, phase)
        layers = layer, fnn.freeze(layer), wrap(fnn.freeze(linear))
        of_nan = passes(fnn.freeze(layer), params, x, dy * jnp.nan)
        return [*(passes(one, params, x, dy) for one in layers), of_nan]

    (y, grads, dx), frozen, inside, of_nan = jax.device_get(run(jnp.ones(())))
    chex.assert_trees_all_equal(frozen, (y, jax.tree.map(lambda leaf: 0 * leaf, grads), dx))
    chex.assert_trees_all_equal(inside, frozen)
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_nan[1]))


def with_backward(dx):
    """A layer whose dx is the given one, whatever dy."""
    return fnn.Layer(lambda key: (), lambda p, x, key=None: (x, ()), lambda p, r, dy: ((), dx))


def test_scale_gradient_takes_traced_factors():
    dx = draw(1, (4, 3), jnp.bfloat16)
    scaled = jax.jit(lambda c: fnn.scale_gradient(with_backward(dx), c).backward((), (), dx)[1])
    assert jnp.all(scaled(-1.0) == -dx)
    assert jnp.all(scaled(0.0) == 0)


def clip(dx, max_norm, **settings):
    return fnn.clip_gradient(with_backward(dx), max_norm, **settings).backward((), (), dx)[1]


def test_clip_gradient_bounds_every_examples_norm_alone():
    dx = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3e30, 4e30]])
    expected = jnp.array([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.6, 0.8]])
    assert jnp.allclose(clip(dx, 1.0), expected)
    assert jnp.allclose(jax.jit(functools.partial(clip, dx))(2.0)[0], 2 * expected[0])
    no_bound = jax.jit(functools.partial(clip, dx[:3]))
    chex.assert_trees_all_equal(no_bound(jnp.inf), dx[:3])
    assert not jnp.any(jnp.isnan(no_bound(0.0)))
    low = clip(jnp.full((2, 4096), 8.0, jnp.bfloat16), 1.0)
    assert jnp.allclose(low, 1 / 64)


def test_clip_gradient_takes_an_example_whole():
    dx = 9 * draw(1, (2, 4, 4, 3))
    clip_one = functools.partial(clip, max_norm=1.0, axis=(-3, -2, -1))

    @jax.jit
    def run(dx):
        expected = [image / jnp.linalg.norm(image.ravel()) for image in dx]
        alone = [jnp.linalg.norm(clip(row, 1.0)) for row in (dx[0, 0, 0], dx[0, 0, 0, 0])]
        return clip(dx, 1.0), jax.vmap(clip_one)(dx), jnp.stack(expected), jnp.stack(alone)

    clipped_dx, one_by_one, expected, norms = run(dx)
    chex.assert_trees_all_close(clipped_dx, expected, rtol=1e-5, atol=1e-8)
    chex.assert_trees_all_close(one_by_one, clipped_dx, rtol=1e-5, atol=1e-8)
    assert jnp.allclose(norms, 1)
    with pytest.raises(ValueError, match="out of bounds") as info:
        clip(dx[0, 0], 1.0, axis=(-3, -2, -1))
    assert "in clip_gradient, backward" in info.value.__notes__


@pytest.mark.parametrize(
    "wrap", [lambda f: fnn.scale_gradient(f, 2.0), lambda f: fnn.clip_gradient(f, 1.0)]
)
def test_the_dx_of_integers_stays(wrap):
    layer, x = wrap(fnn.Embedding(9, 3)), jnp.arange(4)
    params = layer.init(key)
    _, _, dx = passes(layer, params, x, jnp.ones((4, 3)))
    assert dx.dtype == x.dtype
    assert not dx.any()


# per_example


MIXED = fnn.Sequential(
    fnn.Conv2d(2, 3, 2), fnn.MaxPool2d(2), fnn.Flatten(), fnn.LayerNorm(12), fnn.Linear(12, 2)
)


def test_per_example_grads_are_vmapped_jax_grads():
    mse = fnn.MSELoss("sum")
    with jax.enable_x64(True):
        params = cast(MIXED.init(key), jnp.float64)
        x, target = draw(1, (3, 5, 5, 2), jnp.float64), draw(2, (3, 2), jnp.float64)
        by_jax = jax.grad(lambda p, x, t: mse.forward(MIXED.forward(p, x)[0], t)[0])

        @quick_jit
        def by_hand_and_by_jax(*args):
            _, grads = fnn.loss_and_grads(fnn.per_example(MIXED), mse)(*args)
            return grads, jax.vmap(by_jax, (None, 0, 0))(*args)

        grads, expected = by_hand_and_by_jax(params, x, target)
        chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-13)


def test_per_example_examples_draw_from_keys_of_their_own():
    layer = fnn.per_example(fnn.Dropout(0.5))
    y, _ = jax.jit(layer.forward)((), jnp.ones((8, 16)), key)
    assert len({tuple(row) for row in y.tolist()}) == 8
    first, _ = fnn.Dropout(0.5).forward((), jnp.ones(16), jax.random.fold_in(key, 0))
    assert jnp.all(y[0] == first)


# as_jax_function


def test_jax_grad_of_as_jax_function_is_the_layers_backward():
    model = fnn.Sequential(fnn.Embedding(9, 3), fnn.Dropout(0.5), fnn.Linear(3, 3))
    function = fnn.as_jax_function(model)
    params, x, dy = model.init(key), jnp.arange(4), draw(1, (4, 3))

    @jax.jit
    def by_jax_and_by_hand(params, dy):
        grads = jax.grad(lambda p: jnp.vdot(function(p, x, key=key), dy))(params)
        return grads, passes(model, params, x, dy, key)[1]

    chex.assert_trees_all_close(*by_jax_and_by_hand(params, dy), rtol=1e-6)
    reverse = fnn.as_jax_function(fnn.scale_gradient(fnn.Tanh(), -1.0))
    each = jax.vmap(jax.grad(lambda x: reverse((), x)))(jnp.array([0.0, 1.0]))
    assert jnp.allclose(each, jnp.array([-1.0, jnp.tanh(1.0) ** 2 - 1]))


# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.remat(fnn.Tanh), "remat: expected a Layer at position 0, got <function Tanh"),
        (lambda: fnn.repeat(fnn.Tanh, 2), "repeat: expected a Layer"),
        (lambda: fnn.repeat(fnn.Tanh(), 0), "repeat: expected n to be an integer >= 1, got 0"),
        (lambda: fnn.with_compute_dtype(None, jnp.float32), "with_compute_dtype: expected a Layer"),
        (lambda: fnn.with_compute_dtype(fnn.Tanh(), int), "expected a floating dtype, got <class"),
        (lambda: fnn.with_compute_dtype(fnn.Tanh(), None), "expected a floating dtype, got None"),
        (lambda: fnn.with_compute_dtype(fnn.Tanh(), "f17"), "expected a floating dtype, got .f17"),
        (lambda: fnn.freeze([fnn.Tanh()]), "freeze: expected a Layer"),
        (lambda: fnn.scale_gradient(None, 1), "scale_gradient: expected a Layer"),
        (
            lambda: fnn.scale_gradient(fnn.Tanh(), float("-inf")),
            "factor to be a finite number, got",
        ),
        (lambda: fnn.clip_gradient(fnn.Tanh(), 0), "clip_gradient: expected max_norm .* above 0"),
        (lambda: fnn.per_example(fnn.Tanh), "per_example: expected a Layer"),
        (lambda: fnn.as_jax_function(fnn.Tanh), "as_jax_function: expected a Layer"),
        (lambda: fnn.observe(fnn.Tanh, print), "observe: expected a Layer"),
        (lambda: fnn.observe(fnn.Tanh(), None), "observe: expected callback to be a function"),
    ],
)
def test_transforms_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_repeat_and_per_example_refuse_arrays_that_do_not_fit():
    repeated, x = fnn.repeat(fnn.Linear(3, 3), 2), jnp.ones((4, 3))
    wider, each = fnn.repeat(fnn.Linear(3, 4), 2), fnn.per_example(fnn.Tanh())

    def attempt(layer, x, dy, params_of=None):
        params = jax.eval_shape((params_of or layer).init, key)
        return jax.eval_shape(functools.partial(passes, layer), params, x, dy)

    with pytest.raises(ValueError, match="repeat: expected params with a first axis of 2, got"):
        attempt(repeated, x, x, params_of=fnn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"repeat: expected dy of shape \(4, 3\), got \(3,\)"):
        attempt(repeated, x, x[0])
    with pytest.raises(ValueError, match=r"Linear\(3, 3\): expected x") as info:
        attempt(repeated, x[:, :2], x)
    assert "in repeat, forward" in info.value.__notes__
    with pytest.raises(
        ValueError, match=r"expected y to be like x, float32 of shape \(4, 3\), got"
    ):
        attempt(wider, x, x)
    with pytest.raises(ValueError, match=r"per_example: expected x of shape \(batch, ...\), got"):
        attempt(each, x[0, 0], x[0, 0])
    with pytest.raises(ValueError, match=r"per_example: expected dy of shape \(4, 3\), got"):
        attempt(each, x, x[:2])
