"""How files are spoiled: each fault changes a file in place, and says whether it must then be refused.

A fault whose harm depends on where it strikes (one flipped byte, one field of another type) claims nothing: it may be
refused or survived, but must end in an agreed way.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

__all__ = ["FILE", "JSON", "LINES", "TEXT", "Fault"]

Fault = Callable[[Path, Random], bool]
"""Spoils the file at a path; returns whether what reads it must refuse it."""

Item = TypeVar("Item")

LONG_NUMBER = "1" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
SECRET = "outside/secret"
"""File beside the input that nothing may read out or change, relative to the case's folder."""
HOSTILE_TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "\x1b[2J\x1b]0;owned\x07", "../../outside/secret", "/etc/passwd", "C:\\x\\y",
    "a" * 300, "a/" * 3000, "x" * 200_000, "nan", "-1", "{}", "%s%n", "'; --", "<script>alert(1)</script>",
    "\\input{/etc/passwd}", "\u202egnp.exe", "file:///etc/passwd", "~", ".", "..", "con", "\n\n", "\ufeff", "http://127.0.0.1:9/x",
)  # fmt: skip
WRONG_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**63, 10**30, 1e308, -1e308, float("nan"), float("inf"), 0.5, "x", "", [], {}, [[]],
    [None], {"x": 1}, [1, "x"], "nan", [0] * 1000, {"": ""},
)  # fmt: skip


def replace_file(path: Path, content: bytes) -> None:
    remove(path)
    path.write_bytes(content)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Files of any kind.


def missing(path: Path, rng: Random) -> bool:
    remove(path)
    return True


def empty(path: Path, rng: Random) -> bool:
    replace_file(path, b"")
    return True


def cut(path: Path, rng: Random) -> bool:
    content = path.read_bytes()
    replace_file(path, content[: rng.randrange(1, max(2, len(content) - 4))])
    return True


def flipped(path: Path, rng: Random) -> bool:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 4, 32))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    replace_file(path, bytes(content))
    return False


def shifted(path: Path, rng: Random) -> bool:
    """Bytes too many, or too few, in the middle."""
    content = path.read_bytes()
    at, size = rng.randrange(len(content)), rng.randrange(1, 64)
    replace_file(
        path, content[:at] + (rng.randbytes(size) + content[at:] if rng.random() < 0.5 else content[at + size :])
    )
    return False


def garbage(path: Path, rng: Random) -> bool:
    replace_file(path, rng.randbytes(rng.choice((1, 100, 5000))))
    return True


def zeros(path: Path, rng: Random) -> bool:
    replace_file(path, bytes(rng.choice((1, 4096, 1 << 20))))
    return True


def folder(path: Path, rng: Random) -> bool:
    remove(path)
    path.mkdir()
    return True


def fifo(path: Path, rng: Random) -> bool:
    remove(path)
    os.mkfifo(path)
    return True


def dangling(path: Path, rng: Random) -> bool:
    remove(path)
    path.symlink_to("nowhere")
    return True


def link_to_itself(path: Path, rng: Random) -> bool:
    remove(path)
    path.symlink_to(path.name)
    return True


def device(path: Path, rng: Random) -> bool:
    remove(path)
    path.symlink_to("/dev/zero")
    return True


def long_line(path: Path, rng: Random) -> bool:
    replace_file(path, b"a" * (8 << 20))
    return True


FILE: tuple[Fault, ...] = (
    missing, empty, cut, flipped, flipped, shifted, garbage, zeros, folder, fifo, dangling, link_to_itself, device,
    long_line,
)  # fmt: skip


# Text, of which nearly everything may be said: only what cannot be read has to be refused.


def with_mark(path: Path, rng: Random) -> bool:
    replace_file(path, b"\xef\xbb\xbf" + path.read_bytes())
    return False


def utf_16(path: Path, rng: Random) -> bool:
    replace_file(path, path.read_bytes().decode().encode("utf-16"))
    return False


def hostile_line(path: Path, rng: Random) -> bool:
    text = rng.choice(HOSTILE_TEXTS).encode("utf-8", "surrogatepass")
    replace_file(path, path.read_bytes() + text + b"\n")
    return False


TEXT: tuple[Fault, ...] = (*FILE, with_mark, utf_16, hostile_line)


# JSON.


def places_in(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where all values of nested JSON are, as keys and indices from the top."""
    yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places_in(item, (*where, key))


def inner_place(value: Any, rng: Random) -> tuple[Any, Any]:
    """A random container and key in it; a shallow one is as likely as a deep one."""
    places = [place for place in places_in(value) if place]
    depth = rng.choice(sorted({len(place) for place in places}))
    place = rng.choice([place for place in places if len(place) == depth])
    for key in place[:-1]:
        value = value[key]
    return value, place[-1]


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Write the file anew as what the function made of it, NaN and halves of surrogate pairs included."""
    plain = json.loads(path.read_text())
    replace_file(path, json.dumps(change(plain), indent=1).encode())


def spoil_inside(path: Path, rng: Random, spoil: Callable[[Any, Any], None]) -> bool:
    def change(plain: Any) -> Any:
        container, key = inner_place(plain, rng)
        spoil(container, key)
        return plain

    change_json(path, change)
    return False


def other_top(path: Path, rng: Random) -> bool:
    """Valid JSON, but no record."""
    replace_file(path, rng.choice((b"null", b"[]", b'"x"', b"3", b"true", b"[1, 2]", b"NaN", b"[[], {}]")))
    return True


def deep(path: Path, rng: Random) -> bool:
    replace_file(path, DEEP.encode())
    return True


def deep_inside(path: Path, rng: Random) -> bool:
    spoil_inside(path, rng, lambda container, key: container.__setitem__(key, "DEEP"))
    replace_file(path, path.read_bytes().replace(b'"DEEP"', DEEP.encode(), 1))
    return True


def long_number(path: Path, rng: Random) -> bool:
    spoil_inside(path, rng, lambda container, key: container.__setitem__(key, "LONG"))
    replace_file(path, path.read_bytes().replace(b'"LONG"', LONG_NUMBER.encode(), 1))
    return True


def wrong_value(path: Path, rng: Random) -> bool:
    value = rng.choice(WRONG_VALUES)
    return spoil_inside(path, rng, lambda container, key: container.__setitem__(key, copy.deepcopy(value)))


def hostile_text(path: Path, rng: Random) -> bool:
    text = rng.choice(HOSTILE_TEXTS)
    return spoil_inside(path, rng, lambda container, key: container.__setitem__(key, text))


def dropped(path: Path, rng: Random) -> bool:
    return spoil_inside(path, rng, lambda container, key: container.__delitem__(key))


def unknown_key(path: Path, rng: Random) -> bool:
    def spoil(container: Any, key: Any) -> None:
        if isinstance(container, dict):
            container[rng.choice(("evil", "__class__", "self", *HOSTILE_TEXTS[:6]))] = rng.choice(WRONG_VALUES)
        else:
            container.append(copy.deepcopy(rng.choice(WRONG_VALUES)))

    return spoil_inside(path, rng, spoil)


def doubled(path: Path, rng: Random) -> bool:
    """The first key again at the end, with another value; an item of a list twice."""
    text = path.read_text().rstrip()
    plain = json.loads(text)
    if isinstance(plain, dict) and plain:
        replace_file(path, f"{text[:-1].rstrip()}, {json.dumps(next(iter(plain)))}: null}}".encode())
    return False


JSON: tuple[Fault, ...] = (
    *TEXT, other_top, other_top, deep, deep_inside, long_number, *(wrong_value,) * 8, *(hostile_text,) * 5,
    *(dropped,) * 4, unknown_key, unknown_key, doubled,
)  # fmt: skip


def in_a_line(fault: Fault) -> Fault:
    """A fault of JSON in one line of a file of JSON Lines."""

    def spoil(path: Path, rng: Random) -> bool:
        lines = path.read_bytes().splitlines()
        at, part = rng.randrange(len(lines)), path.with_name(f"{path.name}.line")
        part.write_bytes(lines[at])
        is_refused = fault(part, rng)
        lines[at] = part.read_bytes().replace(b"\n", b" ")
        part.unlink()
        replace_file(path, b"\n".join(lines) + b"\n")
        return is_refused

    spoil.__name__ = f"{fault.__name__}_in_a_line"
    return spoil


LINES: tuple[Fault, ...] = (
    *TEXT,
    *map(in_a_line, (cut, garbage, other_top, deep, deep_inside, long_number, unknown_key, doubled)),
    *map(in_a_line, (*(wrong_value,) * 6, *(hostile_text,) * 5, *(dropped,) * 3)),
)
