import jax
import jax.numpy as jnp
import pytest
from cases import draw

import fnn


def test_layer_norm_standardises_then_scales_and_shifts():
    x = 3 + 5 * draw(1, (4, 100))
    params = {"scale": jnp.full(100, 2.0), "bias": jnp.full(100, 0.5)}
    y, _ = fnn.LayerNorm(100).forward(params, x)
    assert jnp.allclose(jnp.mean(y, axis=-1), 0.5, atol=1e-5)
    assert jnp.allclose(jnp.var(y, axis=-1), 4, atol=1e-4)


def test_rms_norm_gives_mean_square_1_then_scale():
    x = 3 + 5 * draw(1, (4, 100))
    y, _ = fnn.RMSNorm(100).forward({"scale": jnp.full(100, 2.0)}, x)
    assert jnp.allclose(jnp.mean(jnp.square(y), axis=-1), 4, atol=1e-4)


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
def test_features_that_are_all_equal_give_no_nan(make):
    layer, x = make(3), jnp.zeros((2, 3))
    with jax.debug_nans(True):
        params = layer.init(jax.random.key(0))
        y, residuals = layer.forward(params, x)
        _, dx = layer.backward(params, residuals, jnp.ones((2, 3)))
    assert jnp.all(y == 0)
    assert jnp.all(jnp.isfinite(dx))


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
def test_16_bit_numbers_are_normalised_in_float32(make):
    layer = make(4096)
    x = 100 + draw(1, (4096,), jnp.bfloat16)
    params = layer.init(jax.random.key(0))
    y, _ = layer.forward(params, x)
    exact, _ = layer.forward(params, x.astype(jnp.float32))
    assert jnp.all(y == exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(("make", "numbers"), [(fnn.LayerNorm, 3), (fnn.RMSNorm, 2)])
def test_residuals_are_x_and_the_statistics_of_each_example(make, numbers):
    x = draw(1, (10, 64))
    _, residuals = make(64).forward(make(64).init(jax.random.key(0)), x)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(residuals)) == 4 * 10 * (64 + numbers)


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
def test_bad_arguments_are_refused(make):
    for dim in (0, 2.5, "3"):
        with pytest.raises(ValueError, match=f"{make.__name__}: expected dim to be an integer"):
            make(dim)
    for eps in (-1e-5, jnp.inf):
        with pytest.raises(ValueError, match=f"{make.__name__}: expected eps to be a finite"):
            make(3, eps)
    with pytest.raises(ValueError, match=rf"{make.__name__}\(3\): expected x of shape \(..., 3\)"):
        make(3).forward(make(3).init(jax.random.key(0)), jnp.ones((2, 4)))


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
def test_eps_may_be_traced(make):
    x, params = draw(1, (4, 3)), make(3).init(jax.random.key(0))
    y = jax.jit(lambda eps: make(3, eps).forward(params, x)[0])(0.1)
    assert jnp.allclose(y, make(3, 0.1).forward(params, x)[0], rtol=1e-6)


@pytest.mark.parametrize("make", [fnn.LayerNorm, fnn.RMSNorm])
def test_parameters_have_the_dtype_asked_for(make):
    for leaf in jax.tree.leaves(make(3, dtype=jnp.bfloat16).init(jax.random.key(0))):
        assert leaf.dtype == jnp.bfloat16


def test_group_norm_takes_the_moments_of_neighbouring_channels_and_all_places():
    x = 3 + 5 * draw(1, (2, 6, 5, 4))
    layer = fnn.GroupNorm(2, 4)
    y, residuals = layer.forward(layer.init(jax.random.key(0)), x)
    groups = y.reshape(2, 30, 2, 2)
    assert jnp.allclose(groups.mean(axis=(1, 3)), 0, atol=1e-5)
    assert jnp.allclose(groups.var(axis=(1, 3)), 1, atol=1e-4)
    assert [leaf.size for leaf in jax.tree.leaves(residuals)] == [x.size, 4, 4, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.LayerNorm(()), "LayerNorm: expected dim to be an integer or several, got"),
        (lambda: fnn.LayerNorm((3, 0)), "LayerNorm: expected dim to be an integer >= 1, got 0"),
        (lambda: fnn.GroupNorm(0, 4), "GroupNorm: expected num_groups to be an integer >= 1"),
        (lambda: fnn.GroupNorm(3, 4), "GroupNorm: expected num_channels that 3 groups divide"),
        (lambda: fnn.GroupNorm(2, 4, -1), "GroupNorm: expected eps to be a finite number >= 0"),
        (lambda: fnn.GroupNorm(2, 4, num_axes=-1), "GroupNorm: expected num_axes to be an int"),
        (lambda: fnn.InstanceNorm(0), "InstanceNorm: expected num_channels to be an integer >= 1"),
        (lambda: fnn.BatchNorm(2.0), "BatchNorm: expected num_channels to be an integer >= 1"),
        (lambda: fnn.BatchNorm(2, jnp.inf), "BatchNorm: expected eps to be a finite number >= 0"),
    ],
)
def test_norms_say_what_they_cannot_be_made_of(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_groups_spatial_axes_are_named_in_messages():
    layer = fnn.GroupNorm(2, 4)
    with pytest.raises(ValueError, match=r"expected x of shape \(..., height, width, 4\), got"):
        layer.forward(layer.init(jax.random.key(0)), jnp.ones((2, 4)))
