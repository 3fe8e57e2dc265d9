"""train_csv.py: tables in several forms, what it writes, and mistakes in one line."""

import csv

import pytest
import train_csv
from cases import draw
from shared import tables

import fnn


def rows(count=60):
    """Two inputs, a category, and a class and a number that depend on them."""
    for a, b, c in draw(1, (count, 3)).tolist():
        color = "red" if c > 0 else "deep, blue"
        yield [f"{a:.4f}", f"{100 * b:.2f}", color, "yes" if a + c > 0 else "no", f"{a - b:.4f}"]


NAMES = ["a", "b", "color", "class", "number"]
FAST = ["--epochs", "30", "--hidden", "16", "--learning-rate", "0.02", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, which has table.csv."""
    monkeypatch.chdir(tmp_path)
    write("table.csv", [NAMES, *rows()])
    return tmp_path


def write(path, table, **form):
    with open(path, "w", newline="", encoding=form.pop("encoding", "utf-8")) as file:
        csv.writer(file, **form).writerows(table)


def drop(name, table=None):
    """The table without one of the columns."""
    place = NAMES.index(name)
    return [[*row[:place], *row[place + 1 :]] for row in table or [NAMES, *rows()]]


def run(*arguments):
    return train_csv.main([*map(str, arguments)])


def test_a_classification_is_learned_reported_and_predicted(folder, capsys):
    write("table.csv", drop("number"))
    assert run("table.csv", "--target", "class", *FAST) == 0
    (summary,) = capsys.readouterr().out.splitlines()
    assert float(summary.split()[2].rstrip("%,")) > 80
    assert "12 test rows; always" in summary
    assert (folder / "runs/csv/curves.svg").read_text().startswith("<svg")
    with open(folder / "runs/csv/metrics.csv") as file:
        history = [*csv.DictReader(file)]
    assert [*history[0]] == ["epoch", "train_loss", "train_accuracy"]
    assert len(history) == 30

    write("new.csv", drop("class", drop("number")))
    assert run("--predict", "new.csv") == 0
    name, *predictions = capsys.readouterr().out.splitlines()
    truth = [row[3] for row in rows()]
    assert name == "class"
    assert sum(map(str.__eq__, predictions, truth)) / len(truth) > 0.8


def test_a_regression_is_predicted_in_the_units_of_the_table(folder, capsys):
    write("table.csv", [NAMES, *([*row[:4], 1000 + 50 * float(row[4])] for row in rows())])
    options = ["--epochs", 200, "--validation", 0.2, "--weight-decay", 0.1]
    assert run("table.csv", "--target", "number", *FAST, *options) == 0
    summary = capsys.readouterr().out
    assert summary.startswith("test R2 0.")
    assert run("--predict", "table.csv") == 0
    name, *predictions = capsys.readouterr().out.splitlines()
    truth = [1000 + 50 * float(row[4]) for row in rows()]
    errors = [abs(float(p) - t) for p, t in zip(predictions, truth, strict=True)]
    assert name == "number"
    assert sum(errors) / len(errors) < 25


def test_without_quiet_network_epochs_and_confusion_are_shown(folder, capsys):
    run("table.csv", "--target", "class", *FAST[:-1])
    out = capsys.readouterr().out
    assert "Standardize(5)" in out
    assert "epoch 30/30" in out
    header, no, yes, _ = out.splitlines()[-4:]
    assert header.startswith("test rows by class (down)")
    assert (no.split()[0], yes.split()[0]) == ("no", "yes")
    assert sum(map(int, no.split()[1:] + yes.split()[1:])) == 12


def test_the_same_seed_gives_the_same_parameters(folder):
    stored = []
    for seed in (1, 1, 2):
        run("table.csv", "--target", "class", *FAST, "--seed", seed)
        stored.append((folder / "runs/csv/params.npz").read_bytes())
    assert stored[0] == stored[1] != stored[2]


@pytest.mark.parametrize(
    ("header", "form", "target"),
    [
        (True, {"delimiter": ";"}, "class"),
        (True, {"delimiter": "\t", "lineterminator": "\n"}, "4"),
        (False, {"encoding": "utf-8-sig", "quoting": csv.QUOTE_ALL}, "4"),
    ],
)
def test_a_table_may_have_several_forms(header, form, target, folder):
    write("table.csv", [NAMES, *rows()] if header else rows(), **form)
    table = tables.read(folder / "table.csv")
    assert [*table] == (NAMES if header else ["1", "2", "3", "4", "5"])
    columns = [*zip(*rows(), strict=True)]
    assert [[text for _, text in cells] for cells in table.values()] == [*map(list, columns)]
    assert tables.find_column("table.csv", table, target) == ("class" if header else "4")


def test_categories_are_one_hot_and_numbers_as_they_are(folder):
    table = {"size": [(1, "2.5"), (2, "-1e2")], "color": [(1, "red"), (2, "blue")]}
    features = tables.features("table.csv", table)
    assert features == {"size": None, "color": ["blue", "red"]}
    inputs = tables.to_inputs("table.csv", table, features)
    assert inputs.tolist() == [[2.5, 0, 1], [-100, 1, 0]]


@pytest.mark.parametrize(
    ("texts", "task", "expected"),
    [
        (["b", "a", "b"], "auto", ["a", "b"]),
        (["10", "9", "10.0"], "auto", ["9", "10", "10.0"]),
        (["1", "x"], "auto", ["1", "x"]),
        (["0.5", "1"], "auto", None),
        ([str(number) for number in range(21)], "auto", None),
        (["0", "1"], "regression", None),
        (["0.5", "1"], "classification", ["0.5", "1"]),
    ],
)
def test_the_targets_kind_decides_unless_the_task_is_given(texts, task, expected):
    cells = [*enumerate(texts, 1)]
    classes = tables.classes("table.csv", "target", cells, task)
    assert classes is None if expected is None else sorted(classes) == sorted(expected)


GOOD = "a,b,class\n" + "1,2,x\n3,4,y\n" * 6
BAD_TABLES = {
    "": "table.csv: expected rows, got an empty table",
    "a,b,class\n": "table.csv: expected rows, got an empty table",
    GOOD + "1,2\n": "table.csv: line 14: expected 3 cells, got 2",
    GOOD + "1,,x\n": "table.csv: line 14, column b: the value is missing",
    GOOD + "\n\n1,2,NA\n": "table.csv: line 16, column class: the value is missing",
    GOOD + "1,two,x\n": "table.csv: line 14, column b: expected a finite number, got 'two'",
    GOOD + "1,1e39,x\n": "table.csv: line 14, column b: expected a finite number, got '1e39'",
    GOOD + '1,"2\n': "table.csv: line 14: expected 3 cells, got 2",
    GOOD.replace("y", "x"): "table.csv: column class: expected two classes or more, got one",
    GOOD.replace("class", "a"): "table.csv: expected different names of columns, got a, b, a",
    GOOD.replace("class", "kind"): "table.csv: expected a column class, got columns a, b, kind",
    "a,b,class\n1,2,x\n3,4,y\n": "expected 10 rows and one column or more, got 2 rows and 2",
    "class\n" + "x\ny\n" * 6: "got 12 rows and 0 columns beside the target",
    "a,class\n" + "".join(f"t{n},{n % 2}\n" for n in range(101)): (
        "table.csv: column a: expected numbers or at most 100 categories, got 101 texts"
    ),
}


def fails(capsys, *arguments):
    """What the script says before it ends with status 2: one line."""
    try:
        status = run(*arguments)
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize(("text", "message"), BAD_TABLES.items(), ids=range(len(BAD_TABLES)))
def test_a_mistake_in_the_table_ends_in_one_line(text, message, folder, capsys):
    (folder / "table.csv").write_text(text)
    assert message in fails(capsys, "table.csv", "--target", "class")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected a table and --target, or --predict with a table"),
        ("table.csv", "expected a table and --target, or --predict with a table"),
        ("none.csv --target a", "none.csv: No such file or directory"),
        (". --target a", ".: Is a directory"),
        ("bytes.csv --target a", "bytes.csv: expected text in UTF-8"),
        ("table.csv --target class --task regression", "line 2, column class: expected a finite"),
        ("table.csv --target class --epochs 0", "argument --epochs: expected an integer from 1"),
        ("table.csv --target class --validation 1", "--validation: expected a number below 1"),
        ("table.csv --predict table.csv", "argument --predict: expected no other table"),
        ("--predict table.csv", "runs/csv/params.npz: No such file or directory"),
        ("--predict table.csv --output other", "other/params.npz: expected what this script"),
        ("table.csv --target class --output /dev/null", "--output: cannot write /dev/null"),
    ],
)
def test_a_mistake_in_the_command_ends_in_one_line(arguments, message, folder, capsys):
    (folder / "bytes.csv").write_bytes(b"a,b\n\xff,1\n")
    (folder / "other").mkdir()
    fnn.save(folder / "other" / "params.npz", ())
    assert message in fails(capsys, *arguments.split())


def test_a_table_to_predict_must_be_like_the_one_trained_on(folder, capsys):
    run("table.csv", "--target", "class", *FAST, "--epochs", "1")
    capsys.readouterr()
    write("new.csv", drop("color"))
    assert "new.csv: expected a column color, got" in fails(capsys, "--predict", "new.csv")
    write("new.csv", [NAMES, ["1", "2", "green", "yes", "3"]])
    message = "line 2, column color: expected one of deep, blue, red, got 'green'"
    assert message in fails(capsys, "--predict", "new.csv")


def test_every_row_counts_when_there_are_few(folder):
    (folder / "table.csv").write_text("a,class\n" + "1,x\n2,y\n" * 5)
    for validation in (0, 0.05, 0.9):
        assert run("table.csv", "--target", "class", *FAST, "--validation", validation) == 0
