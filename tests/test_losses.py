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


@every_loss
def test_without_a_reduction_the_value_has_the_terms_that_the_sum_adds(case):
    prediction, target = case.prediction(1, (2, 4, 3)), case.target(2, (2, 4, 3))

    @jax.jit
    def run(prediction):
        return [pass_through(case.make(name), prediction, target) for name in ("none", "sum")]

    (terms, each), (value, d_prediction) = run(prediction)
    is_over_classes = case.make in (fnn.CrossEntropyLoss, fnn.NLLLoss, fnn.CosineDistanceLoss)
    assert terms.shape == ((2, 4) if is_over_classes else (2, 4, 3))
    chex.assert_trees_all_close(jnp.sum(terms), value, rtol=1e-6)
    chex.assert_trees_all_close(each, d_prediction, rtol=1e-6)
    nothing, _ = case.make("none").forward(prediction[:0], target[:0])
    assert nothing.shape == (0, *terms.shape[1:])


def test_training_and_check_loss_refuse_a_loss_without_a_reduction():
    loss, linear = fnn.MSELoss("none"), fnn.Linear(3, 3)
    x, params = draw(1, (2, 3)), {"W": jnp.ones((3, 3)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"loss value of shape \(\), such as a sum .*got \(2, 3\)"):
        fnn.loss_and_grads(linear, loss)(params, x, x)
    with pytest.raises(
        AssertionError, match=r"expected value to be float64\[\], got float64\[2, 3"
    ):
        fnn.check_loss(loss, x, x)


class_weights = jnp.array([0.5, 2.0, 1.25])
OPTIONS = [
    {"ignore_index": -100},
    {"class_weights": class_weights, "ignore_index": -100},
    {"class_weights": class_weights, "ignore_index": -100, "label_smoothing": 0.25},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[", ".join(options) for options in OPTIONS])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(jax.vmap(f))])
def test_an_ignored_label_counts_nowhere_and_another_bad_one_is_nan(wrap, options):
    loss = fnn.CrossEntropyLoss(**options)
    logits = draw(1, (4, 3)).at[1].set(jnp.nan)
    run = wrap(partial(pass_through, loss))

    def passes(logits, labels):
        value, d_logits = run(logits[None], labels[None])
        return jnp.squeeze(value), d_logits[0]

    value, d_logits = passes(logits, jnp.array([0, -100, 2, 1]))
    expected, d_expected = pass_through(loss, logits[jnp.array([0, 2, 3])], jnp.array([0, 2, 1]))
    chex.assert_trees_all_close(value, expected, rtol=1e-6)
    chex.assert_trees_all_close(jnp.delete(d_logits, 1, 0), d_expected, rtol=1e-6)
    assert jnp.all(d_logits[1] == 0)
    value, d_logits = passes(logits, jnp.full(4, -100))
    assert value == 0
    assert jnp.all(d_logits == 0)
    value, d_logits = passes(logits, jnp.array([0, -100, -1, 1]))
    assert jnp.isnan(value)
    assert jnp.isnan(d_logits).any(axis=-1).tolist() == [False, False, True, False]


def test_labels_of_a_dtype_without_the_ignored_index_are_classes():
    logits = draw(1, (2, 3))
    for dtype in (jnp.uint8, jnp.uint32):
        value, _ = fnn.CrossEntropyLoss(ignore_index=-100).forward(logits, jnp.ones(2, dtype))
        assert value == fnn.CrossEntropyLoss().forward(logits, jnp.ones(2, int))[0]
    value, _ = fnn.CrossEntropyLoss(ignore_index=255).forward(
        logits, jnp.array([1, 255], jnp.uint8)
    )
    assert value == fnn.CrossEntropyLoss().forward(logits[:1], jnp.array([1]))[0]


def test_the_options_of_a_loss_may_be_traced_and_are_checked():
    logits, labels = draw(1, (2, 3)), jnp.array([0, 2])

    @jax.jit
    def run(weights, index, amount):
        loss = fnn.CrossEntropyLoss(
            class_weights=weights, ignore_index=index, label_smoothing=amount
        )
        binary = fnn.BCEWithLogitsLoss(pos_weight=weights[0])
        return loss.forward(logits, labels)[0], binary.forward(logits, jax.nn.softmax(logits))[0]

    value, binary = run(class_weights, 2, 0.25)
    loss = fnn.CrossEntropyLoss(class_weights=[0.5, 2.0, 1.25], label_smoothing=0.25)
    chex.assert_trees_all_close(value, loss.forward(logits[:1], labels[:1])[0], rtol=1e-6)
    expected, _ = fnn.BCEWithLogitsLoss(pos_weight=[0.5] * 3).forward(
        logits, jax.nn.softmax(logits)
    )
    chex.assert_trees_all_close(binary, expected, rtol=1e-6)
    for make, message in [
        (
            lambda: fnn.CrossEntropyLoss(class_weights=jnp.ones((2, 3))),
            r"class_weights of shape \(cl",
        ),
        (lambda: fnn.CrossEntropyLoss(label_smoothing=1.5), "label_smoothing to be at most 1"),
        (lambda: fnn.NLLLoss(ignore_index=0.5), "ignore_index to be an integer"),
        (lambda: fnn.BCEWithLogitsLoss(pos_weight=jnp.inf), "pos_weight to be a finite number"),
        (lambda: fnn.SmoothL1Loss(-1.0), "beta to be a finite number >= 0"),
    ]:
        with pytest.raises(ValueError, match=f"Loss: expected {message}"):
            make()
    for loss, name in [
        (fnn.NLLLoss(class_weights=jnp.ones(4)), "class_weights"),
        (fnn.BCEWithLogitsLoss(pos_weight=jnp.ones(4)), "pos_weight"),
    ]:
        target = labels if name == "class_weights" else jnp.ones((2, 3))
        with pytest.raises(ValueError, match=rf"expected {name} of shape \(3,\), got \(4,\)"):
            loss.forward(logits, target)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_losses_of_probabilities_at_their_limits(wrap):
    def passes(loss, prediction, target):
        run = wrap(partial(pass_through, loss))
        return [a.tolist() for a in run(jnp.array(prediction), jnp.array(target))]

    with jax.debug_nans(True):
        value, slopes = passes(fnn.BCELoss("none"), [0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0])
        assert value == [0, 0, 100, 100]
        assert slopes == pytest.approx([0, 0, -1e12, 1e12])
        for log_target, none in ((False, 0.0), (True, -jnp.inf)):
            loss = fnn.KLDivLoss("none", log_target=log_target)
            value, slopes = passes(loss, [-jnp.inf, 0.0, -jnp.inf], [none, none, 0.5])
            assert value == [0, 0, jnp.inf]
            assert slopes[:2] == [0, 0]
    value, slopes = passes(fnn.BCELoss("none"), [-0.5, 1.5, jnp.nan, 0.5], [0.0, 1.0, 1.0, 1.0])
    assert [x != x for x in value] == [x != x for x in slopes] == [True, True, True, False]


def test_smooth_l1_is_huber_by_beta_and_l1_without():
    prediction, target = draw(1, (5, 3)), draw(2, (5, 3))
    for beta in (0.1, 2.0):
        actual = pass_through(fnn.SmoothL1Loss(beta), prediction, target)
        value, slopes = pass_through(fnn.HuberLoss(beta), prediction, target)
        chex.assert_trees_all_close(actual, (value / beta, slopes / beta), rtol=1e-5)
    prediction = prediction.at[0].set(target[0])
    actual = pass_through(fnn.SmoothL1Loss(0.0), prediction, target)
    chex.assert_trees_all_equal(actual, pass_through(fnn.L1Loss(), prediction, target))


@pytest.mark.parametrize("size", [1.0, 1e30, 1e-30])
def test_the_cosine_distance_does_not_depend_on_lengths(size):
    x, t = (
        size * jnp.array([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]]),
        jnp.array([[4.0, 3.0], [0.0, 2.0], [-1.0, 0.0]]),
    )
    terms, slopes = pass_through(fnn.CosineDistanceLoss("none"), x, t)
    chex.assert_trees_all_close(terms, jnp.array([1 - 0.96, 1.0, 2.0]), rtol=1e-5)
    expected = jnp.array([[-0.224, 0.168], [0.0, -1.0], [0.0, 0.0]]) / jnp.array([[5.0], [1], [2]])
    chex.assert_trees_all_close(slopes * size, expected, rtol=1e-5, atol=1e-7)


def test_a_vector_of_0_has_the_cosine_distance_1_and_no_derivative():
    x, t = jnp.array([[0.0, 0.0], [1.0, 2.0]]), jnp.array([[1.0, 1.0], [0.0, 0.0]])
    with jax.debug_nans(True):
        terms, slopes = pass_through(fnn.CosineDistanceLoss("none"), x, t)
    assert terms.tolist() == [1, 1]
    assert jnp.all(slopes == 0)


@pytest.mark.parametrize("options", [{}, OPTIONS[1]], ids=["plain", "weighted"])
def test_cross_entropy_of_many_classes_costs_no_more_than_by_vjp(options, on_the_cpu):
    loss, logits, labels = fnn.CrossEntropyLoss(**options), draw(1, (32, 1000)), jnp.arange(32)
    if options:
        loss = fnn.CrossEntropyLoss(**options | {"class_weights": jnp.ones(1000)})

    def by_vjp(logits, labels):
        value, vjp = jax.vjp(lambda logits: loss.forward(logits, labels)[0], logits)
        return value, *vjp(jnp.ones(()))

    costs = []
    for function in (lambda *args: pass_through(loss, *args), by_vjp):
        compiled = jax.jit(function).lower(logits, labels).compile()
        costs.append(
            (compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes)
        )
    assert costs[0][0] <= costs[1][0]
    assert costs[0][1] <= costs[1][1]


def test_the_options_of_a_loss_take_a_batch_over_explicit_axes():
    """As tests/test_sharding.py shows of the losses without options."""
    devices, explicit = jax.devices("cpu")[:4], (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((4,), ("data",), devices=devices, axis_types=explicit)
    logits, labels = fnn.shard_batch(mesh, (draw(1, (8, 2, 3)), jnp.ones((8, 2), int)))
    weighted = fnn.BCEWithLogitsLoss("none", pos_weight=class_weights)
    terms, slopes = jax.eval_shape(partial(pass_through, weighted), logits, logits)
    assert terms.sharding.spec[0] == slopes.sharding.spec[0] == "data"
    for reduction, expected in (("mean", jax.P()), ("none", jax.P("data", None))):
        loss = fnn.CrossEntropyLoss(reduction, **OPTIONS[2])
        value, slopes = jax.eval_shape(partial(pass_through, loss), logits, labels)
        assert (value.sharding.spec, slopes.sharding.spec[0]) == (expected, "data")


@pytest.mark.parametrize("make", [fnn.CrossEntropyLoss, fnn.NLLLoss])
def test_an_ignored_label_makes_no_nan_on_the_way(make):
    with jax.debug_nans(True):
        value, _ = make(ignore_index=-100).forward(jnp.ones((2, 3)), jnp.array([0, -100]))
    assert jnp.isfinite(value)


def test_the_cosine_distance_of_an_infinite_vector_is_that_of_its_direction():
    loss = fnn.CosineDistanceLoss()
    value, residuals = loss.forward(jnp.array([[jnp.inf, 1.0]]), jnp.ones((1, 2)))
    assert value == pytest.approx(1 - math.sqrt(0.5), rel=1e-6)
    assert jnp.allclose(loss.backward(residuals), 0)
