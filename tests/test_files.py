"""A file is written as a whole or not at all."""

import errno
import os
import stat

import pytest

import fnn


def write(path, content):
    with fnn.replace_file(path) as file:
        file.write(content)


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"old")
    with fnn.replace_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), fnn.replace_file(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_about_another_file_keeps_the_name_of_that_file(tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as info, fnn.replace_file(tmp_path / "result"):
        os.stat(missing)
    assert info.value.filename == missing


@pytest.mark.parametrize("letter", ["a", "é", "\N{GRINNING FACE}", os.fsdecode(b"\xff")], ids=ascii)
def test_every_name_that_the_system_takes_can_be_written(letter, tmp_path):
    for length in range(230, 256):
        name = letter * (length // len(os.fsencode(letter)))
        write(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOTSUP, errno.EIO], ids=errno.errorcode.get
)
def test_a_folder_may_have_no_fsync_but_not_one_that_fails(number, tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if number == errno.EIO:
        with pytest.raises(OSError, match=f"{os.strerror(number)}: '{tmp_path}/result'"):
            write(tmp_path / "result", b"new")
    else:
        write(tmp_path / "result", b"new")
        assert (tmp_path / "result").read_bytes() == b"new"


def test_unfinished_files_are_removed_and_nothing_else(tmp_path):
    unfinished = ["params.npz.0123abcd.unfinished", "curves.svg.ffffffff.unfinished"]
    kept = ["params.npz", "thesis.unfinished", "a.0123.unfinished", "b.0123ABCD.unfinished"]
    for name in (*unfinished, *kept):
        (tmp_path / name).touch()
    (tmp_path / "folder.0123abcd.unfinished").mkdir()
    fnn.remove_unfinished(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*kept, "folder.0123abcd.unfinished"}


def test_a_killed_block_leaves_what_remove_unfinished_removes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "remove", lambda path: None)  # a killed process removes nothing
    with pytest.raises(ZeroDivisionError), fnn.replace_file(tmp_path / ("n" * 255)):
        os.fspath(1 // 0)
    monkeypatch.undo()
    assert len([*tmp_path.iterdir()]) == 1
    fnn.remove_unfinished(tmp_path)
    assert not [*tmp_path.iterdir()]
