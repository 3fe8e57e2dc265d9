"""What fnn.save writes comes back to the bit, or not at all."""

import contextlib
import copy
import errno
import functools
import json
import math
import os
import pickle
import random
import resource
import stat
import struct
import threading
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import pytest
from cases import make_network

import fnn

SIGNALLING_NAN, NEGATIVE_ZERO = 0x7F800001, 0x80000000
NUMBERS = [
    *("float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"),
    *("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("complex64", "complex128", "bool"),
]
SMALL = {"W": jnp.arange(3.0), "b": (jnp.array([True, False]), 2.5)}


def bits(tree):
    """The tree with text in place of its leaves, equal only where the leaves are, to the bit."""

    def text(leaf):
        if not hasattr(leaf, "dtype"):
            return f"{type(leaf)} {leaf!r}"
        kind = f"{leaf.dtype} {leaf.shape}"
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return f"{kind} {jax.device_get(leaf).tobytes().hex()}"

    return jax.tree.map(text, tree)


def assert_comes_back(path, tree, like=None):
    fnn.save(path, tree)
    loaded = fnn.load(path, tree if like is None else like)
    assert bits(loaded) == bits(tree)
    return loaded


@pytest.mark.parametrize("dtype", [*map(jnp.dtype, NUMBERS)], ids=str)
def test_numbers_come_back_to_the_bit(dtype, tmp_path):
    tree = {}
    with jax.enable_x64(True):
        for shape in ((), (3,), (2, 3), (2, 0, 3)):
            content = random.Random(0).randbytes(math.prod(shape) * dtype.itemsize)
            if dtype.name in ("bool", "int4", "uint4"):
                content = bytes(byte % 2 for byte in content)
            numbers = jax.device_get(jnp.frombuffer(content, dtype))
            tree[str(shape)] = jax.device_put(numbers.reshape(shape))
    loaded = assert_comes_back(tmp_path / "file.npz", tree)
    assert all(isinstance(array, jax.Array) for array in loaded.values())
    other = copy.copy(dtype)  # as pickle makes one: equal, but not numpy's own
    like = {name: jax.ShapeDtypeStruct(array.shape, other) for name, array in tree.items()}
    assert bits(fnn.load(tmp_path / "file.npz", like)) == bits(tree)
    fnn.save(tmp_path / "other.npz", {n: jax.device_get(a).view(other) for n, a in tree.items()})
    assert (tmp_path / "other.npz").read_bytes() == (tmp_path / "file.npz").read_bytes()


def test_nans_keep_their_payloads_and_zeros_their_signs(tmp_path):
    words = jnp.array([SIGNALLING_NAN, 0xFFC01234, NEGATIVE_ZERO, 0x7F800000, 1], jnp.uint32)
    array = jax.lax.bitcast_convert_type(words, jnp.float32)
    loaded = assert_comes_back(tmp_path / "file.npz", array)
    assert jax.lax.bitcast_convert_type(loaded, jnp.uint32).tolist() == words.tolist()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_come_back_and_draw_the_same(impl, tmp_path):
    key = jax.random.key(7, impl=impl)
    tree = {"one": key, "many": jax.random.split(key, (2, 3)), "none": jax.random.split(key, 0)}
    loaded = assert_comes_back(tmp_path / "file.npz", tree)
    assert jax.random.bits(loaded["one"]) == jax.random.bits(key)
    assert bits(fnn.load(tmp_path / "file.npz", jax.eval_shape(lambda: tree))) == bits(tree)


def test_every_structure_comes_back(tmp_path):
    tree = {
        "empty": [(), [], {}, None],
        "nested": {"a": {"b": ([], [None, ()])}},
        "python": (True, False, 7, -(2**63), 2**63 - 1, 0.1, -0.0, float("inf"), 1 - 2j),
        "state": fnn.TrainState({"é/ü": jnp.ones(1)}, ()),
    }
    assert_comes_back(tmp_path / "file.npz", tree)
    for tree in (jnp.ones(2), 3, (), None, {}, [jnp.zeros(())]):
        assert_comes_back(tmp_path / "file.npz", tree)


def test_a_training_state_goes_on_as_if_never_saved(tmp_path):
    optimizer = fnn.adam(fnn.cosine_decay(0.1, 100))
    step = fnn.make_train_step(make_network(), fnn.MSELoss(), optimizer, donate=True)
    x, target = jnp.ones((4, 3)), jnp.ones((4, 2))

    def train(state):
        for _ in range(2):
            state, _ = step(state, x, target)
        return state

    start = jax.jit(functools.partial(fnn.init_train_state, make_network(), optimizer))
    first = train(start(jax.random.key(0)))
    like = jax.eval_shape(start, jax.random.key(1))
    loaded = assert_comes_back(tmp_path / "state.npz", first, like)
    assert bits(train(loaded)) == bits(train(first))


def test_an_array_on_several_devices_is_saved_whole(tmp_path):
    devices = jax.sharding.Mesh(jax.devices("cpu"), "batch")
    sharding = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("batch"))
    array = jax.device_put(jnp.arange(8.0), sharding)
    assert_comes_back(tmp_path / "file.npz", {"W": array})


def test_numpy_reads_the_leaves_and_json_tells_what_they_are(tmp_path):
    key = jax.random.key(0)
    tree = {"params": ({"W": jnp.ones((2, 3))}, (), [jnp.ones(2, jnp.bfloat16)]), "key": key}
    fnn.save(tmp_path / "file.npz", tree, note="a note")
    with jnp.load(tmp_path / "file.npz") as file:
        assert list(file) == ["fnn.json", "key", "params/0/W", "params/2/0"]
        assert file["params/0/W"].tolist() == [[1.0] * 3] * 2
        assert file["params/2/0"].tolist() == [0x3F80] * 2
        assert file["key"].tolist() == jax.random.key_data(key).tolist()
        assert json.loads(file["fnn.json"]) == {
            "format": 1,
            "tree": {
                "": "dict",
                "key": "key<fry>[]",
                "params": "tuple",
                "params/0": "dict",
                "params/0/W": "float32[2,3]",
                "params/1": "tuple",
                "params/2": "list",
                "params/2/0": "bfloat16[2]",
            },
            "note": "a note",
        }


def test_a_note_comes_back_without_the_tree(tmp_path):
    note = {"epoch": 3, "rate": 0.1, "names": ["é", None], "loss": float("inf")}
    fnn.save(tmp_path / "file.npz", SMALL, note=note)
    assert fnn.read_note(tmp_path / "file.npz") == note
    fnn.save(tmp_path / "file.npz", SMALL)
    assert fnn.read_note(tmp_path / "file.npz") is None
    with pytest.raises(TypeError):
        fnn.save(tmp_path / "file.npz", SMALL, note=jnp.ones(1))
    assert bits(fnn.load(tmp_path / "file.npz", SMALL)) == bits(SMALL)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({0: "cat"}, "expected the note's keys to be text, got 0"),
        ({0: "cat", "0": "dog"}, "expected the note's keys to be text, got 0"),
        ({"a": [{None: 1}]}, "expected the note's keys to be text, got None"),
        ({True: 1}, "expected the note's keys to be text, got True"),
        ({"a": {1.5: 1}}, "expected the note's keys to be text, got 1.5"),
        ((1, 2), "expected the note to be of JSON's types, got a tuple"),
        ({"shape": [3, (1, 2)]}, "expected the note to be of JSON's types, got a tuple"),
        (fnn.TrainState(1, 2), "expected the note to be of JSON's types, got a TrainState"),
        ({"a": {1, 2}}, "set"),
        ({"a": b"bytes"}, "bytes"),
        ({"a": {(1, 2): 3}}, r"to be text, got \(1, 2\)"),
    ],
    ids=ascii,
)
def test_a_note_that_json_would_change_is_refused(note, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        fnn.save(tmp_path / "file.npz", SMALL, note=note)
    assert not list(tmp_path.iterdir())


def test_text_in_a_foreign_file_sends_nothing_to_the_terminal(tmp_path):
    escape = "\x1b]0;title\x07"
    for head in (
        {"format": 1, "tree": {"": escape, escape: escape, "W": ["\x1b"]}},
        {"format": escape, "tree": {}},
        {"format": 1, "tree": {"": "dict", "W\u202e": "float32[2]"}},
    ):
        write_archive(tmp_path / "file.npz", {"fnn.json": json.dumps(head)})
        with pytest.raises(ValueError, match=r"file\.npz: ") as info:
            fnn.load(tmp_path / "file.npz", SMALL)
        assert str(info.value).isprintable()


def test_equal_trees_make_equal_files(tmp_path):
    for name in ("one", "two"):
        fnn.save(tmp_path / name, {"b": jnp.ones(2), "a": jax.random.key(0)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"W": "text"}, "expected W to be an array or a number, got <class 'str'>"),
        ({"W": object()}, "expected W to be an array or a number, got <class 'object'>"),
        ([1, 2**63], f"expected 1 to fit into 64 bits, got {2**63}"),
        ({"a/b": 1, "a": {"b": 2}}, "two places in the tree have the name 'a/b'"),
        ({"a\0b": 1}, r"no file can keep the name 'a\x00b'"),
        ({"a" * 40000: 1}, "no file can keep the name 'aaa"),
    ],
    ids=["text", "object", "large int", "equal names", "NUL", "long name"],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(tree, message, tmp_path):
    with pytest.raises(ValueError) as info:
        fnn.save(tmp_path / "file.npz", tree)
    assert str(info.value).startswith(f"save: {message}")
    assert not list(tmp_path.iterdir())


def test_load_lists_every_place_that_differs(tmp_path):
    path = tmp_path / "file.npz"
    fnn.save(path, {"W": jnp.ones((2, 3)), "b": (jnp.ones(2), ()), "k": jax.random.key(0), "n": 1})
    key = jax.random.key(0, impl="rbg")
    like = {"W": jnp.ones(3), "b": [jnp.ones(2), None], "k": key, "m": jnp.ones((), jnp.int32)}
    with pytest.raises(ValueError) as info:
        fnn.load(path, like)
    assert str(info.value) == (
        f"{path}: W: expected float32[3], got float32[2,3]; b: expected list, got tuple; "
        "b/1: expected NoneType, got tuple; k: expected key<rbg>[], got key<fry>[]; "
        "m: expected int32[], got nothing; n: expected nothing, got int"
    )
    with pytest.raises(ValueError, match="the tree: expected tuple, got dict"):
        fnn.load(path, ())


def test_64_bits_are_never_cut_to_32(tmp_path):
    with jax.enable_x64(True):
        tree = {"W": jnp.array([1 / 3])}
        fnn.save(tmp_path / "file.npz", tree)
    with pytest.raises(ValueError, match=r"W: expected float32\[1\], got float64\[1\]"):
        fnn.load(tmp_path / "file.npz", {"W": jnp.ones(1)})
    assert bits(fnn.load(tmp_path / "file.npz", tree)) == bits(tree)


def assert_exact_or_refused(path, content, expected):
    path.write_bytes(content)
    try:
        loaded = fnn.load(path, SMALL)
    except ValueError:
        return False
    assert bits(loaded) == expected
    return True


def test_every_prefix_of_a_file_is_refused(tmp_path):
    path = tmp_path / "file.npz"
    fnn.save(path, SMALL)
    content, expected = path.read_bytes(), bits(SMALL)
    assert len(content) < 1200
    for length in range(len(content)):
        assert not assert_exact_or_refused(path, content[:length], expected)
    assert assert_exact_or_refused(path, content, expected)


def test_bytes_changed_anywhere_give_the_exact_tree_or_an_error(tmp_path):
    path = tmp_path / "file.npz"
    fnn.save(path, SMALL)
    content, expected = path.read_bytes(), bits(SMALL)
    generator = random.Random(0)
    directory = content.index(b"PK\x01\x02")
    for number in range(1000):
        changed = bytearray(content)
        if number < 500:
            changed[generator.randrange(len(changed))] ^= generator.randrange(1, 256)
        else:  # several bytes where a change is not found by a checksum
            for _ in range(generator.choice([1, 2, 4])):
                start = generator.randrange(directory, len(changed))
                length = generator.choice([1, 2, 4, 8])
                value = generator.choice([b"\0", b"\1", b"\x7f", b"\xff"])
                changed[start : start + length] = value * length
        assert_exact_or_refused(path, bytes(changed), expected)


def npy(descr, shape, data):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data


HEAD = json.dumps({"format": 1, "tree": {"": "dict", "W": "bool[2]"}, "note": None}).encode()
GOOD = {"fnn.json": HEAD, "W.npy": npy("|b1", (2,), b"\1\0")}
LIES = {
    "no head": {"W.npy": GOOD["W.npy"]},
    "head that is no JSON": {**GOOD, "fnn.json": b"{"},
    "head that is a list": {**GOOD, "fnn.json": b"[1]"},
    "head nested too deep": {**GOOD, "fnn.json": b"[" * 100_000},
    "tree that is a list": {**GOOD, "fnn.json": b'{"format": 1, "tree": []}'},
    "a later format": {**GOOD, "fnn.json": HEAD.replace(b": 1", b": 2")},
    "an entry too few": {"fnn.json": HEAD},
    "an entry too many": {**GOOD, "V.npy": GOOD["W.npy"]},
    "an entry of another name": {"fnn.json": HEAD, "W": GOOD["W.npy"]},
    "another shape": {**GOOD, "W.npy": npy("|b1", (3,), b"\1\0\1")},
    "a huge shape": {**GOOD, "W.npy": npy("|b1", (2**50,), b"\1\0")},
    "another dtype": {**GOOD, "W.npy": npy("<f4", (2,), bytes(8))},
    "pickled objects": {**GOOD, "W.npy": npy("|O", (2,), pickle.dumps([True, False]))},
    "too few numbers": {**GOOD, "W.npy": npy("|b1", (2,), b"\1")},
    "too many numbers": {**GOOD, "W.npy": npy("|b1", (2,), b"\1\0\1")},
    "bools that are neither": {**GOOD, "W.npy": npy("|b1", (2,), b"\1\2")},
    "no .npy": {**GOOD, "W.npy": b"\1\0"},
    "nothing": {},
}


def write_archive(path, entries, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused(name, tmp_path):
    like = {"W": jnp.array([True, False])}
    write_archive(tmp_path / "file.npz", GOOD)
    assert fnn.load(tmp_path / "file.npz", like)["W"].tolist() == [True, False]
    write_archive(tmp_path / "file.npz", LIES[name])
    with pytest.raises(ValueError, match=r"file\.npz: \S"):
        fnn.load(tmp_path / "file.npz", like)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", bytes(1000)])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    for read in (fnn.read_note, lambda path: fnn.load(path, SMALL)):
        with pytest.raises(ValueError, match="file: File is not a zip file"):
            read(tmp_path / "file")


def test_files_that_claim_more_than_they_have_cost_no_memory(tmp_path):
    path, huge = tmp_path / "file.npz", 2**24
    like = {"W": jax.ShapeDtypeStruct((huge,), jnp.bool)}
    head = HEAD.replace(b"[2]", b"[%d]" % huge)
    entries = {"fnn.json": head, "W.npy": npy("|b1", (huge,), bytes(huge))}
    write_archive(path, entries, compression=zipfile.ZIP_DEFLATED)
    bomb = path.read_bytes()
    write_archive(path, {**entries, "W.npy": npy("|b1", (huge,), b"\1")})
    short = path.read_bytes()
    length = struct.pack("<I", len(npy("|b1", (huge,), b"\1")))
    lying = short.replace(length * 2, struct.pack("<I", 2**31 - 1) * 2)
    assert len(bomb) < 2**15
    assert lying != short
    for content, message in (
        (bomb, "compressed"),
        (lying, "not inside"),
        (short, "W.npy is not an array"),
    ):
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=message):
                fnn.load(path, like)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 2**20


def test_two_entries_of_the_same_name_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    other = GOOD["W.npy"].replace(b"\1\0", b"\0\1")
    write_archive(path, GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("W.npy", other)
    with pytest.raises(ValueError, match="its entries are not those"):
        fnn.load(path, {"W": jnp.array([True, False])})


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    for read in (fnn.read_note, lambda path: fnn.load(path, SMALL)):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


OLD, NEW = {"W": jnp.ones(2)}, {"W": jnp.zeros(2)}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    function, error, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise error

    path = tmp_path / "params.npz"
    fnn.save(path, OLD)
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(error)):
        fnn.save(path, NEW)
    assert list(tmp_path.iterdir()) == [path]
    assert bits(fnn.load(path, OLD)) == bits(OLD)


def test_the_disk_has_the_file_before_its_name_and_both_at_the_end(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def watched(file):
        names = {path.suffix for path in tmp_path.iterdir()}
        flushed.append(("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file", names))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    fnn.save(tmp_path / "params.npz", NEW)
    assert flushed == [("file", {".unfinished"}), ("folder", {".npz"})]


def test_entries_are_as_long_as_they_must_be(tmp_path, monkeypatch):
    """Of more than 2 GB, were it not for a lower limit here."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    assert_comes_back(tmp_path / "file.npz", {"W": jnp.arange(1000.0)})


@contextlib.contextmanager
def largest_file(size):
    """Every file of this process ends at `size`, as if the device were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_device_is_told_by_name_and_the_old_file_stays(tmp_path):
    path = tmp_path / "params.npz"
    large = {"W": jnp.arange(20_000.0), "b": OLD}
    fnn.save(path, large)
    size = path.stat().st_size
    fnn.save(path, OLD)
    for limit in (0, 1, 1000, 10_000, size // 2, size - 1000, size - 1):
        with largest_file(limit), pytest.raises(OSError, match="too large") as info:
            fnn.save(path, large)
        assert info.value.filename == str(path)
        assert list(tmp_path.iterdir()) == [path]
        assert bits(fnn.load(path, OLD)) == bits(OLD)
    with largest_file(size):
        assert_comes_back(path, large)


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as info:
        fnn.save(tmp_path / "none" / "params.npz", OLD)
    path = str(tmp_path / "none" / "params.npz")
    assert info.value.filename == path
    assert str(info.value) == f"[Errno 2] No such file or directory: {path!r}"


def test_what_is_not_a_regular_file_is_left_alone(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(OSError, match="not a regular file"):
            fnn.save(tmp_path / name, OLD)
        with pytest.raises(OSError, match="not a regular file"):
            fnn.load(tmp_path / name, OLD)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_an_unflushable_folder_is_found_before_a_file_is_replaced(tmp_path, monkeypatch):
    fnn.save(tmp_path / "params.npz", OLD)
    open_ = os.open

    def refused(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "no", path)
        return open_(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match=r"params\.npz"):
        fnn.save(tmp_path / "params.npz", NEW)
    monkeypatch.undo()
    assert bits(fnn.load(tmp_path / "params.npz", OLD)) == bits(OLD)
    assert [path.name for path in tmp_path.iterdir()] == ["params.npz"]


def test_nans_pass_whatever_jax_is_told_to_look_for_or_to_forbid(tmp_path):
    tree = {"W": jnp.array([jnp.nan, -jnp.inf]), "key": jax.random.key(0)}
    settings = jax.debug_nans(True), jax.debug_infs(True), jax.transfer_guard("disallow")
    with settings[0], settings[1], settings[2]:
        assert_comes_back(tmp_path / "tree.npz", tree)


def test_permissions_and_links_stay(tmp_path):
    path, link = tmp_path / "params.npz", tmp_path / "link.npz"
    umask = os.umask(0o027)
    try:
        fnn.save(path, OLD)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    link.symlink_to(path.name)
    fnn.save(link, NEW)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert bits(fnn.load(path, NEW)) == bits(NEW)


def test_what_a_killed_save_left_is_in_nobodys_way(tmp_path, monkeypatch):
    path = tmp_path / "params.npz"
    fnn.save(path, OLD)
    monkeypatch.setattr(os, "remove", lambda path: None)  # a killed process removes nothing
    monkeypatch.setattr(os, "replace", lambda *paths: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fnn.save(path, NEW)
    monkeypatch.undo()
    stale = set(tmp_path.iterdir()) - {path}
    assert len(stale) == 2
    assert all(name.suffix == ".unfinished" for name in stale)
    assert bits(fnn.load(path, OLD)) == bits(OLD)
    assert_comes_back(path, NEW)


def test_saves_at_the_same_time_leave_one_of_them_whole(tmp_path):
    path, trees = tmp_path / "params.npz", [{"W": jnp.full(1000, i)} for i in range(4)]

    def save_often(tree):
        for _ in range(5):
            fnn.save(path, tree)

    threads = [threading.Thread(target=save_often, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert bits(fnn.load(path, trees[0])) in [bits(tree) for tree in trees]
    assert list(tmp_path.iterdir()) == [path]
