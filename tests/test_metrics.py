import jax
import jax.numpy as jnp
import pytest

import fnn

scores = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])


def test_accuracy_is_the_fraction_of_right_argmaxes():
    assert fnn.accuracy(scores, jnp.array([1, 0, 0, 0])) == 0.75
    assert jax.jit(fnn.accuracy)(scores, jnp.array([1, 0, 1, 0])) == 1.0
    assert fnn.accuracy(scores[0], jnp.array(0)) == 0.0


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
