import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

KEY = jax.random.key(7)
block = fnn.Sequential(fnn.Linear(3, 3), fnn.Dropout(0.3))


def run(rate, x, key=KEY):
    layer = fnn.Dropout(rate)
    y, residuals = layer.forward((), x, key)
    return y, layer.backward((), residuals, jnp.ones_like(x))[1]


def test_a_share_of_rate_is_dropped_and_the_mean_stays():
    y, dx = run(0.25, jnp.ones((400, 500)))
    assert jnp.abs(jnp.mean(y == 0) - 0.25) < 0.005
    assert jnp.unique(y).tolist() == [0, jnp.float32(1 / 0.75)]
    assert jnp.all(dx == y)


def test_without_a_key_nothing_is_dropped():
    x = draw(1, (5, 3))
    y, dx = run(0.9, x, None)
    assert y is x
    assert jnp.all(dx == 1)


@pytest.mark.parametrize(("rate", "expected"), [(0, 1), (0.0, 1), (1, 0), (1.0, 0)])
def test_rates_of_0_and_1_drop_nothing_and_everything(rate, expected):
    with jax.debug_nans(True):
        y, dx = run(rate, jnp.ones((5, 3)))
    assert jnp.all(y == expected)
    assert jnp.all(dx == expected)


def test_a_dropped_infinity_is_zero():
    y, _ = run(0.5, jnp.full(100, jnp.inf))
    assert jnp.all((y == 0) | (y == jnp.inf))


def test_the_mask_depends_on_the_key_alone():
    x = jnp.ones(100)
    chex.assert_trees_all_equal(run(0.5, x), run(0.5, x))
    assert jnp.any(run(0.5, x)[0] != run(0.5, x, jax.random.key(8))[0])


def test_backward_is_that_of_the_masked_map():
    layer, x, dy = fnn.Dropout(0.3), draw(1, (5, 3)), draw(2, (5, 3))

    @jax.jit
    def by_hand_and_by_jax(x, dy):
        residuals = layer.forward((), x, KEY)[1]
        vjp = jax.vjp(lambda x: layer.forward((), x, KEY)[0], x)[1]
        return layer.backward((), residuals, dy)[1], vjp(dy)[0]

    chex.assert_trees_all_close(*by_hand_and_by_jax(x, dy), rtol=1e-6)
    fnn.check_layer(fnn.Sequential(fnn.Linear(3, 3), layer), x, KEY)


def test_residuals_are_a_byte_an_element_or_nothing():
    x = jnp.ones((10, 4), jnp.bfloat16)
    for key, num_bytes in ((KEY, 40), (None, 0)):
        _, residuals = fnn.Dropout(0.5).forward((), x, key)
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(residuals)) == num_bytes


def test_the_rate_may_be_traced():
    rates = jnp.array([0.1, 0.9])
    shares = jax.vmap(lambda rate: jnp.mean(run(rate, jnp.ones(10_000))[0] == 0))(rates)
    assert jnp.allclose(shares, rates, atol=0.02)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.5", None, True, jnp.ones(2)])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=r"Dropout: expected rate to be a .*number"):
        fnn.Dropout(rate)
    with pytest.raises(ValueError, match=r"StochasticDepth: expected rate to be a .*number"):
        fnn.StochasticDepth(block, rate)


def test_layers_of_a_network_drop_independently():
    model = fnn.Sequential(fnn.Dropout(0.5), fnn.Identity(), fnn.Dropout(0.5))
    y, _ = model.forward(((), (), ()), jnp.ones(10_000), KEY)
    assert jnp.abs(jnp.mean(y > 0) - 0.25) < 0.02


# StochasticDepth


def passes(layer, params, x, dy, key=KEY):
    """y, grads and dx of one forward and one backward pass."""
    y, residuals = layer.forward(params, x, key)
    return y, *layer.backward(params, residuals, dy)


def test_a_share_of_rate_of_the_examples_is_dropped_whole():
    x = jnp.ones((20_000, 2, 3))
    y, _, dx = passes(fnn.StochasticDepth(fnn.Identity(), 0.25), (), x, x)
    kept = y[:, 0, 0]
    assert abs(jnp.mean(kept == 0) - 0.25) < 0.01
    assert jnp.unique(kept).tolist() == [0, jnp.float32(1 / 0.75)]
    assert jnp.all(y == kept[:, None, None])
    assert jnp.all(dx == y)


def test_an_example_without_a_batch_axis_is_dropped_whole():
    image = jnp.ones((4, 4, 3))
    for x, axis in ((jnp.ones(5), None), (jnp.ones(()), None), (image, (-3, -2, -1))):
        layer = fnn.StochasticDepth(fnn.Identity(), 0.5, axis=axis)
        keys = jax.random.split(KEY, 64)
        ys = jax.jit(jax.vmap(lambda key: layer.forward((), x, key)[0]))(keys)  # noqa: B023
        assert all(jnp.unique(y).size == 1 for y in ys)
        assert jnp.unique(ys).tolist() == [0, 2]


def test_without_a_key_it_is_the_layer():
    layer, x = fnn.StochasticDepth(fnn.Linear(3, 3), 0.9), draw(1, (5, 3))
    params = layer.init(KEY)
    chex.assert_trees_all_equal(params, fnn.Linear(3, 3).init(KEY))
    chex.assert_trees_all_equal(
        passes(layer, params, x, x, None), passes(fnn.Linear(3, 3), params, x, x, None)
    )


def test_the_layer_and_the_mask_have_keys_of_their_own():
    layer, x = fnn.StochasticDepth(fnn.Dropout(0.5), 0.5), jnp.ones((1000, 4))
    y, residuals = layer.forward((), x, KEY)
    inside, _ = fnn.Dropout(0.5).forward((), x, jax.random.fold_in(KEY, 0))
    mask, _ = fnn.Dropout(0.5).forward((), x[:, :1], jax.random.fold_in(KEY, 1))
    assert jnp.all(y == inside * mask)
    assert [leaf.nbytes for leaf in jax.tree.leaves(residuals)] == [4000, 1000]


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_rate_of_0_is_the_layer_and_a_rate_of_1_drops_all(rate):
    layer, x = fnn.StochasticDepth(fnn.Linear(3, 3), rate), draw(1, (5, 3))
    params = layer.init(KEY)
    with jax.debug_nans(True):
        actual = passes(layer, params, x, x)
    whole = passes(fnn.Linear(3, 3), params, x, x)
    chex.assert_trees_all_equal(actual, jax.tree.map(lambda leaf: (1 - rate) * leaf, whole))


def test_gradients_are_those_of_jax_vjp_with_the_same_key_also_in_transforms():
    depth = fnn.Residual(fnn.StochasticDepth(block, 0.5))
    repeated = fnn.repeat(fnn.remat(depth), 2)
    x, dy = draw(1, (6, 3)), draw(2, (6, 3))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def by_hand_and_by_jax(every_params, x, dy):
        results = []
        for layer, params in zip((depth, repeated), every_params, strict=True):
            y, vjp = jax.vjp(lambda *args: layer.forward(*args, KEY)[0], params, x)  # noqa: B023
            results.append((passes(layer, params, x, dy), (y, *vjp(dy))))
        return results

    params = depth.init(KEY), repeated.init(KEY)
    results = by_hand_and_by_jax(params, x, dy)
    for by_hand, by_jax in results:
        chex.assert_trees_all_close(by_hand, by_jax, rtol=1e-5, atol=1e-6)
    compiled = results[0][0]
    chex.assert_trees_all_close(passes(depth, params[0], x, dy), compiled, rtol=1e-5, atol=1e-6)
    dropped = (compiled[0] == x).all(axis=-1)
    assert dropped.any()
    assert not dropped.all()


def test_each_examples_gradient_is_its_own_also_with_stochastic_depth():
    layer = fnn.StochasticDepth(fnn.Linear(3, 2), 0.5, axis=-1)
    params, x, dy = layer.init(KEY), draw(1, (8, 3)), draw(2, (8, 2))
    y, grads, dx = jax.jit(lambda *args: passes(fnn.per_example(layer), *args))(params, x, dy)
    kept = jnp.any(y != 0, axis=-1)
    assert 0 < jnp.sum(kept) < 8
    weights = jnp.where(kept, 2.0, 0.0)[:, None]
    expected = dy[:, :, None] * x[:, None, :] * weights[:, :, None]
    chex.assert_trees_all_close(grads, {"W": expected, "b": dy * weights}, rtol=1e-5)
    chex.assert_trees_all_close(dx, weights * (dy @ params["W"]), rtol=1e-5, atol=1e-6)


def test_stochastic_depth_shows_its_inside_and_asks_for_a_key():
    layer = fnn.StochasticDepth(fnn.Linear(3, 2), 0.5)
    assert repr(layer) == "StochasticDepth(Linear(3, 2), rate=0.5, axis=None)"
    assert repr(layer.rebuild(fnn.Tanh())) == "StochasticDepth(Tanh(), rate=0.5, axis=None)"
    rows = [row.split() for row in fnn.summary(layer, (4, 3)).splitlines()]
    assert ["StochasticDepth", "Linear(3,", "2)", "(4,", "2)", "8", "48"] in rows
    assert ["StochasticDepth", "(4,", "2)", "0", "4"] in rows
    assert layer.uses_key
    assert fnn.Residual(layer).uses_key
    with pytest.raises(
        ValueError, match=r"StochasticDepth: expected axis to be an integer, got 1\.5"
    ):
        fnn.StochasticDepth(layer, 0.5, axis=(1.5,))
    with pytest.raises(
        ValueError, match=r"StochasticDepth: expected a Layer at position 0, got 0\.5"
    ):
        fnn.StochasticDepth(0.5, 0.5)
    with pytest.raises(ValueError, match="axis -3 is out of bounds"):
        fnn.StochasticDepth(fnn.Tanh(), 0.5, axis=-3).forward((), jnp.ones((2, 2)), KEY)
    with pytest.raises(
        ValueError, match=r"StochasticDepth: expected a key such as jax\.random\.key"
    ):
        fnn.StochasticDepth(fnn.Tanh(), 0.5).forward((), jnp.ones((2, 2)), 3)
