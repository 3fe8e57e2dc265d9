import jax
import jax.numpy as jnp
import pytest

import fnn

KEY = jax.random.key(0)
# (in, out) matrices and (height, width, in, out) kernels, with fan_in and fan_out
SHAPES = [((500, 300), 500, 300), ((3000, 50), 3000, 50), ((3, 5, 40, 300), 600, 4500)]
VARIANCES = {
    fnn.xavier_uniform: lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    fnn.xavier_normal: lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    fnn.kaiming_uniform: lambda fan_in, fan_out: 2 / fan_in,
    fnn.kaiming_normal: lambda fan_in, fan_out: 2 / fan_in,
    fnn.lecun_normal: lambda fan_in, fan_out: 1 / fan_in,
    fnn.standard_normal: lambda fan_in, fan_out: 1,
}


@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), SHAPES)
@pytest.mark.parametrize("initializer", VARIANCES, ids=lambda initializer: initializer.__name__)
def test_mean_is_0_and_variance_follows_the_fans(initializer, shape, fan_in, fan_out):
    weights = initializer(KEY, shape)
    assert weights.shape == shape
    assert weights.dtype == jnp.float32
    assert jnp.abs(jnp.mean(weights)) < 0.03 * jnp.std(weights)
    assert jnp.abs(jnp.var(weights) / VARIANCES[initializer](fan_in, fan_out) - 1) < 0.03


@pytest.mark.parametrize(
    ("initializer", "bound"),
    [(fnn.xavier_uniform, (6 / 800) ** 0.5), (fnn.kaiming_uniform, (6 / 500) ** 0.5)],
)
def test_uniform_weights_are_bounded_and_fill_their_range(initializer, bound):
    weights = initializer(KEY, (500, 300))
    assert jnp.max(jnp.abs(weights)) <= bound
    assert jnp.max(weights) > 0.99 * bound
    assert jnp.min(weights) < -0.99 * bound


@pytest.mark.parametrize("name", ["xavier_normal", "kaiming_normal", "lecun_normal"])
def test_normal_weights_have_the_tails_that_they_say(name):
    weights = getattr(fnn, name)(KEY, (300, 500))
    beyond = jnp.mean(jnp.abs(weights) > 2.5 * jnp.std(weights))
    assert 0.010 < beyond < 0.015  # 1.24 % of a normal variable, none of one truncated at 2


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (3, 3, 4, 8), (1, 2, 3, 40)])
def test_orthogonal_weights_have_orthonormal_rows_or_columns(shape):
    weights = fnn.orthogonal(KEY, shape)
    matrix = weights if len(shape) == 2 else weights.reshape(-1, shape[-1])
    narrow = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    assert jnp.allclose(narrow.T @ narrow, jnp.eye(narrow.shape[1]), atol=1e-5)


def test_zeros_and_constants_fill_the_dtype_asked_for():
    for initializer, value in ((fnn.zeros, 0), (fnn.initializers.constant(0.5), 0.5)):
        filled = initializer(KEY, (3,), jnp.bfloat16)
        assert filled.dtype == jnp.bfloat16
        assert jnp.all(filled == value)


def test_a_shape_without_fans_is_refused():
    for initializer in (fnn.xavier_normal, fnn.kaiming_uniform, fnn.lecun_normal, fnn.orthogonal):
        with pytest.raises(ValueError, match="2"):
            initializer(KEY, (3,))


def test_layers_take_every_initializer():
    for initializer in (fnn.kaiming_uniform, fnn.orthogonal, fnn.initializers.constant(2.0)):
        for layer, shape in (
            (fnn.Linear(3, 4, weight_init=initializer), (4, 3)),
            (fnn.Conv2d(2, 3, (3, 1), weight_init=initializer), (3, 1, 2, 3)),
            (fnn.Embedding(5, 2, weight_init=initializer), (5, 2)),
        ):
            assert layer.init(KEY)["W"].shape == shape


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_every_initializer_draws_in_every_dtype(dtype):
    for initializer in (*VARIANCES, fnn.orthogonal):
        assert initializer(KEY, (3, 4), dtype).dtype == dtype
