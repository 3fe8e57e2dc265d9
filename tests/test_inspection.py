import functools

import jax
import jax.numpy as jnp
import pytest

import fnn


def make_model():
    return fnn.Sequential(
        fnn.Linear(4, 8),
        fnn.Tanh(),
        fnn.Sequential(fnn.Linear(8, 8), fnn.Dropout(0.5)),
        fnn.Residual(fnn.Linear(8, 8)),
        fnn.Parallel(fnn.Linear(8, 2), fnn.freeze(fnn.Linear(8, 1))),
        fnn.remat(fnn.Sequential(fnn.Linear(3, 4), fnn.Tanh())),
    )


def test_a_summary_has_a_row_a_layer_and_totals():
    assert (
        fnn.summary(make_model(), (10, 4))
        == """\
              layer                 output shape  parameters  residual bytes
0             Linear(4, 8)          (10, 8)               40             160
1             Tanh()                (10, 8)                0             320
2.0           Linear(8, 8)          (10, 8)               72               0
2.1           Dropout(0.5)          (10, 8)                0              80
3.Residual    Linear(8, 8)          (10, 8)               72             320
3             Residual              (10, 8)                0               0
4.Parallel.0  Linear(8, 2)          (10, 2)               18             320
4.Parallel.1  freeze(Linear(8, 1))  (10, 1)                9               0
4             Parallel              (10, 3)                0               0
5             remat(Sequential)     (10, 4)               16             128
              total                                      227           1,328"""
    )


def test_the_totals_are_what_training_keeps():
    model = make_model()
    params, x = model.init(jax.random.key(0)), jnp.ones((10, 4))
    residuals = model.forward(params, x, jax.random.key(1))[1]
    kept = {id(leaf): leaf.nbytes for leaf in jax.tree.leaves(residuals)}
    *_, num_params, num_bytes = fnn.summary(model, (10, 4)).split()
    assert int(num_params.replace(",", "")) == fnn.count_params(params)
    assert int(num_bytes.replace(",", "")) == sum(kept.values())


def test_a_users_layer_is_named_after_its_function_or_the_old_one():
    def Scale():
        def forward(params, x, key=None):
            return params * x, x

        return fnn.Layer(lambda key: jnp.ones(()), forward, None)

    assert "Scale  (3,)                   1              12" in fnn.summary(Scale(), (3,))
    init, forward, backward = Scale()
    partial = fnn.Layer(init, functools.partial(forward), backward)
    assert "partial" in fnn.summary(partial, (3,))
    changed = fnn.Linear(3, 2)._replace(backward=None)
    assert "Linear(3, 2)" in fnn.summary(changed, (3,))


def test_nothing_is_computed():
    """The parameters and activations would need 8 TB."""
    model = fnn.Sequential(fnn.Linear(10**6, 10**6), fnn.Linear(10**6, 1))
    *_, num_params, num_bytes = fnn.summary(model, (10**6, 10**6)).split()
    assert num_params == "1,000,002,000,001"
    assert num_bytes == "8,000,000,000,000"


def test_the_identity_has_a_row_too():
    rows = fnn.summary(fnn.Sequential(fnn.Tanh(), fnn.Identity()), (3,)).splitlines()
    assert rows[2].split() == ["1", "Identity()", "(3,)", "0", "0"]


def test_integers_are_summarised_as_such():
    model = fnn.Sequential(fnn.Embedding(10, 4), fnn.Linear(4, 2))
    assert "Embedding(10, 4)  (3, 4)" in fnn.summary(model, (3,), jnp.int32)


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Linear\(4, 8\): expected x of shape \(..., 4\), got"):
        fnn.summary(make_model(), (10, 5))


def test_parameters_are_counted_in_any_tree():
    assert fnn.count_params(()) == 0
    assert fnn.count_params({"W": jnp.ones((3, 4)), "b": (jnp.ones(3), 1.0)}) == 16


@pytest.mark.parametrize("x_shape", [3, None, (-1, 3), ("a", 3)])
def test_what_is_no_shape_is_refused(x_shape):
    with pytest.raises(ValueError, match=r"summary: expected .*x_shape"):
        fnn.summary(fnn.Linear(3, 2), x_shape)
