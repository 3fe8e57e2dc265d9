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
        (lambda: fnn.Parallel(fnn.Tanh(), combine="mean"), "expected combine 'concat' or 'sum'"),
    ],
)
def test_combinators_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("combine", ["concat", "sum"])
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
