"""The files of results that scripts write: whole or not at all."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence

import fnn


def write_text(path: pathlib.Path, text: str) -> None:
    """The file is `text` as a whole, or as it was before."""
    with fnn.replace_file(path) as file:
        file.write(text.encode())


def write_rows(path: pathlib.Path, rows: Iterable[Sequence]) -> None:
    """As write_text, with the rows as comma-separated values."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def format_metrics(columns: Iterable[str], metrics: Iterable[float]) -> list[str]:
    """The metrics as text for a table, accuracies without float32's last digits."""
    digits = (6 if column.endswith("accuracy") else 8 for column in columns)
    return [f"{value:.{n}g}" for value, n in zip(metrics, digits, strict=True)]
