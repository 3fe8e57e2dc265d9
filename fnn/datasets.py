"""Data: the disk task, and files in the IDX format."""

import array
import contextlib
import errno
import gzip
import math
import operator
import os
import struct
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fnn._checks import check_integer, check_key, check_nonnegative, check_number
from fnn.files import check_regular

IDX_TYPES = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}  # as in array.array
DISK_CENTER = (0.5, 0.5)
DISK_RADIUS = 1 / math.sqrt(2 * math.pi)  # the disk covers half of the square: pi radius^2 = 1/2


def sample_disk(
    key: jax.Array,
    num_examples: int,
    *,
    center: tuple[float, float] = DISK_CENTER,
    radius: float = DISK_RADIUS,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Points uniform in the unit square; label 1 inside the disk, 0 outside.

    The default disk covers half of the square.

    Shapes: points (num_examples, 2) of `dtype`, labels (num_examples,) int32.

    Raises:
        ValueError: `key` is not a key; num_examples is not a positive integer; center is not two
            finite numbers; radius is negative or not finite.
    """
    check_key("sample_disk", key)
    num_examples = check_integer("sample_disk", "num_examples", num_examples, 1)
    check_nonnegative("sample_disk", "radius", radius)
    given, center, radius = center, jnp.asarray(center, dtype), jnp.asarray(radius, dtype)
    if center.shape != (2,):
        raise ValueError(f"sample_disk: expected center of shape (2,), got {center.shape}")
    for number in given:
        check_number("sample_disk", "each number of center", number)
    points = jax.random.uniform(key, (num_examples, 2), dtype)
    squared_distance = jnp.sum(jnp.square(points - jnp.broadcast_to(center, points.shape)), axis=-1)
    return points, (squared_distance < jnp.square(radius)).astype(jnp.int32)


def load_idx(path: str | os.PathLike, *, examples: Iterable[int] | None = None) -> jax.Array:
    """The array in an IDX file, the format of MNIST, plain or compressed by gzip.

    The file has two bytes 0, a byte for the elements' type, and a byte for the number of axes. Four
    bytes for the length of each axis follow, then the elements in C order. All numbers begin with
    the most significant byte (LeCun et al., http://yann.lecun.com/exdb/mnist). The types are uint8,
    int8, int16, int32, float32 and float64. Without jax_enable_x64, float64 becomes float32.

    The memory that load_idx takes depends on the elements in the file, and not on the header alone.

    Args:
        examples: integers, the indices along the first axis; by default all. Only these examples
            are read, or, of a compressed file, kept, and they are returned in this order. The
            length of the file is checked all the same.

    Raises:
        OSError: the file cannot be opened or read, is a device or a pipe, or does not fit into
            memory.
        ValueError: the file is of another format, is corrupt, or is longer or shorter than its
            header says; an example is no integer or is not in the file. The message names the file.
    """
    with _open_idx(path) as (file, typecode, shape):
        return _read_idx(file, typecode, shape, examples)


def idx_shape(path: str | os.PathLike) -> jax.ShapeDtypeStruct:
    """The shape and dtype of the array that load_idx would return; errors as there."""
    with _open_idx(path) as (file, typecode, shape):
        _read_idx(file, typecode, shape, examples=())
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(typecode))


@contextlib.contextmanager
def _open_idx(path):
    """Give the file, the elements' type and the shape. Errors in the block name the file."""
    if not os.path.isdir(path):  # open itself refuses a folder
        check_regular(path)
    try:
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_compressed else open(path, "rb", buffering=0) as file:
            yield file, *_read_header(file, is_compressed)
    except (EOFError, gzip.BadGzipFile, ValueError, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    except MemoryError:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), os.fspath(path)) from None


def _read_header(file, is_compressed):
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
        begins = f"begins with bytes {magic.hex(' ')}" if magic else "is empty"
        raise ValueError(f"expected an IDX file, got one that {begins}")
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise ValueError(f"expected the lengths of {magic[3]} axes, got {len(lengths)} bytes")
    typecode, shape = IDX_TYPES[magic[2]], struct.unpack(f">{magic[3]}I", lengths)
    # XLA ends the process if the lengths overflow, also where one of them is 0.
    if 0 in shape and math.prod(filter(None, shape)) * 8 > sys.maxsize:
        raise ValueError(f"expected lengths that fit into memory, got {shape}")
    if not is_compressed:
        _check_length(os.fstat(file.fileno()).st_size - file.tell(), typecode, shape)
    return typecode, shape


def _check_length(length, typecode, shape):
    expected = math.prod(shape) * array.array(typecode).itemsize
    if length != expected:
        got = "more" if length > expected else f"{length} bytes"
        raise ValueError(f"expected {expected} bytes for shape {shape}, got {got}")


def _read_idx(file, typecode, shape, examples):
    """The array of the examples. The file is read up to the length that its header gives."""
    elements = array.array(typecode)
    start, size = file.tell(), math.prod(shape) * elements.itemsize
    if examples is None:
        parts = [(0, size)]  # where each part begins and ends, in bytes after the header
        shape_read = shape
    else:
        if not isinstance(examples, Iterable):
            raise ValueError(f"expected a sequence of numbers of examples, got {examples!r:.80}")
        indices = [_check_example(example, shape) for example in examples]
        example_size = math.prod(shape[1:]) * elements.itemsize
        parts = [(index * example_size, (index + 1) * example_size) for index in indices]
        shape_read = len(indices), *shape[1:]
    content = {}
    for part in sorted({*parts}):  # a compressed file can only be read forward
        file.seek(min(start + part[0], sys.maxsize))
        content[part] = _read(file, part[1] - part[0])
    length = file.seek(min(start + size, sys.maxsize)) - start + len(file.read(1))
    _check_length(length, typecode, shape)
    for part in parts:
        elements.frombytes(content[part])
    if sys.byteorder == "little":
        elements.byteswap()
    return jnp.asarray(memoryview(elements)).reshape(shape_read)


def _check_example(example, shape):
    """The index of an example as an int, or ValueError."""
    num_examples = shape[0] if shape else 0
    try:
        index = None if isinstance(example, bool) else operator.index(example)
    except TypeError:
        index = None
    if index is None or not 0 <= index < num_examples:
        raise ValueError(f"expected numbers of examples for shape {shape}, got {example!r:.80}")
    return index


def _read(file, size):
    """At most `size` bytes. The memory grows with what the file has, in steps."""
    content = bytearray()
    while chunk := file.read(min(2**20, size - len(content))):
        content += chunk
    return content
