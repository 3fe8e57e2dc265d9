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
    claimed = re.findall(r"accuracy\(.*# ([\d.]+)%$", README, re.MULTILINE)
    reached = re.findall(r"^([\d.]+)%$", printed, re.MULTILINE)
    assert len(claimed) == len(reached) == 6
    for claim, result in zip(claimed, reached, strict=True):
        assert abs(float(claim) - float(result)) < 1
    *_, alone, ensemble = map(float, reached)
    assert ensemble > alone


def test_the_printed_place_is_that_of_the_first_infinity(printed):
    (place,) = re.findall(r"find_nonfinite\(.*  # (\(.*\))$", README, re.MULTILINE)
    assert place in printed.splitlines()


def test_the_quoted_message_is_the_one_that_is_printed(printed):
    quoted = re.search(r"^# (check_layer: .*?disagree)$", README, re.DOTALL | re.MULTILINE)
    assert quoted[1].replace("\n# ", " ") in printed


def test_the_quoted_summaries_are_the_ones_that_are_printed(printed):
    quoted = re.findall(r"^# ( +layer .*?\n# +total.*?)$", README, re.DOTALL | re.MULTILINE)
    assert len(quoted) == 2
    for table in quoted:
        assert table.replace("\n# ", "\n") in printed


def test_the_quoted_traces_are_the_ones_that_are_printed(printed):
    quoted = re.findall(r"^# ( +shape .*?\n# +d_prediction.*?)$", README, re.DOTALL | re.MULTILINE)
    assert len(quoted) == 2
    for table in quoted:
        assert table.replace("\n# ", "\n") in printed
    assert "\n2.00\n" in printed


def test_the_first_program_takes_ten_lines():
    first_program = blocks("python")[1]
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
