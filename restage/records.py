"""What passes between stages: content ids, seeds, small typed records, and the run folder they live in.

Every stage imports this module; of ours it imports only `environment` and `memory`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restage.environment import git_commit, machine, versions
from restage.memory import process_peak_mb

__all__ = [
    "EditCase",
    "EditRequest",
    "InputError",
    "MissingExtra",
    "Progress",
    "PromptPair",
    "RunFolder",
    "Score",
    "canonical_json",
    "content_id",
    "derive_seed",
    "file_sha256",
    "has_right_seal",
    "hash_files",
    "read_json",
    "seal",
    "write_atomically",
    "write_json",
    "write_record",
]


class InputError(ValueError):
    """The user's input cannot be used; the command line prints the message as one line and exits with 2."""


class MissingExtra(InputError):
    """An optional dependency is needed; names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'restage[{extra}]'")


def to_plain(value: Any) -> Any:
    """Turn dataclasses, paths, tuples and numpy scalars into JSON values, keys as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "ndim", 0) == 0 else value


def canonical_json(value: Any) -> str:
    """Write a value as JSON in the one way that its hash is taken of: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: a float is NaN or infinite.
    """
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_id(kind: str, value: Any) -> str:
    """Name a value by its content: `<kind>-` and the first 16 hex digits of the SHA-256 of its canonical JSON."""
    return f"{kind}-{hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]}"


def derive_seed(*parts: int | str) -> int:
    """Derive a seed in [0, 2^63) from a run seed, item ids and sample indices; any change of a part changes it."""
    digest = hashlib.sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their path relative to a folder, in the order of these."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(paths)}


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a `seal`: the SHA-256 of the canonical JSON of all else in it, where NaN is allowed.

    A seal shows that a record was changed by accident or by hand. Who wants to deceive can seal anew.
    """
    content = {name: to_plain(value) for name, value in record.items() if name != "seal"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**content, "seal": hashlib.sha256(text.encode()).hexdigest()}


def has_right_seal(record: Mapping[str, Any], *, is_required: bool) -> bool:
    """Whether the record is as it was sealed.

    Args:
        record: to look at.
        is_required: whether it must have a seal, or may be of an older version that had none.
    """
    return seal(record)["seal"] == record["seal"] if "seal" in record else not is_required


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced to disk and renamed, on an error removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique on all machines that share the folder, and in all threads.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _was_begun(file: Path) -> bool:
    """Whether it is what a start leaves that was killed while it wrote `run.json`."""
    return file.match(".run.*.tmp.json")


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(to_plain(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_record(path: Path, value: Mapping[str, Any], *, files: Iterable[Path] = ()) -> None:
    """Write the record that ends a folder: with the hashes of the files it speaks for, and sealed.

    Args:
        path: of the record.
        value: what it says.
        files: below the record's folder.
    """
    write_json(path, seal({**value, "files": hash_files(path.parent, files)}))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from None


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
    """Kind of edit: recolour, reshape, add, remove, ground, time, resize."""
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
    undo: str = ""
    """Instruction that leads back from the target to the source, so that the pair can be learned both ways; empty for
    none. No part of the id, for no picture depends on it."""

    def __post_init__(self) -> None:
        for name in ("source", "target", "instruction"):
            if not getattr(self, name).strip():
                raise InputError(f"a prompt pair needs a {name}, got an empty text")
        if self.pictured not in ("source", "target"):
            raise InputError(f"a prompt pair's picture shows 'source' or 'target', got {self.pictured!r}")

    @property
    def id(self) -> str:
        """Content id."""
        plain = to_plain(self)
        del plain["undo"]
        if not self.picture:  # the id that such a pair had before pairs could have pictures
            del plain["picture"], plain["pictured"]
        return content_id("prompt", plain)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> PromptPair:
        """Read it back from its JSON form."""
        swaps = tuple((str(old), str(new)) for old, new in value.get("swaps", ()))
        return cls(**{**value, "swaps": swaps, "words": tuple(value.get("words", ()))})


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What is asked of an editor: an instruction, and captions of the scene before and after."""

    instruction: str
    source_caption: str
    target_caption: str

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise InputError("the instruction is empty; say what to change, such as 'make the cube blue'")


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """One edit of one scene, with or without exact truth; lies as `edit.json` in the truth folder of a scene."""

    scene: str
    """Name of the scene's folder."""
    kind: str
    request: EditRequest
    has_truth: bool

    @property
    def id(self) -> str:
        """Content id."""
        return content_id("edit", self)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> EditCase:
        """Read it back from its JSON form."""
        return cls(**{**value, "request": EditRequest(**value["request"])})


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


UNSEALED = (
    *("*/stage.json", "*/.*", "train/cache/*", "train/state.pt", "scenes/*/fit_state.pt"),
    # Pairs have marks of their own, which hold hashes and allow for repairs.
    *("pairs/*.tar", "pairs/*.parquet", "pairs/*.done", "pairs/*.json", "pairs/quarantine/*"),
)
"""Files of stages whose hashes are in no mark of a stage: states that work goes on from, and what is marked apart."""

SEALED_APART = "sealed apart"
"""Stands for the hash of a record that holds a seal, and hashes, of its own."""


@dataclass
class RunFolder:
    """A run is a folder: `run.json` is written first and closed last, each stage marks itself done with a file.

    A stage's mark, `<run>/<stage>/stage.json`, holds the id of its resolved config and is written after everything
    else of that stage. A stage that is asked for again with the same id is skipped; with another id it is refused,
    since a finished stage is never overwritten.
    """

    path: Path
    config: Any
    """The resolved config of the whole run (a dataclass)."""
    seed: int
    started_s: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        """Content id of config and seed."""
        return content_id("run", {"config": to_plain(self.config), "seed": self.seed})

    @classmethod
    def open(cls, path: Path, config: Any, *, seed: int) -> RunFolder:
        """Start a run in `path`, or go on with the one that is there.

        Raises:
            InputError: `path` holds a run with another config, or something that is not a run.
        """
        run = cls(path=path, config=config, seed=seed)
        record_path = path / "run.json"
        if record_path.exists():
            found = read_json(record_path)
            if found.get("id") != run.id:
                raise InputError(
                    f"{path} holds run {found.get('id')} with another config; choose another folder with --out"
                )
        elif path.exists() and not (path.is_dir() and all(_was_begun(file) for file in path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder; choose another folder with --out")
        else:
            write_json(record_path, seal(run._record("running")))
        return run

    def _record(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "config": to_plain(self.config),
            "seed": self.seed,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "git_commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "status": status,
            "started_s": self.started_s,
        }

    def close(self, status: str) -> None:
        """Write the end of this session of work into `run.json`: status, wall time, peak memory.

        Args:
            status: `done`, `stopped` (by the user) or `failed`.
        """
        record = read_json(self.path / "run.json")
        is_untouched = has_right_seal(record, is_required=False)
        session = {
            "status": status,
            "wall_s": time.time() - self.started_s,
            "peak_memory_mb": process_peak_mb(),
            "git_commit": git_commit(),
        }
        record.update(status=status, sessions=[*record.get("sessions", []), session])
        # What was changed by hand is not sealed anew: `restage verify` is to find it.
        write_json(self.path / "run.json", seal(record) if is_untouched else record)
        if status == "done":
            for leftover in self.path.rglob(".*.tmp*"):  # of sessions that were killed while they wrote
                leftover.unlink(missing_ok=True)

    def folder(self, stage: str) -> Path:
        """The stage's folder, made if missing."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str, config: Any) -> bool:
        """Whether the stage was finished with this config.

        Raises:
            InputError: it was finished with another one.
        """
        mark = self.path / stage / "stage.json"
        if not mark.exists():
            return False
        found = read_json(mark)
        expected = content_id(stage.split("/")[0], config)
        if found["id"] != expected:
            raise InputError(f"{mark.parent} was made with another config ({found['id']}); choose another --out")
        return True

    def mark_done(self, stage: str, config: Any, *, also: Sequence[str] = (), **facts: Any) -> None:
        """Mark a stage as finished, with the hashes of its files; call it after everything else of it is on disk.

        Args:
            stage: its name, which is that of its folder.
            config: resolved.
            also: patterns, relative to the run, of files that it wrote outside of its folder.
            facts: what `restage show` and the page are to say of it.
        """
        mark = {"id": content_id(stage.split("/")[0], config), "config": to_plain(config), "facts": facts}
        write_json(self.path / stage / "stage.json", seal({**mark, "files": self._hashes(stage, also)}))

    def _hashes(self, stage: str, also: Sequence[str]) -> dict[str, str]:
        """Hashes of a stage's files by their path in the run, but for those that another record holds the hashes of."""
        found = {path for pattern in (f"{stage}/**/*", *also) for path in self.path.glob(pattern) if path.is_file()}
        records = {path: read_json(path) for path in found if path.name in ("record.json", "fit.json")}
        records = {path: record for path, record in records.items() if "seal" in record}
        theirs = {path.parent / name for path, record in records.items() for name in record["files"]}
        names = {path.relative_to(self.path).as_posix(): path for path in sorted(found - theirs)}
        return {
            name: SEALED_APART if path in records else file_sha256(path)
            for name, path in names.items()
            if not any(fnmatch.fnmatch(name, pattern) for pattern in UNSEALED)
        }
