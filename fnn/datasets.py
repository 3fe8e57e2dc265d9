"""Data: the disk task, and files in the IDX format."""

import array
import contextlib
import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_integer, check_nonnegative

IDX_TYPES = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}  # as in array.array


def sample_disk(
    key: jax.Array,
    num_examples: int,
    *,
    center: tuple[float, float] = (0.5, 0.5),
    radius: float = 1 / math.sqrt(2 * math.pi),
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Points uniform in the unit square; label 1 inside the disk, 0 outside.

    The default disk covers half of the square: pi radius^2 = 1/2.

    Shapes: points (num_examples, 2) of `dtype`, labels (num_examples,) int32.

    Raises:
        ValueError: num_examples is not a positive integer; center is not two numbers; radius is
            negative or not finite (a traced one passes).
    """
    num_examples = check_integer("sample_disk", "num_examples", num_examples, 1)
    check_nonnegative("sample_disk", "radius", radius)
    center, radius = jnp.asarray(center, dtype), jnp.asarray(radius, dtype)
    if center.shape != (2,):
        raise ValueError(f"sample_disk: expected center of shape (2,), got {center.shape}")
    points = jax.random.uniform(key, (num_examples, 2), dtype)
    squared_distance = jnp.sum(jnp.square(points - jnp.broadcast_to(center, points.shape)), axis=-1)
    return points, (squared_distance < jnp.square(radius)).astype(jnp.int32)


def load_idx(path: str | os.PathLike, *, examples: Sequence[int] | None = None) -> jax.Array:
    """The array in an IDX file, the format of MNIST, plain or compressed by gzip.

    Such a file has two bytes 0, a byte for the elements' type, a byte for the number of axes, the
    axes' lengths of four bytes each, and then the elements in C order, all of them with the most
    significant byte first (LeCun et al., http://yann.lecun.com/exdb/mnist). The types are uint8,
    int8, int16, int32, float32 and float64, which becomes float32 without jax_enable_x64.

    Whatever the header says, memory is allocated only for what the file contains.

    Args:
        examples: the numbers of those wanted along the first axis, which are returned in this
            order; all by default. The others are not read, or, of a compressed file, not kept;
            more or less in the file than its header says is found all the same.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is no such file, is corrupt, has more or less in it than its header says,
            or not all of the examples; the message names the file.
    """
    with _open_idx(path) as (file, typecode, shape):
        return _read_idx(file, typecode, shape, examples)


def idx_shape(path: str | os.PathLike) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the array in an IDX file, of which nothing is kept.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: as load_idx.
    """
    with _open_idx(path) as (file, typecode, shape):
        _read_idx(file, typecode, shape, examples=())
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(typecode))


@contextlib.contextmanager
def _open_idx(path):
    """Gives the file, the elements' type and the shape; names the file in errors."""
    try:
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_compressed else open(path, "rb", buffering=0) as file:
            yield file, *_read_header(file, is_compressed)
    except (EOFError, gzip.BadGzipFile, ValueError, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _read_header(file, is_compressed):
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
        begins = f"begins with bytes {magic.hex(' ')}" if magic else "is empty"
        raise ValueError(f"expected an IDX file, got one that {begins}")
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise ValueError(f"expected the lengths of {magic[3]} axes, got {len(lengths)} bytes")
    typecode, shape = IDX_TYPES[magic[2]], struct.unpack(f">{magic[3]}I", lengths)
    if not is_compressed:
        _check_length(os.fstat(file.fileno()).st_size - file.tell(), typecode, shape)
    return typecode, shape


def _check_length(length, typecode, shape):
    expected = math.prod(shape) * array.array(typecode).itemsize
    if length != expected:
        got = "more" if length > expected else f"{length} bytes"
        raise ValueError(f"expected {expected} bytes for shape {shape}, got {got}")


def _read_idx(file, typecode, shape, examples):
    elements = array.array(typecode)
    start, end = file.tell(), math.prod(shape) * elements.itemsize
    parts, shape_read = [(0, end)], shape
    if examples is not None:
        if outside := [number for number in examples if not 0 <= number < (*shape, 0)[0]]:
            raise ValueError(f"expected numbers of examples for shape {shape}, got {outside[0]}")
        size = math.prod(shape[1:]) * elements.itemsize
        parts = [(number * size, (number + 1) * size) for number in examples]
        shape_read = len(parts), *shape[1:]
    content = {}
    for part in sorted({*parts}):
        file.seek(min(start + part[0], sys.maxsize))
        content[part] = _read(file, part[1] - part[0])
    length = file.seek(min(start + end, sys.maxsize)) - start + len(file.read(1))
    _check_length(length, typecode, shape)
    for part in parts:
        elements.frombytes(content[part])
    if sys.byteorder == "little":
        elements.byteswap()
    return jnp.asarray(memoryview(elements)).reshape(shape_read)


def _read(file, size):
    content = bytearray()
    while chunk := file.read(min(2**20, size - len(content))):
        content += chunk
    return content
