"""The params that a page shows, in a file, so that the page of a resumed training is whole."""

import pathlib
from typing import Any

import fnn

FILE = "snapshots.npz"


def save(folder: pathlib.Path, params_by_epoch: dict[int, Any], settings: dict) -> None:
    """Write the params of these epochs, and the settings of the run that has them."""
    note = {"epochs": [*params_by_epoch], "settings": settings}
    fnn.save(folder / FILE, [*params_by_epoch.values()], note=note)


def load(folder: pathlib.Path, like: Any, settings: dict) -> dict[int, Any]:
    """The params by epoch, if the file is there and from a run with these settings; else {}.

    They have the structure of `like`. A page without them is no error: it begins later.
    """
    try:
        note = fnn.read_note(folder / FILE)
        if note["settings"] != settings:
            return {}
        epochs = note["epochs"]
        return dict(zip(epochs, fnn.load(folder / FILE, [like] * len(epochs)), strict=True))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
