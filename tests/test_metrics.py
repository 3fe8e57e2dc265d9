import jax
import jax.numpy as jnp
import pytest

import fnn

scores = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])


def test_accuracy_is_the_fraction_of_right_argmaxes():
    assert fnn.accuracy(scores, jnp.array([1, 0, 0, 0])) == 0.75
    assert jax.jit(fnn.accuracy)(scores, jnp.array([1, 0, 1, 0])) == 1.0
    assert fnn.accuracy(scores[0], jnp.array(0)) == 0.0


def test_accuracy_of_many_examples_is_exact():
    labels = jnp.zeros(10_000, int)
    one_hot = jax.nn.one_hot(labels.at[:3].set(1), 2)
    assert abs(float(fnn.accuracy(one_hot.astype(jnp.bfloat16), labels)) - 0.9997) < 1e-6


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint32", "int64"])
def test_labels_may_have_any_integer_dtype(dtype):
    with jax.enable_x64(True):
        assert fnn.accuracy(scores, jnp.array([1, 0, 0, 0], dtype)) == 0.75


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (jnp.zeros(3, int), r"expected labels of shape \(4,\) for scores .* got \(3,\)"),
        (jnp.zeros((4, 1), int), r"got \(4, 1\)"),
        (jnp.zeros((4, 2), int), r"got \(4, 2\)"),
        (jnp.zeros(4), "expected labels of an integer dtype, got float32"),
    ],
)
def test_accuracy_refuses_labels_of_another_kind(labels, message):
    with pytest.raises(ValueError, match=message):
        fnn.accuracy(scores, labels)


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected at least one example"):
        fnn.accuracy(jnp.zeros((0, 2)), jnp.zeros(0, int))
