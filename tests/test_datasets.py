import jax
import jax.numpy as jnp
import pytest

import fnn


def test_disk_points_are_in_the_unit_square_and_labels_are_balanced():
    points, labels = fnn.sample_disk(jax.random.key(0), 100_000)
    assert points.shape == (100_000, 2)
    assert points.dtype == jnp.float32
    assert labels.dtype == jnp.int32
    assert jnp.all((points >= 0) & (points < 1))
    assert jnp.abs(jnp.mean(labels.astype(float)) - 0.5) < 0.01
    assert jnp.allclose(jnp.mean(points, axis=0), 0.5, atol=0.01)


@pytest.mark.parametrize(("center", "radius"), [((0.5, 0.5), 0.398942), ((0.2, 0.9), 0.1)])
def test_label_1_is_inside_the_disk(center, radius):
    points, labels = fnn.sample_disk(jax.random.key(1), 1000, center=center, radius=radius)
    distance = jnp.hypot(points[:, 0] - center[0], points[:, 1] - center[1])
    assert jnp.all((distance < radius) == (labels == 1))


def test_the_key_decides_and_x64_does_not():
    points, labels = fnn.sample_disk(jax.random.key(0), 50)
    again, _ = fnn.sample_disk(jax.random.key(0), 50)
    other, _ = fnn.sample_disk(jax.random.key(1), 50)
    assert jnp.all(points == again)
    assert jnp.all(points != other)
    with jax.enable_x64(True):
        wide, wide_labels = fnn.sample_disk(jax.random.key(0), 50)
        assert wide.dtype == jnp.float32
        assert wide_labels.dtype == jnp.int32
        assert jnp.all(wide == points)
        assert jnp.all(wide_labels == labels)


def test_radius_may_be_traced():
    count = jax.vmap(lambda radius: fnn.sample_disk(jax.random.key(0), 50, radius=radius)[1].sum())
    assert count(jnp.array([0.0, 2.0])).tolist() == [0, 50]
