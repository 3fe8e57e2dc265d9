"""Clipped gradients, and the diagonal of the generalized Gauss-Newton matrix."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import cast, draw, draw_integers, draw_labels, draw_probabilities
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType

import fnn

key = jax.random.key(0)
mse, cross_entropy = fnn.MSELoss(), fnn.CrossEntropyLoss()
network = fnn.Sequential(fnn.Linear(3, 4), fnn.Tanh(), fnn.Linear(4, 3))


def sequences():
    """A network whose prediction has positions: (batch, time, classes)."""
    block = fnn.Residual(fnn.Sequential(fnn.LayerNorm(4), fnn.MultiHeadAttention(4, 2)))
    return fnn.Sequential(fnn.Embedding(5, 4), fnn.repeat(fnn.remat(block), 2), fnn.Linear(4, 3))


def in_float64(model):
    return cast(model.init(key), jnp.float64)


# clipped_loss_and_grads

CLIPPED = {
    "mean": (network, mse, draw),
    "sum": (network, fnn.MSELoss("sum"), draw),
    "labels": (network, cross_entropy, draw_labels),
    "weighted": (
        network,
        fnn.CrossEntropyLoss(class_weights=jnp.array([1.0, 2.0, 3.0]), ignore_index=1),
        draw_labels,
    ),
    "batchmean-of-sequences": (sequences(), fnn.MSELoss("batchmean"), draw),
    "labels-of-sequences": (sequences(), cross_entropy, draw_labels),
}


@pytest.mark.parametrize(("model", "loss", "make_target"), CLIPPED.values(), ids=CLIPPED.keys())
def test_clipped_grads_are_the_mean_of_clipped_jax_grads(model, loss, make_target):
    is_text = model is not network
    with jax.enable_x64(True):
        params = in_float64(model)
        x = draw_integers(1, (5, 4), 5) if is_text else draw(1, (5, 3), jnp.float64)
        target = make_target(2, (5, 4, 3) if is_text else (5, 3), jnp.float64)

        def of_example(params, x, target):
            return loss.forward(model.forward(params, x[None])[0], target[None])[0]

        @jax.jit
        def run(params, x, target):
            grads = jax.vmap(jax.grad(of_example), (None, 0, 0))(params, x, target)
            vectors = jax.vmap(lambda tree: ravel_pytree(tree)[0])(grads)
            norms = jnp.linalg.norm(vectors, axis=1)
            limit = jnp.median(norms)
            factors = jnp.minimum(1, limit / jnp.where(norms == 0, 1, norms))
            mean = jnp.mean(vectors * factors[:, None], axis=0)
            clipped = fnn.clipped_loss_and_grads(model, loss, limit)
            value, grads, own_norms = clipped(params, x, target)
            whole = loss.forward(model.forward(params, x)[0], target)[0]
            return (value, ravel_pytree(grads)[0], own_norms), (whole, mean, norms)

        chex.assert_trees_all_close(*run(params, x, target), rtol=1e-10, atol=1e-14)


def test_clipped_grads_of_a_large_limit_are_those_of_the_mean_with_the_same_dropout():
    model = fnn.Sequential(fnn.Linear(3, 8), fnn.Dropout(0.5), fnn.Linear(8, 3))
    args = model.init(key), draw(1, (6, 3)), draw(2, (6, 3)), jax.random.key(3)
    value, grads, norms = jax.jit(fnn.clipped_loss_and_grads(model, mse, 1e9))(*args)
    expected = jax.jit(fnn.loss_and_grads(model, mse))(*args)
    chex.assert_trees_all_close((value, grads), expected, rtol=1e-5, atol=1e-7)
    clipped = fnn.clipped_loss_and_grads(model, mse, 1e-3)(*args)
    chex.assert_trees_all_close(clipped[2], norms, rtol=1e-5)
    length = jnp.linalg.norm(ravel_pytree(clipped[1])[0])
    assert 1e-4 < length <= 1.001e-3


def test_clipped_grads_use_the_rules_given():
    """Without the example's gradient of Linear: its own backward, weighted, and zeros as norms."""
    model = fnn.Sequential(fnn.Linear(3, 3), fnn.PReLU(3))
    args = model.init(key), draw(1, (4, 3)), draw(2, (4, 3))
    rules = {
        "Linear": lambda layer, params, x, dy: {name: jnp.zeros(len(dy)) for name in params},
        "PReLU": lambda layer, params, x, dy: {name: jnp.ones(len(dy)) for name in params},
    }
    _, grads, norms = fnn.clipped_loss_and_grads(model, mse, 0.5, rules)(*args)
    expected = fnn.loss_and_grads(model, mse)(*args)[1]
    assert norms.tolist() == [1.0] * 4
    chex.assert_trees_all_close(jax.tree.map(lambda g: 2 * g, grads), expected, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_clipped_grads_and_curvature_over_a_mesh_are_those_of_one_device(axis_type):
    mesh = jax.make_mesh((4,), ("data",), (axis_type,), devices=jax.devices("cpu")[:4])

    @jax.jit
    def run(*args):
        clipped = fnn.clipped_loss_and_grads(network, mse, 0.1)(*args)
        return clipped, fnn.ggn_diagonal(network, mse)(*args)

    params, *batch = network.init(key), draw(1, (8, 3)), draw(2, (8, 3))
    expected = run(params, *batch)
    actual = run(fnn.replicate(mesh, params), *fnn.shard_batch(mesh, batch))
    chex.assert_trees_all_close(*jax.device_get((actual, expected)), rtol=1e-5, atol=1e-6)


def test_clipped_grads_of_bfloat16_keep_their_dtypes():
    params, *batch = cast((network.init(key), draw(1, (4, 3)), draw(2, (4, 3))), jnp.bfloat16)
    value, grads, norms = fnn.clipped_loss_and_grads(network, mse, 0.1)(params, *batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    assert (value.dtype, norms.dtype) == (jnp.bfloat16, jnp.float32)


def test_clipped_grads_of_float16_arithmetic_do_not_vanish():
    model = fnn.with_compute_dtype(fnn.Linear(2, 1), jnp.float16)
    params, x, target = model.init(key), jnp.ones((20000, 2)), jnp.full((20000, 1), 9.0)
    _, grads, _ = fnn.clipped_loss_and_grads(model, mse, 1e-3)(params, x, target)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
    assert norm == pytest.approx(1e-3, rel=0.02)


@pytest.mark.usefixtures("on_the_cpu")
def test_clipped_grads_hold_no_examples_gradient():
    """The compiler counts less memory than a tenth of the 256 gradients takes."""
    model, x = (
        fnn.Sequential(fnn.Linear(64, 64), fnn.Tanh(), fnn.Linear(64, 64)),
        draw(1, (256, 64)),
    )
    run = jax.jit(fnn.clipped_loss_and_grads(model, mse, 0.1))
    compiled = run.lower(jax.eval_shape(model.init, key), x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 4 * 2 * 64 * 65 / 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fnn.clipped_loss_and_grads(fnn.Tanh, mse, 1), "expected a Layer at position 0"),
        (lambda: fnn.clipped_loss_and_grads(network, network, 1), "expected a Loss such as"),
        (
            lambda: fnn.clipped_loss_and_grads(network, mse, 0),
            "expected max_norm .* above 0, got 0",
        ),
        (
            lambda: fnn.clipped_loss_and_grads(fnn.BatchNorm(3), mse, 1),
            r"squared_norms: expected each example by itself, got BatchNorm\(3\)",
        ),
        (
            lambda: fnn.clipped_loss_and_grads(
                fnn.Sequential(fnn.clip_gradient(network, 1.0)), mse, 1
            ),
            "clipped_loss_and_grads: expected a model whose backward is linear in dy, got clip_gr",
        ),
        (lambda: fnn.ggn_diagonal(fnn.Tanh, mse), "second_moments: expected a Layer at position 0"),
        (lambda: fnn.ggn_diagonal(network, None), "ggn_diagonal: expected a Loss such as"),
        (lambda: fnn.ggn_diagonal(network, fnn.L1Loss()), "expected a loss with a hessian_root"),
        (
            lambda: fnn.ggn_diagonal(network, mse._replace(forward=mse.forward)),
            "expected a loss with a hessian_root",
        ),
        (lambda: fnn.ggn_diagonal(fnn.BatchNorm(3), mse), r"second_moments: .* got BatchNorm\(3\)"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_arrays_that_do_not_fit_are_refused():
    params, x = network.init(key), draw(1, (4, 3))
    clipped, diagonal = (
        fnn.clipped_loss_and_grads(network, mse, 1.0),
        fnn.ggn_diagonal(network, mse),
    )
    for name, function in (("clipped_loss_and_grads", clipped), ("ggn_diagonal", diagonal)):
        with pytest.raises(ValueError, match=f"{name}: expected x and target with the same number"):
            function(params, x, x[:3])
        with pytest.raises(ValueError, match=f"{name}: expected .* at least one"):
            function(params, x[:0], x[:0])
    none = fnn.MSELoss("none")
    for function in (
        fnn.clipped_loss_and_grads(network, none, 1.0),
        fnn.ggn_diagonal(network, none),
    ):
        with pytest.raises(ValueError, match=r"expected a loss value of shape \(\)"):
            function(params, x, x)


# ggn_diagonal


def weighted_labels(seed, shape, dtype):
    return draw_labels(seed, shape).at[0].set(2)


CURVED = {
    "mean": (mse, draw),
    "sum": (fnn.MSELoss("sum"), draw),
    "labels": (cross_entropy, draw_labels),
    "probabilities": (fnn.CrossEntropyLoss("sum"), draw_probabilities),
    "weighted-labels": (
        fnn.CrossEntropyLoss(
            class_weights=jnp.array([1.0, 2.0, 3.0]), ignore_index=1, label_smoothing=0.1
        ),
        draw_labels,
    ),
    "weighted-probabilities": (
        fnn.CrossEntropyLoss("batchmean", class_weights=jnp.array([1.0, 2.0, 3.0])),
        draw_probabilities,
    ),
    "bce": (fnn.BCEWithLogitsLoss(), draw_probabilities),
    "bce-weighted": (fnn.BCEWithLogitsLoss("sum", pos_weight=2.0), draw_probabilities),
}


@pytest.mark.parametrize(("loss", "make_target"), CURVED.values(), ids=CURVED.keys())
def test_the_hessian_root_is_one_of_jax_hessian(loss, make_target):
    with jax.enable_x64(True):
        prediction = draw(1, (4, 3), jnp.float64)
        target = make_target(2, (4, 3), jnp.float64)

        @jax.jit
        def run(prediction, target):
            def value(flat):
                return loss.forward(flat.reshape(4, 3), target)[0]

            def column(v):
                return loss.hessian_root(prediction, target, v.reshape(4, 3)).ravel()

            S = jax.vmap(column, out_axes=1)(jnp.eye(12))
            return S @ S.T, jax.hessian(value)(prediction.ravel())

        chex.assert_trees_all_close(*run(prediction, target), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("model", "loss", "make_target"),
    [
        (network, mse, draw),
        (network, CURVED["weighted-labels"][0], draw_labels),
        (sequences(), cross_entropy, draw_labels),
        (sequences(), fnn.BCEWithLogitsLoss(), draw_probabilities),
    ],
    ids=["mse", "labels", "labels-of-sequences", "bce-of-sequences"],
)
def test_the_diagonal_is_that_of_jax_jacobians_and_hessians(model, loss, make_target):
    is_text = model is not network
    with jax.enable_x64(True):
        params = in_float64(model)
        x = draw_integers(1, (3, 2), 5) if is_text else draw(1, (5, 3), jnp.float64)
        target = make_target(2, (3, 2, 3) if is_text else (5, 3), jnp.float64)

        @jax.jit
        def run(params, x, target):
            flat, unravel = ravel_pytree(params)
            prediction = model.forward(params, x)[0]

            def value(vector):
                return loss.forward(vector.reshape(prediction.shape), target)[0]

            J = jax.jacobian(lambda flat: model.forward(unravel(flat), x)[0].ravel())(flat)
            H = jax.hessian(value)(prediction.ravel())
            diagonal = fnn.ggn_diagonal(model, loss)(params, x, target)
            return diagonal, unravel(jnp.sum(J * (H @ J), axis=0))

        chex.assert_trees_all_close(*run(params, x, target), rtol=1e-10, atol=1e-14)


def test_the_diagonal_has_the_dtypes_of_params_and_adds_up_in_float32():
    model, ones = fnn.Linear(1, 1, bias=False), jnp.ones((1000, 1), jnp.bfloat16)
    diagonal = fnn.ggn_diagonal(model, fnn.MSELoss("sum"))({"W": ones[:1]}, ones, ones)
    assert diagonal["W"].dtype == jnp.bfloat16
    assert abs(diagonal["W"].item() - 2000) < 20
