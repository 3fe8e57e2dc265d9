import math

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw, make_network

import fnn


def test_sequential_is_the_composition_of_its_layers():
    first, second = fnn.Linear(3, 4), fnn.Tanh()
    model = fnn.Sequential(first, second)
    params, x, dy = model.init(jax.random.key(0)), draw(1, (5, 3)), draw(2, (5, 4))
    hidden, first_residuals = first.forward(params[0], x)
    y, second_residuals = second.forward((), hidden)
    _, d_hidden = second.backward((), second_residuals, dy)
    grads, dx = first.backward(params[0], first_residuals, d_hidden)

    actual_y, residuals = model.forward(params, x)
    chex.assert_trees_all_equal(actual_y, y)
    chex.assert_trees_all_equal(model.backward(params, residuals, dy), ((grads, ()), dx))


def test_empty_sequential_is_the_identity():
    model = fnn.Sequential()
    x = draw(1, (5, 3))
    assert model.init(jax.random.key(0)) == ()
    assert model.forward((), x) == (x, ())
    assert model.backward((), (), x) == ((), x)


def test_adding_a_layer_leaves_the_others_parameters_alone():
    layers = [fnn.Linear(3, 3) for _ in range(3)]
    key = jax.random.key(0)
    shorter, longer = fnn.Sequential(*layers[:2]).init(key), fnn.Sequential(*layers).init(key)
    chex.assert_trees_all_equal(longer[:2], shorter)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert jnp.all(longer[one]["W"] != longer[other]["W"])


def test_each_layer_gets_its_own_key_and_none_in_evaluation():
    def forward(params, x, key=None):
        return x if key is None else jax.random.normal(key, x.shape), ()

    noise = fnn.Layer(lambda key: (), forward, lambda params, residuals, dy: ((), dy))
    model, x, key = fnn.Sequential(noise, noise), draw(1, (3,)), jax.random.key(0)
    assert jnp.all(model.forward(((), ()), x)[0] == x)
    expected = jax.random.normal(jax.random.fold_in(key, 1), (3,))
    assert jnp.all(model.forward(((), ()), x, key)[0] == expected)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_errors_say_where_they_happened_and_keep_their_traceback(wrap):
    model = fnn.Sequential(fnn.Tanh(), fnn.Sequential(fnn.Linear(3, 4), fnn.Linear(5, 2)))
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"Linear\(5, 2\): expected x of shape \(..., 5\)") as info:
        wrap(model.forward)(params, draw(1, (6, 3)))
    notes = [note for note in info.value.__notes__ if "Sequential" in note]
    assert notes == ["in layer 1 of Sequential, forward"] * 2
    assert any(entry.name == "check_array" for entry in info.traceback)


def test_errors_of_backward_say_where_they_happened():
    model = make_network()
    params = model.init(jax.random.key(0))
    _, residuals = model.forward(params, draw(1, (6, 3)))
    with pytest.raises(ValueError, match="expected dy") as info:
        model.backward(params, residuals, draw(1, (6, 3)))
    assert "in layer 4 of Sequential, backward" in info.value.__notes__


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: (*p, ()), list, lambda p: None])
def test_params_and_residuals_have_one_entry_a_layer(change):
    model, x = make_network(), draw(1, (6, 3))
    params = model.init(jax.random.key(0))
    y, residuals = model.forward(params, x)
    with pytest.raises(ValueError, match="Sequential: expected params to be a tuple of 5 entries"):
        model.forward(change(params), x)
    with pytest.raises(ValueError, match="Sequential: expected params to be a tuple of 5 entries"):
        model.backward(change(params), residuals, y)
    with pytest.raises(ValueError, match="expected residuals to be a tuple of 5 entries, got"):
        model.backward(params, change(residuals), y)


def test_residuals_are_the_activations_and_each_of_them_once():
    """x of every Linear and y of the last layer: an activation's y is the next Linear's x."""
    model = make_network()
    _, residuals = model.forward(model.init(jax.random.key(0)), draw(1, (6, 3)))
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(residuals)}.values()
    assert sorted(array.shape for array in arrays) == [(6, 3), (6, 5), (6, 8)]


def test_residual_adds_x_and_parallel_joins_or_adds_outputs():
    x, layer = draw(1, (5, 3)), fnn.Tanh()
    y = jnp.tanh(x)
    assert jnp.all(fnn.Residual(layer).forward((), x)[0] == x + y)
    both = fnn.Parallel(layer, fnn.Identity())
    assert jnp.all(both.forward(((), ()), x)[0] == jnp.concatenate([y, x], axis=-1))
    total = fnn.Parallel(layer, fnn.Identity(), combine="sum")
    assert jnp.all(total.forward(((), ()), x)[0] == y + x)


def constant(value):
    """A layer whose y is `value`, and which hands its dy on as its grads."""
    return fnn.Layer(
        lambda key: jnp.zeros_like(value),
        lambda params, x, key=None: (value, x),
        lambda params, x, dy: (dy, jnp.zeros_like(x)),
    )


@pytest.mark.parametrize("axis", [-1, -2, -3, 0, 1, 2])
def test_outputs_stand_side_by_side_along_any_axis(axis):
    parts = [jax.device_get(draw(seed, (2, 3, 4))) for seed in (1, 2)]
    ys = [parts[0], parts[1].take([0, 1], axis)]
    layer = fnn.Parallel(*map(constant, ys), axis=axis)
    params = layer.init(jax.random.key(0))
    y, residuals = layer.forward(params, jnp.ones(()))
    assert jnp.all(y == jnp.concatenate(ys, axis))
    chex.assert_trees_all_equal(layer.backward(params, residuals, y)[0], tuple(ys))


def test_dy_of_a_factor_is_dy_times_the_others_also_at_zero_and_infinity():
    factors = [[0.0, 0.0, 2.0, 3.0], [5.0, 0.0, jnp.inf, 1.0], [7.0, 8.0, 1.0, -1.0]]
    for count, expected in (
        (1, [[1.0, 1.0, 1.0, 2.0]]),
        (2, [[5.0, 0.0, jnp.inf, 2.0], [0.0, 0.0, 2.0, 6.0]]),
        (3, [[35.0, 0.0, jnp.inf, -2.0], [0.0, 0.0, 2.0, -6.0], [0.0, 0.0, jnp.inf, 6.0]]),
    ):
        layer = fnn.Parallel(*map(constant, map(jnp.array, factors[:count])), combine="product")
        params = layer.init(jax.random.key(0))
        with jax.debug_nans(True):
            y, residuals = layer.forward(params, jnp.ones(()))
            grads, _ = layer.backward(params, residuals, jnp.array([1.0, 1.0, 1.0, 2.0]))
        assert y.tolist() == [math.prod(column) for column in zip(*factors[:count], strict=True)]
        assert [grad.tolist() for grad in grads] == expected


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("gate", [(2, 5), (2, 3, 5), (5,)])
def test_a_gate_is_repeated_along_the_axes_it_lacks_before_its_last(gate, order):
    image, dy, gates = draw(1, (2, 3, 4, 5)), draw(2, (2, 3, 4, 5)), draw(3, gate)
    repeated = gates.reshape(*gate[:-1], *[1] * (4 - len(gate)), 5)
    layer = fnn.Parallel(*[constant(image), constant(gates)][::order], combine="product")
    params = layer.init(jax.random.key(0))
    y, residuals = layer.forward(params, jnp.ones(()))
    d_image, d_gates = layer.backward(params, residuals, dy)[0][::order]
    chex.assert_trees_all_close(y, image * repeated, rtol=1e-6)
    chex.assert_trees_all_close(d_image, dy * repeated, rtol=1e-6)
    lacking = tuple(range(len(gate) - 1, 3))
    chex.assert_trees_all_close(d_gates, jnp.sum(dy * image, lacking), rtol=1e-5)


@pytest.mark.parametrize("gate", [(2, 4), (3, 5), (2, 4, 5), (2, 1, 1, 5), (2, 1), (1,), ()])
def test_no_other_shape_is_a_gate(gate):
    layer = fnn.Parallel(
        constant(jnp.ones((2, 3, 4, 5))), constant(jnp.ones(gate)), combine="product"
    )
    with pytest.raises(ValueError, match="Parallel: expected outputs to multiply that fit, got"):
        layer.forward(layer.init(jax.random.key(0)), jnp.ones(()))


def test_factors_of_16_bits_are_multiplied_and_gates_added_up_in_float32():
    image, gate = jnp.full((300, 2), 1.0, jnp.bfloat16), jnp.full(2, 3.0, jnp.bfloat16)
    factors = [jnp.full((300, 2), value, jnp.float16) for value in (300.0, 300.0, 2.0**-10)]
    for ys, expected in (([image, gate], 3), (factors, 300 * 300 * 2.0**-10)):
        layer = fnn.Parallel(*map(constant, ys), combine="product")
        params = layer.init(jax.random.key(0))
        y, residuals = layer.forward(params, jnp.ones(()))
        grads, _ = layer.backward(params, residuals, jnp.ones_like(y))
        assert jnp.all(y == jnp.array(expected, y.dtype))
        assert {grad.dtype for grad in grads} == {y.dtype}
    layer = fnn.Parallel(constant(image), constant(gate), combine="product")
    params = layer.init(jax.random.key(0))
    _, residuals = layer.forward(params, jnp.ones(()))
    assert layer.backward(params, residuals, image)[0][1].tolist() == [300, 300]


def test_a_print_shows_how_branches_are_combined():
    for settings, shown in (
        ({}, "combine='concat'"),
        ({"axis": -2}, "combine='concat',\n  axis=-2"),
        ({"combine": "product"}, "combine='product'"),
    ):
        layer = fnn.Parallel(fnn.Tanh(), fnn.Tanh(), **settings)
        assert repr(layer) == f"Parallel(\n  0: Tanh(),\n  1: Tanh(),\n  {shown}\n)"
        assert repr(layer.rebuild(*layer.layers)) == repr(layer)


def test_swiglu_is_a_product_of_two_branches():
    gate = fnn.Sequential(fnn.Linear(3, 4, bias=False), fnn.SiLU())
    swiglu = fnn.Parallel(fnn.Linear(3, 4, bias=False), gate, combine="product")
    W, V, x = draw(1, (4, 3)), draw(2, (4, 3)), draw(3, (5, 3))
    y, residuals = swiglu.forward(({"W": W}, ({"W": V}, ())), x)
    chex.assert_trees_all_close(y, (x @ W.T) * jax.nn.silu(x @ V.T), rtol=1e-5)
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(residuals)}.values()
    assert sorted(array.shape for array in arrays) == [(5, 3), (5, 4), (5, 4), (5, 4)]


def test_branches_draw_and_drop_independently():
    drop = fnn.Dropout(0.5)
    both = fnn.Parallel(drop, drop, combine="sum")
    y, _ = both.forward(((), ()), jnp.ones(1000), jax.random.key(0))
    assert set(y.tolist()) == {0.0, 2.0, 4.0}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_outputs_that_do_not_fit_are_refused(wrap):
    wide, flat = fnn.Linear(3, 4), fnn.Layer(lambda key: (), lambda p, x, key=None: (x[0], x), None)
    for layer, message in (
        (fnn.Residual(wide), r"Residual: expected the layer's y of shape \(5, 3\), got \(5, 4\)"),
        (
            fnn.Parallel(wide, fnn.Tanh(), combine="sum"),
            "Parallel: expected outputs to sum that fit, got float32 of shape",
        ),
        (
            fnn.Parallel(fnn.Tanh(), fnn.Tanh(), fnn.Linear(3, 1), combine="sum"),
            r"to sum that fit, got .*, float32 of shape \(5, 1\)",
        ),
        (fnn.Parallel(fnn.Tanh(), flat), "Parallel: expected outputs to concat that fit, got"),
        (fnn.Parallel(fnn.Tanh(), wide, axis=-2), "outputs to concat that fit, got float32 of sh"),
        (fnn.Parallel(fnn.Tanh(), axis=-3), "outputs to concat that fit, got float32 of shape"),
        (
            fnn.Parallel(fnn.Tanh(), wide, combine="product"),
            "Parallel: expected outputs to multiply that fit, got float32 of shape",
        ),
    ):
        params = layer.init(jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            wrap(layer.forward)(params, jnp.ones((5, 3)))


def test_errors_inside_branches_say_where():
    model = fnn.Sequential(fnn.Residual(fnn.Parallel(fnn.Tanh(), fnn.Linear(4, 3), combine="sum")))
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"Linear\(4, 3\): expected x") as caught:
        model.forward(params, jnp.ones((5, 3)))
    assert caught.value.__notes__ == [
        "in layer 1 of Parallel, forward",
        "in Residual, forward",
        "in layer 0 of Sequential, forward",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.Residual(fnn.Tanh), "Residual: expected a Layer at position 0, got <func"),
        (lambda: fnn.Parallel(), "Parallel: expected at least one layer, got none"),
        (lambda: fnn.Parallel(3), "Parallel: expected a Layer at position 0, got 3"),
        (lambda: fnn.Parallel(fnn.Tanh(), combine="mean"), "expected combine 'concat', 'sum' or"),
        (lambda: fnn.Parallel(fnn.Tanh(), axis=1.5), "Parallel: expected axis to be an integer"),
        (
            lambda: fnn.Parallel(fnn.Tanh(), combine="sum", axis=-2),
            "Parallel: expected an axis with combine='concat' alone, got 'sum'",
        ),
    ],
)
def test_combinators_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("combine", ["concat", "sum", "product"])
def test_branches_get_dy_in_ys_dtype_and_of_its_shape_alone(combine):
    both = fnn.Parallel(fnn.Identity(), fnn.Identity(), combine=combine)
    y, residuals = both.forward(((), ()), jnp.ones((5, 3), jnp.bfloat16))
    _, dx = both.backward(((), ()), residuals, jnp.ones(y.shape, jnp.float32))
    assert dx.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="Parallel: expected dy of shape"):
        both.backward(((), ()), residuals, jnp.ones((5, 7)))
    scalars = fnn.Parallel(fnn.Tanh(), fnn.Sigmoid(), combine="sum")
    assert scalars.forward(((), ()), jnp.array(0.0))[0] == 0.5


def test_residual_takes_dy_of_another_dtype():
    layer = fnn.Residual(fnn.Linear(3, 3))
    params, x = layer.init(jax.random.key(0)), jnp.ones((5, 3), jnp.bfloat16)
    _, residuals = layer.forward(params, x)
    _, dx = layer.backward(params, residuals, jnp.ones((5, 3), jnp.float32))
    assert dx.dtype == jnp.bfloat16


def test_branches_of_16_bits_are_added_up_in_float32():
    """A sum of 512 ones stops at 256 when it accumulates in bfloat16."""
    many = fnn.Parallel(*[fnn.Identity()] * 512, combine="sum")
    params, ones = many.init(jax.random.key(0)), jnp.ones((2, 3), jnp.bfloat16)
    y, residuals = many.forward(params, ones)
    _, dx = many.backward(params, residuals, ones)
    assert jnp.all(y == 512)
    assert jnp.all(dx == 512)
    assert y.dtype == dx.dtype == jnp.bfloat16


def test_branches_have_outputs_of_one_dtype():
    wide = fnn.Embedding(5, 3)
    both = fnn.Parallel(wide, fnn.with_compute_dtype(wide, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"that fit, got float32 of shape \(1, 3\), bfloat16 of"):
        both.forward(both.init(jax.random.key(0)), jnp.array([2]))


def test_branches_take_lists():
    for layer in (fnn.Residual(fnn.Identity()), fnn.Parallel(fnn.Identity(), combine="sum")):
        y, _ = layer.forward(layer.init(jax.random.key(0)), [1.0, 2.0])
        assert y.shape == (2,)
