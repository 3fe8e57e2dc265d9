import jax
import jax.numpy as jnp
import pytest

import fnn


@pytest.mark.parametrize("shape", [(300, 500), (50, 3000), (2000, 10)])
@pytest.mark.parametrize("initializer", [fnn.xavier_uniform, fnn.xavier_normal])
def test_xavier_has_mean_0_and_variance_2_over_both_fans(initializer, shape):
    weights = initializer(jax.random.key(0), shape)
    assert weights.shape == shape
    assert weights.dtype == jnp.float32
    assert jnp.abs(jnp.mean(weights)) < 0.03 * jnp.std(weights)
    assert jnp.abs(jnp.var(weights) * sum(shape) / 2 - 1) < 0.03


def test_xavier_uniform_is_bounded_and_fills_its_range():
    weights = fnn.xavier_uniform(jax.random.key(0), (300, 500))
    bound = (6 / 800) ** 0.5
    assert jnp.max(jnp.abs(weights)) <= bound
    assert jnp.max(weights) > 0.99 * bound
    assert jnp.min(weights) < -0.99 * bound


def test_zeros_are_zero_in_the_dtype_asked_for():
    assert fnn.zeros(jax.random.key(0), (3,), jnp.bfloat16).dtype == jnp.bfloat16
    assert jnp.all(fnn.zeros(jax.random.key(0), (3,)) == 0)
