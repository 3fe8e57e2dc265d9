"""The README's code runs, in order, and its commands are the ones that are tested."""

import contextlib
import io
import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def printed():
    """What the python blocks print, run in order in JAX's default configuration."""
    namespace, output = {}, io.StringIO()
    allow = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with allow[0], allow[1], contextlib.redirect_stdout(output):
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), namespace)
    return output.getvalue()


def test_the_programs_learn_what_they_say(printed):
    claimed = re.findall(r"accuracy\(.*# ([\d.]+)%", README)
    reached = re.findall(r"^([\d.]+)%$", printed, re.MULTILINE)
    assert len(claimed) == len(reached) == 5
    for claim, result in zip(claimed, reached, strict=True):
        assert abs(float(claim) - float(result)) < 1
    *_, alone, ensemble = map(float, reached)
    assert ensemble > alone


def test_the_quoted_message_is_the_one_that_is_printed(printed):
    quoted = re.search(r"^# (check_layer: .*?disagree)$", README, re.DOTALL | re.MULTILINE)
    assert quoted[1].replace("\n# ", " ") in printed


def test_the_quoted_trace_is_the_one_that_is_printed(printed):
    (table,) = re.findall(
        r"^# ( +shape .*?\n# +d_prediction.*?)$", README, re.DOTALL | re.MULTILINE
    )
    assert table.replace("\n# ", "\n") in printed


def test_the_quoted_shape_is_the_one_that_is_printed(printed):
    (shape,) = re.findall(r"\.shape\)  # (\(.*?\)),", README)
    assert shape in printed.splitlines()


def test_it_has_at_most_350_lines():
    assert len(README.splitlines()) <= 350


def test_every_figure_is_there():
    figures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert sorted(figures) == [
        str(path.relative_to(ROOT)) for path in sorted((ROOT / "scripts/readme_figures").iterdir())
    ]


def test_the_first_program_takes_ten_lines():
    first_program = blocks("python")[0]
    assert len([line for line in first_program.splitlines() if line]) == 10


def test_every_room_is_in_the_table():
    for path in [*(ROOT / "fnn").glob("[a-z]*.py"), *(ROOT / "scripts").glob("*.py")]:
        assert path.name in README


def test_the_commands_use_environments_of_their_own():
    run, test, *_ = blocks("bash")
    assert "venv" in run
    assert "scripts/train_disk.py" in run
    assert "venv" in test
    assert "pytest" in test
