"""The properties that every loss has, and the values of each."""

import math
from functools import partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import pytest
from cases import LEADING, LOSSES, REDUCTIONS, cast, draw

import fnn

NOT_SMOOTH = [
    *("L1Loss", "HuberLoss", "HuberLoss-narrow", "SmoothL1Loss"),  # they have kinks
    *("BCELoss", "CosineDistanceLoss"),  # the one ends at 0 and 1, and 0 has no direction
]

every_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())


def pass_through(loss, prediction, target):
    value, residuals = loss.forward(prediction, target)
    return value, loss.backward(residuals)


@every_loss
def test_backward_matches_jax_grad(case):
    with jax.enable_x64(True):
        inputs = {
            name: [
                make((*leading, 3), jnp.float64)
                for make in (partial(case.prediction, 1), partial(case.target, 2))
            ]
            for name, leading in LEADING.items()
        }

        @jax.jit
        def by_hand_and_by_jax(inputs):
            by_hand, by_jax = {}, {}
            for reduction, name in [
                *product([*REDUCTIONS, "none"], ["batch"]),
                *product(["mean"], inputs),
            ]:
                prediction, target = inputs[name]
                loss = case.make(reduction)
                value, d_prediction = pass_through(loss, prediction, target)
                _, vjp = jax.vjp(lambda p, loss=loss, t=target: loss.forward(p, t)[0], prediction)
                weights = 1 + jnp.arange(value.size, dtype=value.dtype).reshape(value.shape)
                each = weights if value.ndim in (0, prediction.ndim) else weights[..., None]
                by_hand[name, reduction] = each * d_prediction
                (by_jax[name, reduction],) = vjp(weights)
            return by_hand, by_jax

        actual, expected = by_hand_and_by_jax(inputs)
        chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-14)


@every_loss
def test_backward_matches_finite_differences(case):
    fnn.check_loss(case.make("mean"), case.prediction(1, (5, 3)), case.target(2, (5, 3)))


@every_loss
def test_jit_vmap_and_eager_agree(case):
    loss = case.make("mean")
    prediction, target = case.prediction(1, (4, 5, 3)), case.target(2, (4, 5, 3))
    many = jax.jit(jax.vmap(lambda p, t: pass_through(loss, p, t)))(prediction, target)
    each = [pass_through(loss, p, t) for p, t in zip(prediction, target, strict=True)]
    chex.assert_trees_all_close(many, jax.tree.map(lambda *a: jnp.stack(a), *each), rtol=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_dtypes_are_preserved(case, dtype):
    with jax.enable_x64(True):
        prediction, target = case.prediction(1, (5, 2), dtype), case.target(2, (5, 2))
        run = jax.jit(lambda *given: [pass_through(case.make("mean"), p, target) for p in given])
        (value, d_prediction), exact = run(prediction, cast(prediction, jnp.float64))
        assert value.shape == ()
        assert value.dtype == d_prediction.dtype == dtype
        actual = cast((value, d_prediction), jnp.float64)
        chex.assert_trees_all_close(actual, exact, rtol=0.02, atol=1e-3)


@every_loss
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_wrong_targets_are_refused(case, wrap):
    run = wrap(lambda prediction, target: pass_through(case.make("mean"), prediction, target))
    target = case.target(2, (5, 2))
    for shape in ((1, 2), (5, 1), (5, 2, 1), ()):
        with pytest.raises(ValueError, match=r"expected (target|integer labels) of shape \(5"):
            run(jnp.ones((5, 2)), jnp.ones(shape, target.dtype))
    expected = r"expected .*(target|probabilities) of shape \(5, 1\), got .*\(5,\)"
    with pytest.raises(ValueError, match=expected):
        run(jnp.ones((5, 1)), jnp.ones(5))
    with pytest.raises(ValueError, match=r"expected (target|integer labels) of .*, got int32"):
        run(jnp.ones((5, 2)), jnp.ones((5, 2), jnp.int32))
    with pytest.raises(ValueError, match="expected prediction of a floating dtype, got int32"):
        run(jnp.ones((5, 2), jnp.int32), target)


@every_loss
def test_a_mean_over_nothing_is_refused(case):
    prediction, target = jnp.zeros((0, 2)), case.target(2, (0, 2))
    assert case.make("sum").forward(prediction, target)[0] == 0
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match="expected at least one element"):
            case.make(reduction).forward(prediction, target)


@every_loss
def test_an_unknown_reduction_is_refused(case):
    with pytest.raises(ValueError, match="'mean', 'sum', 'batchmean' or 'none', got 'max'"):
        case.make("max")


@every_loss
def test_predictions_of_1e4_give_finite_values_and_derivatives(case):
    if case is LOSSES["BCELoss"]:
        return  # its predictions are probabilities
    with jax.debug_nans(True):
        for seed in range(3):
            prediction = 1e4 * jnp.sign(draw(seed, (20, 3)))
            results = pass_through(case.make("sum"), prediction, case.target(2, (20, 3)))
            chex.assert_tree_all_finite(results)


@pytest.mark.parametrize(
    ("reduction", "scale", "derivative"), [("mean", 6, 6), ("sum", 1, 1), ("batchmean", 3, 3)]
)
def test_mse_values(reduction, scale, derivative):
    prediction = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    target = jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    value, d_prediction = pass_through(fnn.MSELoss(reduction), prediction, target)
    chex.assert_trees_all_close(value, (1 + 4 + 4 + 9 + 16 + 16) / scale)
    expected = 2 * jnp.array([[1.0, 2.0], [2.0, 3.0], [4.0, 4.0]]) / derivative
    chex.assert_trees_all_close(d_prediction, expected)


def test_mse_batchmean_of_one_example_is_its_sum():
    for shape in ((3,), (1, 3)):
        value, _ = fnn.MSELoss("batchmean").forward(jnp.ones(shape), jnp.zeros(shape))
        assert value == 3


def test_mse_in_float16_does_not_overflow_on_the_way():
    prediction = jnp.full((4, 2), 200, jnp.float16)  # the sum of squares is beyond float16
    value, _ = fnn.MSELoss().forward(prediction, jnp.zeros((4, 2), jnp.float16))
    assert value == 40000


def test_tiny_mse_derivatives_are_exact_in_float16():
    prediction = jnp.full((2000, 2000), 200, jnp.float16)
    _, d_prediction = pass_through(fnn.MSELoss(), prediction, jnp.zeros_like(prediction))
    assert jnp.allclose(d_prediction.astype(float), 2 * 200 / 4e6, rtol=1e-3)


@pytest.mark.parametrize(
    ("logit", "target", "value", "derivative"),
    [
        (jnp.inf, 1.0, 0.0, 0.0),
        (-jnp.inf, 0.0, 0.0, 0.0),
        (1e4, 0.0, 1e4, 1.0),
        (-1e4, 1.0, 1e4, -1.0),
        (0.0, 1.0, 0.6931472, -0.5),
    ],
)
def test_binary_cross_entropy_at_its_limits(logit, target, value, derivative):
    with jax.debug_nans(True):
        results = pass_through(fnn.BCEWithLogitsLoss(), jnp.array(logit), jnp.array(target))
    chex.assert_trees_all_close(results, (jnp.array(value), jnp.array(derivative)), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "label", "value", "derivative"),
    [
        ([1e4, 0.0], 0, 0.0, [0.0, 0.0]),
        ([1e4, 0.0], 1, 1e4, [1.0, -1.0]),
        ([jnp.inf, 0.0], 0, 0.0, [0.0, 0.0]),
        ([-jnp.inf, 0.0], 1, 0.0, [0.0, 0.0]),
        ([-jnp.inf, 0.0], 0, jnp.inf, [-1.0, 1.0]),
        ([0.0, 0.0], 0, 0.6931472, [-0.5, 0.5]),
    ],
)
def test_cross_entropy_at_its_limits(logits, label, value, derivative):
    for target in (jnp.array(label), jax.nn.one_hot(label, 2)):
        with jax.debug_nans(True):
            results = pass_through(fnn.CrossEntropyLoss(), jnp.array(logits), target)
        chex.assert_trees_all_close(results, (jnp.array(value), jnp.array(derivative)), rtol=1e-6)


@pytest.mark.parametrize("label", [-1, -100, 2, 255])
def test_a_label_that_is_no_class_gives_nan_to_its_example_alone(label):
    labels = jnp.array([0, label, 1])
    value, d_logits = pass_through(fnn.CrossEntropyLoss(), draw(1, (3, 2)), labels)
    assert jnp.isnan(value)
    assert jnp.all(jnp.isnan(d_logits).any(axis=-1) == jnp.array([False, True, False]))


@pytest.mark.parametrize("num_classes", [2, 128, 256, 300])
def test_labels_may_be_of_any_integer_dtype(num_classes):
    dtypes = jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32, jnp.int64

    @jax.jit
    def losses(logits):
        labels = [jnp.array([0, 1, 1], dtype) for dtype in dtypes]
        return [fnn.CrossEntropyLoss().forward(logits, given)[0] for given in labels]

    with jax.enable_x64(True):
        values = [value.item() for value in losses(draw(1, (3, num_classes)))]
    assert len(set(values)) == 1
    assert math.isfinite(values[0])


@every_loss
def test_jvp_agrees_with_differences_at_ties(case):
    """Of equal logits, and of 0, where a loss that branches there is smooth nevertheless."""
    if case in map(LOSSES.get, NOT_SMOOTH):
        return
    with jax.enable_x64(True):
        loss, target = case.make("sum"), case.target(2, (4, 3), jnp.float64)
        tangent, step = draw(3, (4, 3), jnp.float64), 1e-6

        @jax.jit
        def run(prediction):
            return pass_through(loss, prediction, target)

        for prediction in (jnp.zeros((4, 3)), jnp.ones((4, 3))):
            _, tangents = jax.jvp(run, (prediction,), (tangent,))
            above, below = run(prediction + step * tangent), run(prediction - step * tangent)
            slopes = jax.tree.map(lambda a, b: (a - b) / (2 * step), above, below)
            chex.assert_trees_all_close(tangents, slopes, rtol=1e-6, atol=1e-8)


def test_huber_is_quadratic_inside_delta_and_linear_outside():
    d = jnp.array([0.5, -2.0, 3.0, 0.0])
    value, d_prediction = pass_through(fnn.HuberLoss(2.0, "sum"), d, jnp.zeros(4))
    chex.assert_trees_all_close(value, 0.125 + 2 + 2 * (3 - 1))
    chex.assert_trees_all_close(d_prediction, jnp.array([0.5, -2.0, 2.0, 0.0]))
    for delta in (0, -1.0, jnp.inf, jnp.nan):
        with pytest.raises(ValueError, match="HuberLoss: expected delta"):
            fnn.HuberLoss(delta)


def test_residuals_are_one_array_of_the_predictions_shape():
    for case in LOSSES.values():
        prediction, target = draw(1, (5, 3), jnp.bfloat16), case.target(2, (5, 3))
        _, residuals = case.make("mean").forward(prediction, target)
        assert [leaf.nbytes for leaf in jax.tree.leaves(residuals)] == [2 * 15]


def test_a_loss_of_nothing_has_no_sign():
    value, _ = fnn.CrossEntropyLoss().forward(jnp.array([[1e4, 0.0]]), jnp.array([0]))
    assert str(value) == "0.0"
