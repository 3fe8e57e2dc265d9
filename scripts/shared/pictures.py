"""Images as a part of figures: the mistakes of a network beside what it took them for."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence

from shared.figures import VERMILLION, figure, text

COLUMNS, TILE, GAP, CAPTION = 6, 96, 24, 48


def mistakes(images: Sequence, labels, predicted, probabilities, title: str) -> str:
    """Each image with its label, the class it was taken for, and that class's probability.

    images is a sequence of grey images, rows of values from 0, black, to 255; the others have
    an entry an image.
    """
    body = [text(GAP, 30, title, size=15, anchor="start")]
    rows = math.ceil(len(images) / COLUMNS)
    for index, (image, label, wrong, probability) in enumerate(
        zip(images, labels, predicted, probabilities, strict=True)
    ):
        row, column = divmod(index, COLUMNS)
        x, top = GAP + column * (TILE + GAP) + TILE / 2, 50 + row * (TILE + CAPTION)
        scale = TILE / max(len(image), len(image[0]))
        width, height = scale * len(image[0]), scale * len(image)
        body += [
            f'<image x="{x - width / 2:g}" y="{top + (TILE - height) / 2:g}" width="{width:g}" '
            f'height="{height:g}" image-rendering="pixelated" href="{_png_uri(image)}"/>',
            text(x, top + TILE + 15, f"{label}, taken for {wrong}", size=12),
            text(x, top + TILE + 30, f"with {probability:.2%}", size=12, color=VERMILLION),
        ]
    return figure(GAP + COLUMNS * (TILE + GAP), 58 + rows * (TILE + CAPTION), title, body)


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
