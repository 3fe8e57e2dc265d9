"""Metrics, against their definitions in plain Python."""

import statistics

import jax
import jax.numpy as jnp
import pytest
from cases import draw, draw_integers

import fnn

scores = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
of_classes = fnn.accuracy, fnn.confusion_matrix, fnn.f1_score


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
@pytest.mark.parametrize("metric", of_classes)
def test_labels_of_another_kind_are_refused(metric, labels, message):
    with pytest.raises(ValueError, match=f"{metric.__name__}: .*{message}"):
        metric(scores, labels)


@pytest.mark.parametrize("metric", of_classes)
def test_a_metric_of_nothing_is_refused(metric):
    with pytest.raises(ValueError, match="expected at least one example"):
        metric(jnp.zeros((0, 2)), jnp.zeros(0, int))


LOGITS = jnp.array([3.0, 3.0, -3.0, 3.0])
RIGHT = [1, 1, 0, 1]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "bool"])
@pytest.mark.parametrize(
    ("scores_shape", "labels_shape"),
    [((4,), (4,)), ((4, 1), (4,)), ((4, 1), (4, 1)), ((2, 2, 1), (2, 2)), ((2, 2, 1), (2, 2, 1))],
)
def test_one_column_of_scores_or_none_is_binary(scores_shape, labels_shape, dtype):
    labels = jnp.array(RIGHT).astype(dtype).reshape(labels_shape)
    assert fnn.accuracy(LOGITS.reshape(scores_shape), labels) == 1
    assert fnn.accuracy(-LOGITS.reshape(scores_shape), labels) == 0
    matrix = fnn.confusion_matrix(LOGITS.reshape(scores_shape), labels)
    assert matrix.tolist() == [[1, 0], [0, 3]]
    assert matrix.dtype == jnp.int32


def test_a_single_example_is_binary_where_its_label_has_its_shape():
    assert fnn.accuracy(jnp.array(3.0), jnp.array(1)) == 1
    assert fnn.accuracy(jnp.array([3.0]), jnp.array(1)) == 1
    assert fnn.accuracy(jnp.array([3.0]), jnp.array([1])) == 1
    assert jax.vmap(fnn.accuracy)(LOGITS, jnp.array(RIGHT)).tolist() == [1, 1, 1, 1]


def test_a_logit_of_0_is_class_0():
    assert fnn.accuracy(jnp.zeros(2), jnp.array([0, 1])) == 0.5


@pytest.mark.parametrize(
    ("scores_shape", "labels_shape", "message"),
    [
        ((4,), (3,), r"expected labels of shape \(4,\) or \(\) for scores of shape \(4,\), got"),
        ((4, 1), (3,), r"expected labels of shape \(4, 1\) or \(4,\)"),
        ((4, 1), (4, 2), r"expected labels of shape \(4, 1\) or \(4,\)"),
        ((2, 2), (2, 2), r"expected labels of shape \(2,\) for"),
        ((), (4,), r"expected labels of shape \(\) or \(\)"),
    ],
)
def test_binary_labels_of_another_shape_are_refused(scores_shape, labels_shape, message):
    with pytest.raises(ValueError, match=message):
        fnn.accuracy(jnp.ones(scores_shape), jnp.ones(labels_shape, int))


@pytest.mark.parametrize("columns", [1, 3])
def test_nan_scores_and_invalid_labels_are_of_no_class(columns):
    given = jnp.full((6, columns), -1.0).at[:, 0].set(-0.5)  # class 0 for all
    given = given.at[0, 0].set(jnp.nan).at[1, -1].set(jnp.nan)
    labels = jnp.array([0, 3, 3, -1, 0, 1])
    assert fnn.accuracy(given, labels) == pytest.approx(1 / 6)
    matrix = fnn.confusion_matrix(given, labels)
    assert matrix[0, 0] == matrix[1, 0] == 1
    assert matrix.sum() == 2


def many(classes):
    """Scores and labels of 300 examples, a third of them right, and the predicted classes."""
    given, labels = draw(1, (300, classes)), draw_integers(2, (300,), classes)
    given = given + jnp.where(draw(3, (300, 1)) > 0.5, 2 * jax.nn.one_hot(labels, classes), 0)
    return given, labels, [row.index(max(row)) for row in given.tolist()]


@pytest.mark.parametrize("classes", [2, 5])
def test_a_confusion_matrix_counts_each_pair(classes):
    given, labels, predicted = many(classes)
    matrix = jax.jit(fnn.confusion_matrix)(given, labels)
    pairs = [*zip(labels.tolist(), predicted, strict=True)]
    expected = [[pairs.count((i, j)) for j in range(classes)] for i in range(classes)]
    assert matrix.tolist() == expected
    assert jnp.trace(matrix) / 300 == fnn.accuracy(given, labels)


def f1(pairs, number):
    true_positives = pairs.count((number, number))
    predicted, actual = ([pair[i] for pair in pairs].count(number) for i in (1, 0))
    precision, recall = (true_positives / n if n else 0.0 for n in (predicted, actual))
    return 2 * precision * recall / (precision + recall) if true_positives else 0.0


def test_f1_is_the_mean_over_the_classes_that_occur():
    given, labels, predicted = many(4)
    pairs = [*zip(labels.tolist(), predicted, strict=True)]
    expected = statistics.fmean(f1(pairs, number) for number in range(4))
    assert fnn.f1_score(given, labels) == pytest.approx(expected, rel=1e-6)
    with_a_fifth = jnp.concatenate([given, jnp.full((300, 1), -9.0)], axis=-1)
    assert fnn.f1_score(with_a_fifth, labels) == pytest.approx(expected, rel=1e-6)


def test_binary_f1_is_that_of_class_1():
    logits, labels = draw(1, (300,)), draw_integers(2, (300,), 2)
    pairs = [*zip(labels.tolist(), [int(x > 0) for x in logits.tolist()], strict=True)]
    assert fnn.f1_score(logits, labels) == pytest.approx(f1(pairs, 1), rel=1e-6)
    assert fnn.f1_score(-jnp.ones(3), jnp.zeros(3, int)) == 0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_looks_among_the_k_highest_scores(k):
    given, labels, _ = many(5)
    pairs = zip(given.tolist(), labels.tolist(), strict=True)
    is_among = [row[label] in sorted(row)[-k:] for row, label in pairs]
    expected = statistics.fmean(is_among)
    assert fnn.top_k_accuracy(given, labels, k) == pytest.approx(expected, rel=1e-6)
    assert fnn.top_k_accuracy(given, labels, 1) == fnn.accuracy(given, labels)


def test_top_k_accuracy_knows_ties_nan_and_invalid_labels():
    given = jnp.array([[1.0, 1.0, 1.0], [jnp.nan, 1.0, 2.0], [1.0, 2.0, 3.0]])
    assert fnn.top_k_accuracy(given[:1], jnp.array([1]), 2) == 1
    assert fnn.top_k_accuracy(given[:1], jnp.array([2]), 2) == 0
    assert fnn.top_k_accuracy(given[1:], jnp.array([2, 3]), 3) == 0


def test_top_1_accuracy_takes_both_zeros_as_equal():
    given, labels = jnp.array([[-0.0, 0.0, -1.0], [-1.0, -0.0, 0.0]]), jnp.array([0, 1])
    assert fnn.accuracy(given, labels) == 1
    for top_1 in (fnn.top_k_accuracy, jax.jit(fnn.top_k_accuracy, static_argnums=2)):
        assert top_1(given, labels, 1) == 1


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((4, 1), 1, r"expected scores of two or more classes, got shape \(4, 1\)"),
        ((4,), 1, r"expected scores of two or more classes, got shape \(4,\)"),
        ((4, 3), 4, "expected k to be an integer from 1 to 3, got 4"),
        ((4, 3), 0, "expected k to be an integer from 1 to 3, got 0"),
    ],
)
def test_top_k_accuracy_refuses_what_has_no_k_highest(shape, k, message):
    with pytest.raises(ValueError, match=message):
        fnn.top_k_accuracy(jnp.ones(shape), jnp.zeros(4, int), k)


def test_r2_is_1_minus_the_share_of_the_variance_that_is_left():
    target, prediction = draw(1, (50, 2)), draw(1, (50, 2)) + 0.5 * draw(2, (50, 2))
    expected = []
    for t, p in zip(target.T.tolist(), prediction.T.tolist(), strict=True):
        left = statistics.fmean((a - b) ** 2 for a, b in zip(t, p, strict=True))
        expected.append(1 - left / statistics.pvariance(t))
    assert fnn.r2_score(prediction, target) == pytest.approx(statistics.fmean(expected), rel=1e-5)
    assert fnn.r2_score(prediction[:, 0], target[:, 0]) == pytest.approx(expected[0], rel=1e-5)
    assert fnn.r2_score(1e30 * prediction, 1e30 * target) == pytest.approx(
        statistics.fmean(expected), rel=1e-5
    )


def test_r2_of_a_constant_target_is_1_or_0():
    target = jnp.full(5, 0.1)
    assert fnn.r2_score(target, target) == 1
    assert fnn.r2_score(target.at[0].set(1.0), target) == 0


def test_mean_absolute_error_is_over_all_elements():
    target, prediction = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.5, 1.0], [3.0, 4.5]])
    assert fnn.mean_absolute_error(prediction, target) == 0.5


def test_metrics_of_large_numbers_do_not_overflow_inside():
    target = jnp.array([3e38, -3e38, 3e38, 2e38])
    prediction = jnp.array([-3e37, -3e38, 3e38, -2e38])
    error = fnn.mean_absolute_error(prediction, target)
    assert float(error) == pytest.approx((3.3e38 + 4e38) / 4, rel=1e-6)
    scaled = fnn.r2_score(prediction / 1e30, target / 1e30)
    assert jnp.isfinite(scaled)
    assert float(fnn.r2_score(prediction, target)) == pytest.approx(float(scaled), rel=1e-5)
    assert fnn.mean_absolute_error(jnp.array([3e-38]), jnp.array([1.5e-38])) > 0
    assert fnn.mean_absolute_error(jnp.array([jnp.inf]), jnp.ones(1)) == jnp.inf
    many_columns = jnp.stack([target, 1e-10 * target / 3e38], axis=1)
    assert fnn.r2_score(many_columns, many_columns) == 1


@pytest.mark.parametrize("metric", [fnn.r2_score, fnn.mean_absolute_error])
@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (jnp.ones((4, 1)), jnp.ones(4), r"expected target of shape \(4, 1\), got \(4,\)"),
        (jnp.ones(4), jnp.ones(4, int), "expected target of a floating dtype, got int32"),
        (jnp.ones(0), jnp.ones(0), "expected at least one example"),
    ],
)
def test_metrics_of_numbers_refuse_what_does_not_fit(metric, prediction, target, message):
    with pytest.raises(ValueError, match=f"{metric.__name__}: {message}"):
        metric(prediction, target)


def test_r2_of_one_example_is_refused():
    with pytest.raises(ValueError, match=r"r2_score: expected shape .* two or more examples"):
        fnn.r2_score(jnp.ones(1), jnp.ones(1))
