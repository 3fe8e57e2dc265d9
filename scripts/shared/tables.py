"""Tables in text files: columns of numbers and of categories, as the inputs of a network.

A mistake in a table is a UserError that names the file, the line and the column.
"""

import csv
import io
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from shared.command_line import UserError

MISSING = {"", "?", "na", "n/a", "nan", "null"}  # in small letters
MOST_CATEGORIES, MOST_CLASSES_OF_NUMBERS = 100, 20
Cells = list[tuple[int, str]]  # the lines and texts of a column


def read(path: pathlib.Path) -> dict[str, Cells]:
    """The columns by name. The delimiter is the one of , ; and tab that the first line has most of.

    The first row has the names if none of its cells is a number. Else the names are 1, 2, ...
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected text in UTF-8") from None
    head = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        rows = [(reader.line_num, [*map(str.strip, row)]) for row in reader if any(row)]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None
    first = rows[0][1] if rows else []
    names = [str(number) for number, _ in enumerate(first, 1)]
    if not any(map(_is_number, first)):
        names = [name or number for name, number in zip(first, names, strict=True)]
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path}: expected rows, got an empty table")
    if len({*names}) < len(names):
        raise UserError(f"{path}: expected different names of columns, got {', '.join(names)}")
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(f"{path}: line {line}: expected {len(names)} cells, got {len(row)}")
        for name, cell in zip(names, row, strict=True):
            if cell.lower() in MISSING:
                raise UserError(f"{path}: line {line}, column {name}: the value is missing")
    return {name: [(line, row[i]) for line, row in rows] for i, name in enumerate(names)}


def find_column(path: pathlib.Path, table: dict[str, Cells], wanted: str) -> str:
    """The name of the column with this name, or with this number from 1."""
    by_number = {str(number): name for number, name in enumerate(table, 1)}
    name = wanted if wanted in table else by_number.get(wanted)
    if name is None:
        raise UserError(f"{path}: expected a column {wanted}, got columns {', '.join(table)}")
    return name


def features(path: pathlib.Path, columns: dict[str, Cells]) -> dict[str, list[str] | None]:
    """For each column its categories in order, or None if it has numbers, as its first cell."""
    found = {}
    for name, cells in columns.items():
        categories = None if _is_number(cells[0][1]) else sorted({text for _, text in cells})
        if categories and len(categories) > MOST_CATEGORIES:
            expected = f"numbers or at most {MOST_CATEGORIES} categories"
            got = f"got {len(categories)} texts"
            raise UserError(f"{path}: column {name}: expected {expected}, {got}")
        found[name] = categories
    return found


def to_inputs(
    path: pathlib.Path, table: dict[str, Cells], features: dict[str, list[str] | None]
) -> jax.Array:
    """An array (rows, inputs): an input for a column of numbers, and one for each category."""
    inputs = []
    for name, categories in features.items():
        cells = table[find_column(path, table, name)]
        if categories is None:
            inputs.append(to_numbers(path, name, cells)[:, None])
        else:
            labels = to_labels(path, name, cells, categories)
            inputs.append(jax.nn.one_hot(labels, len(categories)))
    return jnp.concatenate(inputs, axis=1)


def to_numbers(path: pathlib.Path, name: str, cells: Cells) -> jax.Array:
    """The column of numbers as an array (rows,)."""
    for line, text in cells:
        if not (_is_number(text) and abs(float(text)) < 3e38):
            where = f"{path}: line {line}, column {name}"
            raise UserError(f"{where}: expected a finite number, got {text!r}")
    return jnp.array([float(text) for _, text in cells])


def to_labels(path: pathlib.Path, name: str, cells: Cells, categories: list[str]) -> jax.Array:
    """Each cell's number among the categories, as an array (rows,) of integers."""
    numbers = {text: number for number, text in enumerate(categories)}
    for line, text in cells:
        if text not in numbers:
            where = f"{path}: line {line}, column {name}"
            raise UserError(f"{where}: expected one of {', '.join(categories)}, got {text!r}")
    return jnp.array([numbers[text] for _, text in cells])


def classes(path: pathlib.Path, name: str, cells: Cells, task: str) -> list[str] | None:
    """The classes of a target in order, or None for a regression.

    The task "auto" is a classification if a cell is no number, or if there are few whole numbers.
    """
    texts = {text for _, text in cells}
    are_numbers = all(map(_is_number, texts))
    has_few = are_numbers and len(texts) <= MOST_CLASSES_OF_NUMBERS and _are_whole(texts)
    if task == "regression" or (task == "auto" and are_numbers and not has_few):
        return None
    if len(texts) == 1:
        raise UserError(f"{path}: column {name}: expected two classes or more, got one")
    return sorted(texts, key=float if are_numbers else str)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which float allows


def _are_whole(texts: Iterable[str]) -> bool:
    return all(float(text).is_integer() for text in texts)
