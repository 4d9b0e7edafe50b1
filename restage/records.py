"""What passes between stages: content ids, seeds, small typed records, and how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

__all__ = ["DIRECT", "EditCase", "EditRequest", "GRADED", "InputError", "MissingExtra", "Progress", "PromptPair"]
__all__ += ["Reference", "Score", "added_later", "canonical_json", "check_is_no_pipe", "content_id", "derive_seed"]
__all__ += ["did_you_mean", "file_sha256"]
__all__ += ["from_plain", "has_right_seal", "hash_files", "parse_json", "read_json", "seal", "write_atomically"]
__all__ += ["write_json", "write_record"]


Kind = TypeVar("Kind")

GRADED = "grade"
"""Kind of the edits whose truth is graded photographs."""
DIRECT = "direct"
"""Kind of the edits of splats themselves, which no editor is asked for."""


class InputError(ValueError):
    """The user's input cannot be used; the command line prints the message as one line and exits with 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean NAME? " where a known name is near to what was given; else nothing."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


class MissingExtra(InputError):
    """An optional dependency is needed; names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'restage[{extra}]'")


def added_later(default: Any) -> Any:
    """A field of a config that is no part of its JSON, and so of ids from before there was it, while it is default."""
    return dataclasses.field(default=default, metadata={"added_later": True})


def to_plain(value: Any) -> Any:
    """Turn dataclasses, paths, tuples and numpy scalars into JSON values, keys as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: to_plain(x) for f, x in fields if "added_later" not in f.metadata or x != f.default}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "ndim", 0) == 0 else value


def canonical_json(value: Any) -> str:
    """Write a value as JSON in the one way that its hash is taken of: sorted keys, no spaces; NaN is a ValueError."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_id(kind: str, value: Any) -> str:
    """Name a value by its content: `<kind>-` and the first 16 hex digits of the SHA-256 of its canonical JSON."""
    return f"{kind}-{hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]}"


def derive_seed(*parts: int | str) -> int:
    """Derive a seed in [0, 2^63) from a run seed, item ids and sample indices; any change of a part changes it."""
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_is_no_pipe(path: Path) -> None:
    """Refuse a pipe, a socket or a device: one would wait for whoever writes into it, another never ends."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is not a file, but a pipe or a device")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    check_is_no_pipe(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their path relative to a folder, sorted by path."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(paths)}


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a `seal`: the SHA-256 of the canonical JSON of all else in it, where NaN is allowed.

    A seal shows that a record was changed by accident or by hand. Who wants to deceive can seal anew.
    """
    # The hash is of the values and not of the file's bytes, so that a record may be indented or sorted anew.
    content = {name: to_plain(value) for name, value in record.items() if name != "seal"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**content, "seal": hashlib.sha256(text.encode()).hexdigest()}


def has_right_seal(record: Mapping[str, Any], *, is_required: bool) -> bool:
    """Whether the record is as it was sealed; without a seal, whether none is required, as in earlier versions."""
    return seal(record)["seal"] == record["seal"] if "seal" in record else not is_required


def system_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an exception is or speaks of; None if it is of another kind."""
    if isinstance(error, OSError):
        return error if error.errno else None
    # Two libraries open files by themselves: safetensors says the number in words, torch that too little arrived.
    numbered = re.search(r"\(os error (\d+)\)", str(error))
    if numbered is None and not re.search("inline_container.*unexpected pos|PytorchStreamWriter failed", str(error)):
        return None
    number = int(numbered.group(1)) if numbered else errno.ENOSPC
    return OSError(number, os.strerror(number))


def is_disk_full(error: BaseException) -> bool:
    """Return whether an exception says that there is no space left, or no more for this user or file."""
    reason = system_error(error)
    return reason is not None and reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_beside(path: Path) -> Path:
    """Return a name for a file that is to replace another; what a dead process left is known by it."""
    # In the same folder, since a rename is atomic within one file system only; unique on all machines that share the
    # folder, and in all threads; hidden, so that no reader takes it for a file of the run.
    maker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem}.{maker}.tmp{path.suffix}")


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced to disk and renamed, on an error removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        # Without this a crash of the machine can leave the new name with no content: the rename may reach the disk
        # before the data does.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        reason = system_error(error)
        if reason is None or (reason.filename is not None and str(reason.filename) != str(temporary)):
            raise
        # Most writers do not say which file it was, and the temporary name means nothing to anyone.
        raise OSError(reason.errno, os.strerror(reason.errno or 0), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(
            json.dumps(to_plain(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_record(path: Path, value: Mapping[str, Any], *, files: Iterable[Path] = ()) -> None:
    """Write the record that ends a folder, sealed, with the hashes of the files below it that it speaks for."""
    write_json(path, seal({**value, "files": hash_files(path.parent, files)}))


@overload
def read_json(path: Path) -> Any: ...
@overload
def read_json(path: Path, kind: type[Kind]) -> Kind: ...
def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file, as it is or as a record of a type: a frozen dataclass, or any that msgspec converts to.

    Keys that the type does not know are ignored. An InputError names file, field, what is expected and found.
    """
    check_is_no_pipe(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return parse_json(content, kind, where=path)


def parse_json(content: bytes | str, kind: Any = Any, *, where: object) -> Any:
    """Read JSON text, as it is or as a record of a type; see `read_json`. Messages say `where` it was read from."""
    try:
        plain = json.loads(content)
        json.dumps(plain, ensure_ascii=False).encode()  # refuses half of a surrogate pair, which nothing can write
    except RecursionError:
        raise InputError(f"{where} is not readable as JSON: it is nested too deeply") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise InputError(f"{where} is not readable as JSON: {str(error).partition(';')[0]}") from None
    return plain if kind is Any else from_plain(plain, kind, where=where)


def from_plain(value: Any, kind: Any, *, where: object) -> Any:
    """Turn JSON values into a record of a type: the reverse of `to_plain`. Messages say `where` they were read from."""
    try:
        return msgspec.convert(value, kind, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        what, _, field = str(error).replace("`", "").partition(" - at ")
        place = f"{where}: {field.lstrip('$.')}" if field else str(where)
        raise InputError(f"{place}: {what[:1].lower()}{what[1:]}") from None


def _to_path(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected {kind.__name__}, got {type(value).__name__}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of long work, as every stage yields it; the caller shows or stops."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """Two captions that differ by one edit, and the instruction that leads from one to the other."""

    source: str
    target: str
    instruction: str
    kind: str
    """Kind of edit: recolour, reshape, add, remove, ground, time, resize; of the second edition also move, pattern."""
    swaps: tuple[tuple[str, str], ...] = ()
    """Words of the source caption and what stands in their place in the target, in order; empty if not a word swap."""
    words: tuple[str, ...] = ()
    """Words whose attention marks the region to change (found in the source or the target caption)."""
    form: str = "grammar"
    """The prompt form that it was written with."""
    parent: str = ""
    """Id of the prompt pair that it was derived from, empty for none."""
    writer: str = "grammar"
    picture: str = ""
    """File of a picture that shows one of the captions, relative to the pairs' own file; empty for none."""
    pictured: str = "source"
    """Which caption the picture shows: `source`, or `target`, from which the picture before the edit is then made."""
    reference: str = added_later("")
    """File of a picture that the instruction refers to, relative to the pairs' own file; empty for none."""
    reference_mask: str = added_later("")
    """File of a mask of the subject in that picture, white inside; empty for none."""
    undo: str = ""
    """Instruction that leads back from the target to the source, so that the pair can be learned both ways; empty for
    none. No part of the id, for no picture depends on it."""
    behind: str = ""
    """Of a removal, caption of what is left where the thing was, such as `sand in the fog`; empty for none. A pair made
    of a picture that shows the thing is painted with it, since the target's other things would fill the gap."""

    def __post_init__(self) -> None:
        # Data sets of others may have no captions, and training needs none; pictures cannot be made without them.
        for name in ("instruction",) if self.writer == "foreign" else ("source", "target", "instruction"):
            if not getattr(self, name).strip():
                raise InputError(f"a prompt pair needs a {name}, got an empty text")
        if self.reference_mask and not self.reference:
            raise InputError("a prompt pair has a mask of a reference, but no reference")
        if self.pictured not in ("source", "target"):
            raise InputError(f"a prompt pair's picture shows 'source' or 'target', got {self.pictured!r}")

    @cached_property
    def id(self) -> str:
        """Content id."""
        plain = to_plain(self)
        del plain["undo"]
        if not self.is_painted_behind:
            del plain["behind"]
        if not self.picture:  # the id that such a pair had before pairs could have pictures
            del plain["picture"], plain["pictured"]
        return content_id("prompt", plain)

    @property
    def is_painted_behind(self) -> bool:
        """Whether the picture after the edit is painted by the caption of what is behind, inside the words' region."""
        has_thing = bool(self.picture) and self.pictured == "source"
        return has_thing and self.kind == "remove" and bool(self.behind and self.words)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> PromptPair:
        """Read it back from its JSON form."""
        return from_plain(dict(value), cls, where="a prompt pair")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A picture that a request refers to, by its content; the files lie in `references/` of the scene's folder."""

    picture: str
    """The file's name: the SHA-256 of its bytes, and a suffix."""
    mask: str = added_later("")
    """The name of a mask of the picture's subject, white inside; empty for none."""


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What is asked of an editor: an instruction, and captions of the scene before and after."""

    instruction: str
    source_caption: str
    target_caption: str
    references: tuple[Reference, ...] = added_later(())
    """Pictures that the instruction refers to."""

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise InputError("the instruction is empty; say what to change, such as 'make the cube blue'")


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """One edit of one scene, with or without exact truth; lies as `edit.json` in the truth folder of a scene."""

    scene: str
    kind: str
    request: EditRequest
    has_truth: bool

    @property
    def id(self) -> str:
        """Content id."""
        return content_id("edit", self)

    @property
    def is_graded(self) -> bool:
        """Whether its truth is photographs that were graded as the instruction says (`restage.edit.editors.grade`)."""
        return self.kind == GRADED


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of one result: a row of `compare/scores.parquet`."""

    scene: str
    edit: str
    kind: str
    method: str
    editor: str
    seed: int
    metric: str
    value: float
    """NaN where it could not be scored; then `reason` says why."""
    reason: str = ""
    is_cost: bool = False
    """True for time and memory, which differ from run to run."""
