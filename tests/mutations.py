"""Damaged copies of files, for small fuzz tests: always the same ones for the same bytes."""

import pathlib
import random
import zlib
from collections.abc import Iterator


def mutations(content: bytes, count: int, *, header: int = 512) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies of `content`, each with what was done to it.

    Half of them are changed in the first `header` bytes, where sizes and offsets are: flipped bits, bytes of the
    greatest and least values, parts that are doubled, removed or zero, and ends that are cut off.
    """
    draw = random.Random(zlib.crc32(content))
    for number in range(count):
        limit = min(len(content), header) if number % 2 else len(content)
        place = draw.randrange(max(limit, 1))
        length = draw.choice((1, 2, 4, 8, 64))
        part = content[place : place + length]
        name, replacement = draw.choice(
            [
                ("bit flipped", bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:] if part else b""),
                ("all ones", b"\xff" * len(part)),
                ("zeros", bytes(len(part))),
                ("greatest signed", b"\xff" * (len(part) - 1) + b"\x7f" if part else b""),
                ("doubled", part * 2),
                ("removed", b""),
                ("random", draw.randbytes(len(part))),
                ("cut off", None),
            ]
        )
        damaged = content[:place] if replacement is None else content[:place] + replacement + content[place + length :]
        yield f"{number}: {length} bytes at {place}: {name}", damaged


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    """The largest file at any depth below `folder`."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bit(path: pathlib.Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
