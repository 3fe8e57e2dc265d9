"""Write a file as a whole or not at all."""

import contextlib
import csv
import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

_UNFINISHED = re.compile(r"\.[0-9a-f]{8}\.unfinished$")  # how the names of unfinished files end


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Give a new binary file to write, which takes the place of `path` when the block ends.

    The new file is beside `path`, as `<name>.<random>.unfinished` with a long name shortened. It
    is renamed to `path` when it is on the disk. So `path` is at any moment all of the old file or
    all of the new one. If the block raises an exception, the new file is removed.

    The new file gets the old one's permissions. If `path` is a symbolic link, the file that it
    leads to is replaced.

    Raises:
        OSError: the file cannot be written, or `path` is a folder, a device or a pipe. The message
            names the file to be replaced.
    """
    path = os.path.realpath(os.fsdecode(path))
    check_regular(path)
    folder, name = os.path.split(path)
    # A file name has at most 255 bytes, and a character at most 4 of them: 4 * 55 + 20 < 255.
    unfinished = os.path.join(folder, f"{name[:55]}.{secrets.token_hex(4)}.unfinished")
    try:
        with _flush_afterwards(folder):
            with open(unfinished, "xb") as file:
                if os.path.exists(path):
                    shutil.copymode(path, unfinished)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        if isinstance(error, OSError):
            is_ours = error.filename in (None, folder, unfinished) or error.filename2
            if is_ours:  # the caller knows only `path`
                error.filename = path
                del error.filename2
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """The file is `text` as a whole, in UTF-8, or as it was before."""
    with replace_file(path) as file:
        file.write(text.encode())


def write_rows(path: str | os.PathLike, rows: Iterable[Sequence]) -> None:
    """As write_text, with the rows as comma-separated values."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Remove the files in `folder` that replace_file was writing when its process was killed.

    No other process may be writing to the folder: the files that it has begun would go too.

    Raises:
        OSError: the folder cannot be read, or a file cannot be removed.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if _UNFINISHED.search(entry.name) and entry.is_file(follow_symlinks=False):
                os.remove(entry.path)


class InUseError(BlockingIOError):
    """Another process writes in the folder."""


@contextlib.contextmanager
def sole_use(folder: str | os.PathLike) -> Iterator[None]:
    """Lock the folder by a file `.lock` in it, so that two programs do not write there at once.

    It first removes what a killed program was writing, as remove_unfinished does. The system drops
    the lock when the process ends or is killed.

    Raises:
        InUseError: another process holds the lock.
        OSError: the folder cannot be written, or `.lock` is a folder, a device or a pipe.
    """
    import fcntl  # not there on every system

    lock = os.path.join(folder, ".lock")
    check_regular(lock)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"another run is writing to {folder}") from None
        remove_unfinished(folder)
        yield


def check_regular(path: str | os.PathLike) -> None:
    """Raise OSError if `path` is a folder, a device or a pipe. A missing file passes."""
    if os.path.exists(path) and not os.path.isfile(path):
        number = errno.EISDIR if os.path.isdir(path) else errno.EINVAL
        raise OSError(number, "not a regular file", os.fsdecode(path))


@contextlib.contextmanager
def _flush_afterwards(folder):
    """Flush the folder to the disk after the block, so that the new name of a file is lasting.

    The folder is opened before the block: if that fails, nothing has been replaced yet.
    """
    if os.name != "posix":  # other systems cannot open a folder
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield
        try:
            os.fsync(descriptor)
        except OSError as error:  # some network and shared folders cannot be flushed
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
    finally:
        os.close(descriptor)
