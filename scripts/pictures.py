"""Images as a part of figures: the mistakes of a network beside what it took them for."""

import base64
import struct
import zlib
from collections.abc import Sequence

from figures import VERMILLION, figure, text

COLUMNS, TILE, GAP = 8, 84, 16


def mistakes(images: Sequence, labels, predicted, probabilities, title: str) -> str:
    """Grey images (rows of bytes, 0 black), each with its label, and what it was taken for."""
    body = [text(GAP, 26, title, size=15, anchor="start")]
    rows = -(-len(images) // COLUMNS)
    for number, image in enumerate(images):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (TILE + GAP), 44 + row * (TILE + 52)
        scale = TILE / max(len(image), len(image[0]))
        width, height = scale * len(image[0]), scale * len(image)
        middle = left + TILE / 2
        body += [
            f'<image x="{middle - width / 2:g}" y="{top + (TILE - height) / 2:g}" '
            f'width="{width:g}" height="{height:g}" image-rendering="pixelated" '
            f'preserveAspectRatio="none" href="{_png_uri(image)}"/>',
            text(middle, top + TILE + 16, f"label {labels[number]}", size=12),
            text(
                middle,
                top + TILE + 32,
                f"{predicted[number]} with {probabilities[number]:.2%}",
                size=12,
                color=VERMILLION,
            ),
        ]
    return figure(GAP + COLUMNS * (TILE + GAP), 44 + rows * (TILE + 52), title, body)


def _png_uri(image):
    """A grey image as a PNG file (https://www.w3.org/TR/png) in a data URI."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">2I5B", len(image[0]), len(image), 8, 0, 0, 0, 0)  # 8 bits, grey
    rows = b"".join(b"\0" + bytes(row) for row in image)  # each after its filter: none
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
