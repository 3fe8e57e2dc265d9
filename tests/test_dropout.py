import chex
import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn

KEY = jax.random.key(7)


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


def test_layers_of_a_network_drop_independently():
    model = fnn.Sequential(fnn.Dropout(0.5), fnn.Identity(), fnn.Dropout(0.5))
    y, _ = model.forward(((), (), ()), jnp.ones(10_000), KEY)
    assert jnp.abs(jnp.mean(y > 0) - 0.25) < 0.02
