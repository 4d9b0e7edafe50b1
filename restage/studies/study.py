"""A study as data: scenes with edits x methods x editors x seeds, as a Python file says it. `run.py` runs it.

A study lives in a folder that is a run like any other: scenes/, edit/ and compare/ lie where docs/conventions.md says,
so that `restage report`, `restage show` and `restage verify` read it without knowing what a study is.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from restage.compare.config import CompareConfig
from restage.edit.editors import NO_EDITOR, MenuEditor, SceneEditor
from restage.edit.job import Method
from restage.edit.stage import EditUnit, editors_of
from restage.records import InputError, content_id, to_plain
from restage.scenes.config import FitConfig

__all__ = ["MenuEditor", "SceneEditor", "Study", "StudyMethod", "StudyScene", "identity_of", "list_units", "load_study"]


@runtime_checkable
class StudyScene(Protocol):
    """A scene with its edits; `scenes.py` has the world's and a user's own. A frozen dataclass."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        ...

    @property
    def fit(self) -> FitConfig:
        """How the scene is fitted, once for all methods."""
        ...

    @property
    def edits(self) -> tuple[str, ...]:
        """Names of its edits; the cases of the study are scene x edit."""
        ...

    def facts_of(self, edit: str) -> Mapping[str, Any]:
        """All that a result of this edit depends on, of the scene: names and settings, no paths, no other edits."""
        ...

    def write(self, folder: Path) -> Iterator[str]:
        """Write `capture/`, and `truth/<edit>/` for every edit, `edit.json` last; what is there stays. Yields lines."""
        ...


@dataclass(frozen=True, kw_only=True)
class StudyMethod:
    """A method as it takes part in a study, under a name of its own."""

    settings: Method
    editors: tuple[str, ...] | None = None
    """Names of the study's editors that it runs with; None for all. A method that asks none gets the editor `none`."""
    seeds: tuple[int, ...] | None = None
    edits: tuple[str, ...] | None = None
    """Names of the edits that it runs on; None for all."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison as data: everything that its numbers depend on, apart from the code.

    A study may grow: what is added later (scenes, methods, editors, seeds) runs, what is there stays. What has run
    may not change under its name: that is refused, with the name of what changed.
    """

    name: str
    scenes: tuple[StudyScene, ...]
    methods: Mapping[str, StudyMethod]
    """Methods by their name in tables and folders; `nothing` is the anchor by which all others are read."""
    editors: Mapping[str, SceneEditor] = field(default_factory=dict)
    """Editors by their name in tables and folders; `exact` is the anchor for the 3D half alone."""
    seeds: tuple[int, ...] = (0,)
    time_cap_s: float | None = None
    """Seconds after which a method is stopped at its next step; the scene as it then is is the result, and the row
    `is_capped` says so. A cap that bites makes results depend on the machine."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    seed: int = 0
    """Seed of the run, from which the seeds of edits derive."""

    def __post_init__(self) -> None:
        names = [scene.name for scene in self.scenes]
        if not names or len(set(names)) != len(names):
            raise InputError(f"expected at least one scene, all of different names, got {names}")
        if not self.methods or not self.seeds:
            raise InputError("expected at least one method and one seed")
        if self.time_cap_s is not None and not self.time_cap_s > 0:
            raise InputError(f"expected a time cap above 0 s, got {self.time_cap_s}")
        for name, method in self.methods.items():
            unknown = sorted(set(method.editors or ()) - set(self.editors))
            if unknown:
                raise InputError(f"method {name} is to run with {', '.join(unknown)}, which the study does not have")
        for name in (*self.methods, *self.editors, *names):
            if not name or name != Path(name).name:
                raise InputError(f"{name!r} cannot be the name of a folder")


def list_units(study: Study) -> list[EditUnit]:
    """All single results of a study, scene by scene, in the order of its rows."""
    units = []
    for scene in study.scenes:
        for edit in scene.edits:
            for name, method in study.methods.items():
                if method.edits is not None and edit not in method.edits:
                    continue
                names = tuple(study.editors) if method.editors is None else method.editors
                for editor in (NO_EDITOR,) if method.editors == () else editors_of(method.settings, names):
                    for seed in study.seeds if method.seeds is None else method.seeds:
                        units.append(EditUnit(scene=scene.name, edit=edit, method=name, editor=editor, seed=seed))
    return units


def identity_of(study: Study, unit: EditUnit) -> str:
    """Content id of all that a result depends on: scene, edit, method, editor, seeds; paths and times not.

    It is in every record (`inputs.unit_id`); a result with another one is never taken for this one.
    """
    scene = next(scene for scene in study.scenes if scene.name == unit.scene)
    editor = None if unit.editor == NO_EDITOR else study.editors[unit.editor]
    method = study.methods[unit.method].settings
    return content_id(
        "unit",
        {
            "scene": [unit.scene, scene.facts_of(unit.edit)],
            "edit": unit.edit,
            "method": [type(method).__qualname__, method],
            "editor": [type(editor).__qualname__, _without_places(to_plain(editor), editor)],
            "seeds": [study.seed, unit.seed],
            "time_cap_s": study.time_cap_s,
        },
    )


def _without_places(plain: Any, value: Any) -> Any:
    """A dataclass's plain form with paths reduced to their names: where a model lies is no part of a result."""
    if not isinstance(plain, dict):
        return plain
    return {
        name: item.name if isinstance(item := getattr(value, name), Path) else _without_places(part, item)
        for name, part in plain.items()
    }


def load_study(file: Path) -> Study:
    """Run a Python file, or the `study.py` in a folder, and take its `STUDY` or what its function `study()` gives."""
    path = file / "study.py" if file.is_dir() else file
    if not path.is_file() or path.suffix != ".py":
        raise InputError(f"{file}: expected a Python file with a STUDY, or the folder of a study that was begun")
    # A name of its own, the same in all processes, so that classes of the file can be told from those of another.
    name = f"restage_study_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    is_new = name not in sys.modules
    try:
        if is_new:
            module = sys.modules[name] = ModuleType(name)
            module.__file__ = str(path)
            exec(compile(path.read_bytes(), path, "exec"), vars(module))
        module = sys.modules[name]
        found = getattr(module, "STUDY", None)
        if found is None and callable(getattr(module, "study", None)):
            found = module.study()
    except BaseException as error:
        if is_new:
            del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise InputError(f"{_place(path, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Study):
        raise InputError(f"{path}: expected a Study named STUDY or a function study(), got {type(found).__name__}")
    return found


def _place(path: Path, error: BaseException) -> str:
    """The file, with the line of it that an error comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{path}, line {line}" if line else str(path)
