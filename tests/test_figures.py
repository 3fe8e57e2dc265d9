"""Figures are well-formed SVG and show the numbers they are given."""

import itertools
import math
import re
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import pytest
from shared import disk, figures
from shared.figures import Curve

import fnn

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def points_of(element):
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def test_disk_data_draws_every_point_by_its_label():
    points, labels = [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0)], [1, 0, 0]
    svg = figures.disk_data(points, labels, (0.5, 0.5), 0.4)
    assert "M260 240h0" in svg  # the middle of axes from (60, 440) to (460, 40)
    assert "M60 440h0M460 40h0" in svg
    circle = next(ElementTree.fromstring(svg).iter(f"{SVG}circle"))
    assert (circle.get("cx"), circle.get("cy"), circle.get("r")) == ("260.0", "240.0", "160.00")
    assert {"x₁", "x₂", "inside: label 1", "outside: label 0"} <= set(texts(svg))


def test_decision_regions_counts_and_marks_the_mistakes():
    inside = [[False] * 4, [False, True, True, False], [True] * 4, [False] * 4]
    svg = figures.decision_regions(inside, [(0.5, 0.5), (0.1, 0.1)], [1, 0], (0.5, 0.5), 0.4)
    assert "M160.00 240.00h200.00v100.00H160.00z" in svg  # the run in the second row from below
    assert "M60.00 140.00h400.00v100.00H60.00z" in svg  # the run in the third
    assert {"inside, missed: 1", "outside, missed: 1"} <= set(texts(svg))


def test_network_follows_the_shapes_of_the_params():
    model = fnn.Sequential(fnn.Linear(3, 7), fnn.Tanh(), fnn.Linear(7, 40), fnn.Sigmoid())
    svg = figures.network(model.init(jax.random.key(0)), ["tanh", "sigmoid"])
    assert {"3 units", "7 units", "40 units, 25 drawn", "W 7 by 3, b 7"} <= set(texts(svg))
    assert {"input", "tanh", "sigmoid", "W 40 by 7, b 40"} <= set(texts(svg))
    assert svg.count("h0") == 3 + 7 + 25
    assert len(re.findall(r"M[\d.]+ [\d.]+L", svg)) == 3 * 7 + 7 * 25


def test_learning_curves_put_higher_values_higher():
    losses, accuracies = [1.0, 0.1, 0.01], [0.5, 0.75, 1.0]
    svg = figures.learning_curves(
        [("MSE", [Curve("one", losses)]), ("accuracy, %", [Curve("one", accuracies)])], "Title"
    )
    lines = [points_of(line) for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")]
    (_, first), (_, second), (_, third) = lines[0]
    assert first < second < third  # pixels count from above: the loss falls
    assert math.isclose(third - second, second - first, abs_tol=0.05)  # evenly on a log axis
    (_, first), (_, second), (_, third) = lines[1]
    assert third < second < first
    assert {"epoch", "MSE", "accuracy, %", "0.1", "100", "one", "Title"} <= set(texts(svg))


def test_learning_curves_draw_a_band_and_leave_out_what_is_not_finite():
    nan = math.nan
    band = Curve("a & b", [0.2, 0.1], [0.1, 0.05], [0.4, 0.2])
    svg = figures.learning_curves([("MSE", [band, Curve("broken", [0.3, nan])])], "<Title>")
    (polygon,) = ElementTree.fromstring(svg).iter(f"{SVG}polygon")
    assert len(points_of(polygon)) == 4
    assert "nan" not in svg
    assert {"a & b", "<Title>"} <= set(texts(svg))
    figures.learning_curves([("MSE", [Curve("nothing", [nan])])], "no finite value at all")


def test_learning_curves_break_where_a_value_is_not_finite():
    svg = figures.learning_curves([("MSE", [Curve("a", [0.3, 0.2, math.nan, 0.2, 0.1])])], "")
    lines = [points_of(line) for line in ElementTree.fromstring(svg).iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [2, 2, 2]  # two runs, and the legend's line


def test_learning_curves_of_one_epoch_are_dots_on_whole_epochs():
    svg = figures.learning_curves([("MSE", [Curve("a", [0.25])])], "")
    assert svg.count("h0") == 1
    assert {"0", "1", "2", "3", "4"} <= set(texts(svg))
    assert "0.5" not in texts(svg)


def test_a_narrow_range_of_losses_has_ticks_too():
    svg = figures.learning_curves([("MSE", [Curve("a", [0.27, 0.26, 0.255])])], "")
    assert {"0.24", "0.26", "0.28"} <= set(texts(svg))


def marks(svg):
    """The heights of all marks of the curves."""
    lines = [*ElementTree.fromstring(svg).iter(f"{SVG}polyline")][:-1]  # but the legend's
    polygons = ElementTree.fromstring(svg).iter(f"{SVG}polygon")
    dots = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)h0", svg)]
    return dots + [y for part in (*lines, *polygons) for _, y in points_of(part)]


HOSTILE = [1e308, -1e308, -1.0, 0.0, 5e-324, 1e-13, 1.0000000001e-13, 0.5, math.nan, math.inf]


@pytest.mark.parametrize("y_label", ["MSE", "accuracy, %"])
def test_learning_curves_draw_any_number_inside_the_axes(y_label):
    for pair in itertools.product(HOSTILE, repeat=2):
        for curve in (Curve("a", pair), Curve("a", pair, pair[::-1], pair), Curve("a", pair[:1])):
            svg = figures.learning_curves([(y_label, [curve])], "")
            assert "nan" not in svg
            assert "inf" not in svg
            assert all(40 <= y <= 310 for y in marks(svg))


def test_losses_that_hardly_differ_have_ticks():
    for losses in ([1e-13], [1e-13, 1.0000000001e-13], [3e-20, 3.1e-20], [7e-90]):
        svg = figures.learning_curves([("MSE", [Curve("a", losses)])], "")
        ticks = {text for text in texts(svg) if re.fullmatch(r"[\d.]+e-\d+", text)}
        assert len(ticks) >= 2


def test_a_wide_range_of_losses_has_few_ticks():
    svg = figures.learning_curves([("MSE", [Curve("a", [1e90, 1e-90])])], "")
    assert 5 <= len([text for text in texts(svg) if re.search("e[+-]", text)]) <= 20


def test_ticks_are_round_and_inside():
    for low, high in ((0, 1), (0, 150), (47.3, 100), (-3, 4e6), (0.001, 0.0013)):
        ticks = figures._ticks(low, high)
        assert 3 <= len(ticks) <= 9
        assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([1.0, 3.0], 2.0, 12.7062),  # t with 1 degree of freedom: 12.7062
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 2.77645 * math.sqrt(2.5 / 5)),
        ([7.0] * 4, 7.0, 0.0),
    ],
)
def test_confidence_intervals_use_students_t(values, mean, half_width):
    interval = disk.confidence_interval(jnp.array([values, values]))
    expected = [mean] * 2, [half_width] * 2
    assert [part.tolist() for part in interval] == [pytest.approx(e, rel=1e-4) for e in expected]


def test_one_value_has_no_interval():
    assert math.isnan(disk.confidence_interval(jnp.array([1.0]))[1])


def test_encodings():
    labels = jnp.array([0, 1])
    assert disk.encode(labels).tolist() == [[1, 0], [0, 1]]
    assert disk.encode(labels, "report").tolist() == [[0, 0], [0, 1]]
