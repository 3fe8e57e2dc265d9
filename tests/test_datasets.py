import gzip
import math
import os
import re
import struct
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import pytest

import fnn


def test_disk_points_are_in_the_unit_square_and_labels_are_balanced():
    points, labels = fnn.sample_disk(jax.random.key(0), 100_000)
    assert points.shape == (100_000, 2)
    assert points.dtype == jnp.float32
    assert labels.dtype == jnp.int32
    assert jnp.all((points >= 0) & (points < 1))
    assert jnp.abs(jnp.mean(labels.astype(float)) - 0.5) < 0.01
    assert jnp.allclose(jnp.mean(points, axis=0), 0.5, atol=0.01)


@pytest.mark.parametrize(("center", "radius"), [((0.5, 0.5), 0.398942), ((0.2, 0.9), 0.1)])
def test_label_1_is_inside_the_disk(center, radius):
    points, labels = fnn.sample_disk(jax.random.key(1), 1000, center=center, radius=radius)
    distance = jnp.hypot(points[:, 0] - center[0], points[:, 1] - center[1])
    assert jnp.all((distance < radius) == (labels == 1))


def test_the_key_decides_and_x64_does_not():
    points, labels = fnn.sample_disk(jax.random.key(0), 50)
    again, _ = fnn.sample_disk(jax.random.key(0), 50)
    other, _ = fnn.sample_disk(jax.random.key(1), 50)
    assert jnp.all(points == again)
    assert jnp.all(points != other)
    with jax.enable_x64(True):
        wide, wide_labels = fnn.sample_disk(jax.random.key(0), 50)
        assert wide.dtype == jnp.float32
        assert wide_labels.dtype == jnp.int32
        assert jnp.all(wide == points)
        assert jnp.all(wide_labels == labels)


def test_radius_may_be_traced():
    count = jax.vmap(lambda radius: fnn.sample_disk(jax.random.key(0), 50, radius=radius)[1].sum())
    assert count(jnp.array([0.0, 2.0])).tolist() == [0, 50]


def idx_bytes(type_code, shape, elements):
    header = bytes([0, 0, type_code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return header + elements


GOOD = idx_bytes(8, (2, 3), bytes(range(6)))


@pytest.mark.parametrize("opener", [open, gzip.open], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("type_code", "letter", "dtype"),
    [
        (0x08, "B", jnp.uint8),
        (0x09, "b", jnp.int8),
        (0x0B, "h", jnp.int16),
        (0x0C, "i", jnp.int32),
        (0x0D, "f", jnp.float32),
        (0x0E, "d", jnp.float64),
    ],
)
def test_idx_files_of_every_type_are_read(tmp_path, opener, type_code, letter, dtype):
    with opener(tmp_path / "data", "wb") as file:
        file.write(idx_bytes(type_code, (2, 3), struct.pack(f">6{letter}", 1, 2, 3, 4, 5, 100)))
    with jax.enable_x64(True):
        data = fnn.load_idx(tmp_path / "data")
        assert fnn.idx_shape(tmp_path / "data") == jax.ShapeDtypeStruct((2, 3), dtype)
    assert data.dtype == dtype
    assert data.tolist() == [[1, 2, 3], [4, 5, 100]]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 1, 3)])
def test_idx_files_of_every_shape_are_read(tmp_path, shape):
    size = math.prod(shape)
    (tmp_path / "data").write_bytes(idx_bytes(8, shape, bytes(size)))
    assert fnn.load_idx(tmp_path / "data").shape == shape


@pytest.mark.parametrize("opener", [open, gzip.open], ids=["plain", "gzip"])
def test_examples_of_idx_files_are_read_in_the_order_wanted(tmp_path, opener):
    with opener(tmp_path / "data", "wb") as file:
        file.write(idx_bytes(0x0B, (7, 2), struct.pack(">14h", *range(14))))
    for examples in ([], [6], range(2, 5), [5, 0, 6, 0]):
        data = fnn.load_idx(tmp_path / "data", examples=examples)
        assert data.shape == (len(examples), 2)
        assert data.tolist() == [[2 * number, 2 * number + 1] for number in examples]


def small_integers(numbers):
    return jax.device_get(jnp.array(numbers, jnp.uint8))


@pytest.mark.parametrize(
    "kind",
    [list, tuple, iter, jnp.array, small_integers, lambda numbers: (n for n in numbers)],
    ids=["list", "tuple", "iterator", "jax array", "numpy uint8", "generator"],
)
@pytest.mark.parametrize("opener", [open, gzip.open], ids=["plain", "gzip"])
def test_examples_of_every_kind_give_the_same(tmp_path, opener, kind):
    """Offsets are beyond what the numbers' own dtype holds."""
    shape, numbers = (200, 300), [199, 3, 150, 3]
    content = bytes(n for n in range(200) for _ in range(300))
    with opener(tmp_path / "data", "wb") as file:
        file.write(idx_bytes(8, shape, content))
    data = fnn.load_idx(tmp_path / "data", examples=kind(numbers))
    assert data.tolist() == [[number] * 300 for number in numbers]


def test_examples_may_be_numpy_integers_beyond_2_gb(tmp_path):
    """The file is sparse: it takes no space on the disk."""
    with open(tmp_path / "data", "wb") as file:
        file.write(idx_bytes(8, (3, 2**30), b""))
        header = file.tell()
        file.truncate(header + 3 * 2**30)
    numbers = jax.device_get(jnp.array([3], jnp.int32))
    with pytest.raises(ValueError, match="expected numbers of examples"):
        fnn.load_idx(tmp_path / "data", examples=numbers)
    with open(tmp_path / "data", "r+b") as file:
        file.seek(0)
        file.write(idx_bytes(8, (3 * 2**20, 2**10), b""))
        file.seek(-(2**10), 2)
        file.write(b"\7" * 2**10)
    data = fnn.load_idx(tmp_path / "data", examples=numbers * (2**20) - 1)
    assert data.tolist() == [[7] * 2**10]


@pytest.mark.parametrize("number", [1.0, "1", None, True, [1], jnp.array([True, False])], ids=repr)
def test_examples_that_are_no_integers_are_refused(tmp_path, number):
    (tmp_path / "data").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"data: expected numbers of examples for shape \(2, 3\)"):
        fnn.load_idx(tmp_path / "data", examples=[number])


@pytest.mark.parametrize("path", ["pipe", "folder", "/dev/zero"])
def test_only_regular_files_are_read(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        fnn.load_idx(tmp_path / path)


def test_a_file_too_large_for_memory_is_an_error_with_its_name(tmp_path):
    """A small compressed file may truly have more bytes than there is memory for."""
    parts = gzip.compress(idx_bytes(8, (2**9, 2**20), b"")), gzip.compress(bytes(2**20)) * 2**9
    (tmp_path / "data").write_bytes(b"".join(parts))
    program = (
        "import resource, sys, fnn, jax\n"
        "jax.devices()\n"
        "with open('/proc/self/statm') as file:\n"
        "    used = int(file.read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "try:\n"
        "    fnn.load_idx(sys.argv[1])\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"[Errno 12] Cannot allocate memory: '{tmp_path / 'data'}'\n"


@pytest.mark.parametrize(("shape", "number"), [((2, 3), 2), ((2, 3), -1), ((0, 3), 0), ((), 0)])
def test_examples_that_are_not_in_the_file_are_refused(tmp_path, shape, number):
    (tmp_path / "data").write_bytes(idx_bytes(8, shape, bytes(math.prod(shape))))
    message = f"data: expected numbers of examples for shape {shape}, got {number}"
    with pytest.raises(ValueError, match=re.escape(message)):
        fnn.load_idx(tmp_path / "data", examples=[number])


def peak_memory(function):
    """The most bytes that were allocated at once while the function ran."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opener", [open, gzip.open], ids=["plain", "gzip"])
def test_a_few_examples_cost_the_memory_of_a_few(tmp_path, opener):
    with opener(tmp_path / "data", "wb") as file:
        file.write(idx_bytes(8, (2**14, 2**10), bytes(2**24)))
    few = range(0, 2**14, 2**8)
    assert peak_memory(lambda: fnn.load_idx(tmp_path / "data", examples=few)) < 2**20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file, got one that is empty"),
        (GOOD[:3], "expected an IDX file"),
        (b"PK" + GOOD, "begins with bytes 50 4b 00 00"),
        (idx_bytes(7, (1,), b"0"), "begins with bytes 00 00 07 01"),
        (GOOD[:7], "expected the lengths of 2 axes, got 3 bytes"),
        (GOOD[:-1], r"expected 6 bytes for shape \(2, 3\), got 5 bytes"),
        (GOOD + b"0", r"expected 6 bytes for shape \(2, 3\), got more"),
        (idx_bytes(0x0E, (2**32 - 1,) * 3, b"0"), "expected 6338.* got 1 bytes"),
        (gzip.compress(GOOD, mtime=0)[:-9], "ended before the end-of-stream marker"),
        (gzip.compress(GOOD, mtime=0)[:-1], "ended before the end-of-stream marker"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "CRC check failed"),
        (gzip.compress(GOOD, mtime=0) + b"more", "Not a gzipped file"),
        (b"\x1f\x8b" + bytes(20), "compression method"),
    ],
)
def test_a_bad_idx_file_is_named_with_what_is_wrong(tmp_path, content, message):
    (tmp_path / "data").write_bytes(content)
    for examples in (None, [], [0]):
        with pytest.raises(ValueError, match=f"{tmp_path / 'data'}: .*{message}"):
            fnn.load_idx(tmp_path / "data", examples=examples)
    if content[:2] != b"\x1f\x8b":
        with pytest.raises(ValueError, match=f"{tmp_path / 'data'}: .*{message}"):
            fnn.idx_shape(tmp_path / "data")


def test_a_missing_idx_file_is_an_os_error(tmp_path):
    for read in (fnn.load_idx, fnn.idx_shape):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "data")


def test_a_lying_header_allocates_nothing(tmp_path):
    """Not even from a compressed file that would unpack to much more than its header says."""
    bomb = gzip.compress(idx_bytes(8, (10,), bytes(2**28)))
    long = gzip.compress(idx_bytes(8, (2**31, 2**31), bytes(2**20)))
    longer = gzip.compress(idx_bytes(8, (2**32 - 1,) * 3, bytes(2**20)))
    for content, examples in ((bomb, None), (bomb, [9]), (long, None), (long, [0]), (longer, [7])):
        (tmp_path / "data").write_bytes(content)

        def read(examples=examples):
            with pytest.raises(ValueError, match=r"expected .* bytes for shape"):
                fnn.load_idx(tmp_path / "data", examples=examples)

        assert peak_memory(read) < 2**23


def test_lengths_that_overflow_are_refused_though_one_is_0(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 0))
    with pytest.raises(ValueError, match="expected lengths that fit into memory"):
        fnn.load_idx(path)
