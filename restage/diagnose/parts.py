"""Reads what a run's edits are made of: model, guidance, method, pairs, training; and names the parts that differ.

Image pairs are known by their pixels, so that those of two runs can be compared and mixed: a mix takes pictures, choice
and captions from different runs, and an edit model trained on it shows which of the three makes the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from restage.diffusion.edit_models import edit_weights_sha256
from restage.diffusion.editor import Guidance
from restage.edit.job import Method
from restage.edit.methods import METHODS
from restage.pairs.config import PUBLISHED, PairRule
from restage.pairs.encoding import ImagePair
from restage.pairs.files import Files, UnnamedStore, open_files
from restage.pairs.score import current_rule, verdict_of
from restage.pairs.store import done_indices, iter_rows, read_pairs
from restage.records import InputError, canonical_json, derive_seed, from_plain, read_json, to_plain
from restage.run.layout import STAGE_MARK, check_is_run
from restage.run.models import edit_model_of
from restage.run.reading import RunRecord, StageMark, flat_items, read_run_record
from restage.train.config import TrainConfig
from restage.train.examples import ExactPair

__all__ = ["EDIT_MODEL_PARTS", "LABELS", "MixedPairs", "PairPool", "RunParts", "differing_parts", "differing_training"]
__all__ += ["mix_pairs", "noise_settings", "other_settings", "read_settings"]


class MixedPairs(NamedTuple):
    """Pairs to train on."""

    pairs: list[ExactPair]
    num_missing: int
    """Pairs that should be among them and are stored nowhere, since their run rejected them."""


@dataclass(frozen=True)
class PairPool:
    """Accepted and rejected pairs of a run; pictures are there of accepted ones only."""

    rows: Mapping[str, Mapping[str, Any]]
    """Rows by the hash of their pixels, in the order of the shards."""
    files: Files
    rule: PairRule

    @classmethod
    def read(cls, files: Files) -> PairPool:
        """Read the records of a run's pairs."""
        rows = {
            row.get("pixel_sha256") or row["id"]: {name: value for name, value in row.items() if name != "preview"}
            for row in iter_rows(files)
        }
        return cls(rows, files, current_rule(files) or PUBLISHED)

    @cached_property
    def stored(self) -> Mapping[str, ImagePair]:
        """The accepted pairs with their pictures."""
        by_id = {pair.id: pair for pair in read_pairs(self.files)}
        keys = {row["id"]: key for key, row in self.rows.items()}
        return {keys[name]: pair for name, pair in by_id.items() if name in keys}

    def is_accepted(self, key: str) -> bool:
        """Whether a pair of this pool is trained on."""
        return bool(self.rows[key]["accepted"])

    def captions(self, key: str) -> tuple[str, ...]:
        """Returns what a pair is said to show, and the instruction between."""
        row = self.rows[key]
        return row["source_caption"], row["target_caption"], row["instruction"]

    def differences(self, other: PairPool) -> tuple[str, ...]:
        """Returns which of captions, selection and pictures differ between the pools."""
        common = self.rows.keys() & other.rows.keys()
        is_other = {
            "captions": any(self.captions(key) != other.captions(key) for key in common),
            "selection": self.rule != other.rule
            or any(self.is_accepted(key) != other.is_accepted(key) for key in common),
            "pictures": self.rows.keys() != other.rows.keys(),
        }
        return tuple(name for name, differs in is_other.items() if differs)

    def would_accept(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether this run accepts a pair: by its own verdict if it has the pair, else by its rule on the scores."""
        if key in self.rows:
            return self.is_accepted(key)
        return bool(verdict_of(row, self.rule)["accepted"])


def mix_pairs(pools: Mapping[str, PairPool], sides: Mapping[str, str]) -> MixedPairs:
    """Pairs whose pictures, selection and captions come from the runs that `sides` names, `A` or `B`."""
    pictures, selection, captions = (pools[sides[part]] for part in ("pictures", "selection", "captions"))
    pairs, num_missing = [], 0
    for key, row in pictures.rows.items():
        if not selection.would_accept(key, row):
            continue
        found = next((pool.stored[key] for pool in pools.values() if key in pool.stored), None)
        if found is None:
            num_missing += 1
            continue
        texts = captions.stored.get(key) or pictures.stored.get(key) or found
        pairs.append(ExactPair(found.source, found.edited, found.mask, texts.prompt))
    return MixedPairs(pairs, num_missing)


Settings = TypeVar("Settings")

LABELS = {
    "edit_model": "the weights of the edit model",
    "captions": "the captions of its training pairs",
    "selection": "which pairs it was trained on (the filter)",
    "pictures": "the pictures of its training pairs",
    "training": "how it was trained (settings, seed)",
    "masks": "the masks that the edit model gives",
    "guidance": "the guidance of the editor",
    "guided_noise": "the noise range in which the editor is guided",
    "method": "the method and its settings",
    "noise_range": "the noise range of the method",
    "scenes": "the scenes",
    "cameras": "the cameras of the capture",
    "photographs": "the pictures of the capture",
    "fit": "the splats fitted to the capture",
}
"""Names of the parts in a sentence."""

EDIT_MODEL_PARTS = ("captions", "selection", "pictures", "training")
"""Parts that the weights of an edit model come from."""


@dataclass(frozen=True)
class _EditModelRecord:
    guidance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunParts:
    """A run, as far as its edits depend on it."""

    path: Path
    method: str  # name on the menu `METHODS`
    stores: tuple[str, ...] = ()  # URLs that the run's pairs may lie at, if not in its folder

    @classmethod
    def open(cls, path: Path, method: str, *, stores: tuple[str, ...] = ()) -> RunParts:
        """Open a run folder."""
        check_is_run(path)
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
        return cls(path, method, stores)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what was read, and for any working folder.
        return RunParts, (self.path.resolve(), self.method, self.stores)

    @cached_property
    def record(self) -> RunRecord:
        """What the run was started with."""
        return read_run_record(self.path)

    def stage_config(self, stage: str) -> Mapping[str, Any] | None:
        """Config of a finished stage as JSON values; of one that is not finished what the run was started with."""
        mark = self.path / stage / STAGE_MARK
        if mark.exists():
            return read_json(mark, StageMark).config
        return self.record.config.get(stage)

    @cached_property
    def settings(self) -> Method:
        """Settings of the method, the run's own or the defaults."""
        config = self.stage_config("edit") or {}
        methods = from_plain(config.get("settings", {}), dict[str, dict[str, Any]], where=f"{self.path}: edit.settings")
        return read_settings(METHODS[self.method], methods.get(self.method, {}))

    @cached_property
    def model(self) -> Path:
        """Folder of the edit model: the run's own, or the one of the package."""
        return edit_model_of(self.path)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the edit model's weights."""
        return edit_weights_sha256(self.model)

    @cached_property
    def guidance(self) -> Guidance:
        """The guidance that the edit model is used with."""
        record = self.model / "edit_model.json"
        return read_settings(Guidance, read_json(record, _EditModelRecord).guidance if record.exists() else {})

    @cached_property
    def train_config(self) -> TrainConfig | None:
        """The config that the edit model was trained with, its seed joined with the run's; None without training."""
        if not (self.path / "train" / STAGE_MARK).exists():
            return None
        config = read_settings(TrainConfig, read_json(self.path / "train" / STAGE_MARK, StageMark).config)
        seed = derive_seed(self.record.seed, "train", config.training.seed)
        return replace(config, training=replace(config.training, seed=seed))

    @cached_property
    def pairs(self) -> PairPool | None:
        """The run's image pairs; None if it has none, or `unread` says why they are not looked at."""
        if self.unread:
            return None
        files = open_files(self.path / "pairs", store=self.stores)
        return PairPool.read(files) if done_indices(files) else None

    @property
    def unread(self) -> str:
        """That the run's pairs lie in a store which was not named, and how to name it; empty if they do not."""
        try:
            open_files(self.path / "pairs", store=self.stores)
        except UnnamedStore as unnamed:
            return str(unnamed)
        return ""


def read_settings(kind: type[Settings], plain: Mapping[str, Any]) -> Settings:
    """Turn JSON values of a record into settings; missing fields take their defaults, unknown ones are refused."""
    found = from_plain(plain, kind, where=kind.__name__)
    unknown = sorted(dict(flat_items(plain)).keys() - dict(flat_items(to_plain(found))).keys())
    if unknown:
        raise InputError(f"{kind.__name__} has no {', '.join(unknown)}; was this run made with another version?")
    return found


def noise_settings(settings: Method) -> dict[str, Any]:
    """Those settings of a method that say from how much noise it edits."""
    plain = to_plain(settings)
    return {name: value for name, value in plain.items() if "noise" in name and not isinstance(value, bool)}


def other_settings(settings: Method) -> dict[str, Any]:
    """All the others."""
    noise = noise_settings(settings)
    return {name: value for name, value in to_plain(settings).items() if name not in noise}


def differing_parts(a: RunParts, b: RunParts) -> tuple[str, ...]:
    """Returns which of edit model, guidance, method and noise range differ between the runs."""
    pairs = {
        "edit_model": (a.weights_sha256, b.weights_sha256),
        "guidance": tuple((run.guidance.text, run.guidance.image) for run in (a, b)),
        "guided_noise": tuple((run.guidance.lowest_noise, run.guidance.highest_noise) for run in (a, b)),
        "method": tuple((run.method, canonical_json(other_settings(run.settings))) for run in (a, b)),
        "noise_range": tuple(canonical_json(noise_settings(run.settings)) for run in (a, b)),
    }
    if a.method != b.method:
        del pairs["noise_range"]  # belongs to the method, and means something else in another one
    return tuple(name for name, (first, second) in pairs.items() if first != second)


def differing_training(a: RunParts, b: RunParts) -> tuple[str, ...]:
    """Returns which of `EDIT_MODEL_PARTS` differ; none where an edit model was not trained in its run."""
    if a.train_config is None or b.train_config is None or a.pairs is None or b.pairs is None:
        return ()
    found = set(a.pairs.differences(b.pairs))
    if a.train_config != b.train_config:
        found.add("training")
    return tuple(part for part in EDIT_MODEL_PARTS if part in found)
