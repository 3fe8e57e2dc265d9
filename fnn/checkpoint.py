"""Save a pytree to a file, and load it back, to the bit.

The file is a zip archive without compression. numpy.load reads it too. Its entry fnn.json names
the type of every node of the tree, by the node's place:

    {"format": 1, "tree": {"": "tuple", "0": "dict", "0/W": "float32[25,2]"}, "note": null}

Every leaf is an entry such as 0/W.npy, with the least significant byte first. The format .npy has
no name for bfloat16 and similar dtypes, and none for PRNG keys. Their bits are stored as unsigned
integers.
"""

import contextlib
import json
import math
import os
import struct
import zipfile
from typing import Any

import jax
import jax.numpy as jnp

from fnn.files import check_regular, replace_file

FORMAT, HEAD = 1, "fnn.json"
SCALARS = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}
CORRUPT = (  # zipfile and json raise these for a file of another kind
    *(zipfile.BadZipFile, struct.error, EOFError, NotImplementedError, OverflowError),
    *(RecursionError, ValueError),
)


def save(path: str | os.PathLike, tree: Any, *, note: Any = None) -> None:
    """Write `tree` to the file `path`, from which load returns it to the bit.

    Leaves are arrays of any shape and of any dtype that JAX has, typed PRNG keys included, and
    Python's bool, int, float and complex. An array on several devices is written whole.

    replace_file writes the file: `path` is at any moment all of the old file or all of the new one.

    Args:
        note: read_note returns it. It is of JSON's types: None, a bool, a number, text, a list of
            such, or a dict of such whose keys are text.

    Raises:
        ValueError: a leaf is of another type, or is an int of more than 64 bits; two places in
            the tree have the same name, or one has a name that is not possible in an archive.
        TypeError: the note is of another type; JAX has no such dtype as an array of numpy's has.
        OSError: the file cannot be written.

    The tree comes back to the bit, and the note as it was:

        >>> params = fnn.Linear(2, 3).init(jax.random.key(0))
        >>> fnn.save("state.npz", params, note={"epoch": 50})
        >>> loaded = fnn.load("state.npz", like=params)
        >>> bool(jnp.all(loaded["W"] == params["W"])), fnn.read_note("state.npz")
        (True, {'epoch': 50})
    """
    try:
        leaves, kinds = _survey("save", tree)
        _check_note(note)
        head = json.dumps({"format": FORMAT, "tree": kinds, "note": note}).encode()
    except RecursionError:  # also of a note that contains itself
        raise ValueError("save: the tree or the note is nested too deep") from None
    with replace_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, HEAD, head)
        for name, leaf in leaves.items():
            dtype, shape = _stored(leaf)
            with _exact():
                array = jax.device_put(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            numbers = jax.device_get(array).view(dtype.newbyteorder("=")).astype(dtype, copy=False)
            _add(archive, f"{name}.npy", _npy_header(dtype, shape), numbers.tobytes())


def load(path: str | os.PathLike, like: Any) -> Any:
    """The tree saved at `path`, which must have the structure, shapes and dtypes of `like`.

    Leaves of `like` are such as save takes, or jax.ShapeDtypeStruct. Python's numbers come back
    as Python's numbers. All others come back as arrays on the default device, in 64 bits where
    `like` has 64, whatever jax_enable_x64 says. Nothing is unpickled. The memory that load takes
    depends on the size of the file, and not on what the file says about its arrays.

    Raises:
        ValueError: the file is not one of save's, is cut off or corrupt, or its tree differs from
            `like`; the message names the file and the reason, or every place that differs.
        OSError: the file cannot be read.
    """
    leaves, kinds = _survey("load", like)
    with _opened(path) as (archive, head):
        found = head["tree"]
        differences = [
            f"{printable(name) or 'the tree'}: expected {kinds.get(name, 'nothing')}, "
            f"got {printable(found.get(name, 'nothing'))}"
            for name in sorted(kinds.keys() | found.keys())
            if kinds.get(name) != found.get(name)
        ]
        if differences:
            raise ValueError("; ".join(differences))
        if sorted(archive.namelist()) != sorted([HEAD, *(f"{name}.npy" for name in leaves)]):
            raise ValueError(f"its entries are not those that {HEAD} names")
        loaded = [_read(archive, f"{name}.npy", leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), loaded)


def read_note(path: str | os.PathLike) -> Any:
    """The note saved at `path` beside the tree, or None.

    Raises:
        ValueError: the file is not one of save's, or is cut off or corrupt.
        OSError: the file cannot be read.
    """
    with _opened(path) as (_, head):
        return head.get("note")


def _check_note(note):
    """Raise TypeError for a note that JSON takes and gives back changed."""
    if isinstance(note, list):
        for part in note:
            _check_note(part)
    elif isinstance(note, dict):
        for key, part in note.items():
            if not isinstance(key, str):
                raise TypeError(f"save: expected the note's keys to be text, got {key!r}")
            _check_note(part)
    elif not isinstance(note, bool | int | float | str | None):
        raise TypeError(
            f"save: expected the note to be of JSON's types, got a {type(note).__name__}"
        )


def printable(foreign: Any) -> str:
    """What a file says, for a message. Control characters could change the terminal."""
    text = foreign if isinstance(foreign, str) and foreign.isprintable() else repr(foreign)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _survey(who, tree):
    """The leaves of `tree`, and the type of each node as text, both by place: "0/W"."""
    leaves, kinds = {}, {}

    def visit(path, node):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in kinds or "\0" in name or len(name.encode()) > 2**15:
            reason = "two places in the tree have" if name in kinds else "no file can keep"
            raise ValueError(f"{who}: {reason} the name {name[:80]!r}")
        if jax.tree_util.all_leaves([node]):
            leaves[name], kinds[name] = node, _kind(who, name, node)
            return
        kinds[name] = type(node).__name__
        for place, child in jax.tree.leaves_with_path(node, is_leaf=lambda part: part is not node):
            visit((*path, *place), child)

    visit((), tree)
    return leaves, kinds


def _kind(who, name, leaf):
    """A leaf's type as text: float32[25,2], key<fry>[], int."""
    if type(leaf) in SCALARS:
        if type(leaf) is int and not -(2**63) <= leaf < 2**63:
            raise ValueError(
                f"{who}: expected {name or 'the tree'} to fit into 64 bits, got {leaf}"
            )
        return type(leaf).__name__
    dtype = getattr(leaf, "dtype", type(leaf))
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool, jax.dtypes.prng_key)):
        place = name or "the tree"
        raise ValueError(f"{who}: expected {place} to be an array or a number, got {dtype}")
    return f"{dtype.name}[{','.join(map(str, leaf.shape))}]"


def _is_key(leaf):
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jax.dtypes.prng_key)


def _stored(leaf):
    """The dtype and the shape of a leaf in the file."""
    if type(leaf) in SCALARS:
        return jnp.dtype(SCALARS[type(leaf)]).newbyteorder("<"), ()
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    has_no_npy_name = leaf.dtype.isbuiltin == 2  # numpy's own dtypes have 1, and copies of them 0
    dtype = jnp.dtype(f"u{leaf.dtype.itemsize}") if has_no_npy_name else leaf.dtype
    return dtype.newbyteorder("<"), tuple(leaf.shape)


def _npy_header(dtype, shape):
    """https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1.0."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def _add(archive, name, *parts):
    """Write an entry dated 1980, so that equal trees make equal files."""
    entry = zipfile.ZipInfo(name)
    entry.file_size = sum(map(len, parts))
    with archive.open(entry, "w") as file:
        for part in parts:
            file.write(part)


def _read(archive, name, like):
    """The leaf in an entry. Its header must be the one that save writes for `like`."""
    dtype, shape = _stored(like)
    data, header = archive.read(name), _npy_header(dtype, shape)
    size = math.prod(shape) * dtype.itemsize
    if not data.startswith(header) or len(data) != len(header) + size:
        raise ValueError(f"{name} is not an array {dtype.name}{list(shape)}")
    if dtype.kind == "b" and data[len(header) :].translate(None, b"\0\1"):
        raise ValueError(f"{name} has bools other than 0 and 1")
    with _exact():
        numbers = jax.device_get(jnp.frombuffer(data, dtype, offset=len(header))).reshape(shape)
        if type(like) in SCALARS:
            return numbers.item()
        if _is_key(like):
            impl = jax.random.key_impl(jnp.empty((), like.dtype))
            return jax.random.wrap_key_data(jax.device_put(numbers), impl=impl)
        return jax.device_put(numbers.view(like.dtype))


@contextlib.contextmanager
def _exact():
    """Let JAX move arrays between host and device unchanged, whatever its settings are."""
    with (
        jax.enable_x64(True),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        yield


@contextlib.contextmanager
def _opened(path):
    """Give the archive at `path` and its head. A ValueError in the block names the file too."""
    path = os.fsdecode(path)
    check_regular(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            if HEAD not in archive.namelist():
                raise ValueError(f"there is no {HEAD} in it")
            entries = archive.infolist()
            if any(e.compress_type or e.compress_size != e.file_size for e in entries):
                raise ValueError("an entry is compressed")
            if any(e.flag_bits & 1 for e in entries):
                raise ValueError("an entry is encrypted")
            size = os.fstat(file.fileno()).st_size
            if (
                sum(e.file_size for e in entries) > size
                or min(e.header_offset for e in entries) < 0
            ):
                raise ValueError("its entries are not inside the file")
            head = json.loads(archive.read(HEAD))
            version = head.get("format") if isinstance(head, dict) else None
            if version != FORMAT or not isinstance(head.get("tree"), dict):
                raise ValueError(f"expected {HEAD} of format {FORMAT}, got {version!r}")
            yield archive, head
    except CORRUPT as error:
        reason = "an entry is cut off" if isinstance(error, EOFError) else error
        raise ValueError(f"{path}: {reason}") from error
