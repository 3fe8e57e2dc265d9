"""Data: the disk task, and files in the IDX format."""

import array
import gzip
import math
import os
import struct
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from fnn.layer import check_integer, check_nonnegative

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


def load_idx(path: str | os.PathLike) -> jax.Array:
    """The array in an IDX file, the format of MNIST, plain or compressed by gzip.

    Such a file has two bytes 0, a byte for the elements' type, a byte for the number of axes, the
    axes' lengths of four bytes each, and then the elements in C order, all of them with the most
    significant byte first (LeCun et al., http://yann.lecun.com/exdb/mnist). The types are uint8,
    int8, int16, int32, float32 and float64, which becomes float32 without jax_enable_x64.

    Whatever the header says, memory is allocated only for what the file contains.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: it is no such file, is corrupt, or has more or less in it than its header
            says; the message names the file.
    """
    try:
        with open(path, "rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if is_compressed else open)(path, "rb") as file:
            return _read_idx(file)
    except (EOFError, gzip.BadGzipFile, ValueError, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _read_idx(file):
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
        raise ValueError(f"expected an IDX file, got one that begins with bytes {magic.hex(' ')}")
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise ValueError(f"expected the lengths of {magic[3]} axes, got {len(lengths)} bytes")
    shape = struct.unpack(f">{magic[3]}I", lengths)
    elements = array.array(IDX_TYPES[magic[2]])
    expected = math.prod(shape) * elements.itemsize
    content = bytearray()
    while chunk := file.read(min(2**20, expected + 1 - len(content))):
        content += chunk
    if len(content) != expected:
        got = "more" if len(content) > expected else f"{len(content)} bytes"
        raise ValueError(f"expected {expected} bytes for shape {shape}, got {got}")
    elements.frombytes(content)
    if sys.byteorder == "little":
        elements.byteswap()
    return jnp.asarray(memoryview(elements)).reshape(shape)
