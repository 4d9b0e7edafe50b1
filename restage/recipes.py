"""Whole runs as plain functions that compose stages: the demo, editing a user's scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from restage.clips.config import ClipOptions
from restage.clips.files import copy_clip, store_clip
from restage.compare.clips import judge_clip
from restage.compare.config import CompareConfig
from restage.compare.judges import open_judges
from restage.compare.stage import run_compare
from restage.diffusion.config import TrainingConfig
from restage.edit.choosing import choose_editor
from restage.edit.clips.stage import ClipChoice, find_clip, open_clip_edit
from restage.edit.config import EditConfig
from restage.edit.editors import OpenEditors
from restage.edit.single import AUTO, EditChoice, StartingPoint, open_edit
from restage.edit.stage import run_edit
from restage.pairs.clip_rule import rule_for
from restage.pairs.config import PAIRS, CampaignConfig, PairRule, PairsConfig
from restage.pairs.stage import make_plan, rejudge_pairs, run_campaign
from restage.pairs.tasks import ModelMaker
from restage.prompts.config import PromptsConfig, RoundsConfig
from restage.prompts.rejects import TokenLimits
from restage.prompts.rounds import run_rounds
from restage.prompts.stage import run_prompts
from restage.records import EditRequest, InputError, Progress, read_json
from restage.report.stage import ReportConfig, run_report
from restage.run import profile
from restage.run.folder import RunFolder, open_run, working
from restage.run.layout import CAPTURE, CLIP_RECORD, CLIPS, EDIT_RECORD, FIT_RECORD, RUN_RECORD, TRANSFORMS
from restage.run.models import Models, models_in
from restage.run.reading import EditRecord
from restage.scenes.config import ScenesConfig
from restage.scenes.stage import FIT_FIRST, find_scene, run_scenes
from restage.train.config import TrainConfig
from restage.train.stage import run_train
from restage.world.config import WorldConfig
from restage.world.stage import run_world

__all__ = ["DemoConfig", "EditChoice", "RULE", "STAGES", "Stage", "demo", "demo_config", "edit_folder"]
__all__ += ["clip_name", "edit_clip_folder", "learn_forms", "take_clip"]


class Stage(NamedTuple):
    """A stage, loaded."""

    config_type: type
    run: Callable[..., Iterator[Progress]]
    """Runs it, given the run's folder, a config and the models; those that draw scenes also take a `device`."""


def make_pairs(
    run: RunFolder,
    config: PairsConfig,
    models: Models,
    *,
    engine: CampaignConfig | None = None,
    store: str = "",
    is_rejudging: bool = False,
) -> Iterator[Progress]:
    """Make the pairs of a run, whose prompts are written, with models by their folders, so that any machine can.

    Shards go to `store`, a URL, or into the run's folder. `is_rejudging`: judge existing pairs by this config's rule.
    """
    config = replace(config, rule=rule_for(config.rule, models.clip))
    maker = ModelMaker.of(models.text_to_image, models.clip, config.generate)
    if is_rejudging or not run.is_done("pairs", config):
        maker = replace(maker, num_pairs=make_plan(run, config, maker).num_pairs)
    if is_rejudging:
        yield from rejudge_pairs(run, config, maker, engine or CampaignConfig(), store=store)
    else:
        yield from run_campaign(run, config, maker, engine or CampaignConfig(), store=store)


def _limits_of(models: Models) -> TokenLimits:
    return TokenLimits((models.text_to_image, models.clip))


STAGES: dict[str, Stage] = {
    "prompts": Stage(PromptsConfig, lambda run, config, models: run_prompts(run, config, limits=_limits_of(models))),
    "pairs": Stage(PairsConfig, make_pairs),
    "train": Stage(TrainConfig, lambda run, config, models: run_train(run, config, start=models.edit_model)),
    "world": Stage(WorldConfig, lambda run, config, models: run_world(run, config)),
    "scenes": Stage(ScenesConfig, lambda run, config, models, device="cpu": run_scenes(run, config, device=device)),
    "edit": Stage(EditConfig, lambda run, config, models: run_edit(run, config)),
    "compare": Stage(CompareConfig, lambda run, config, models, device="cpu": run_compare(run, config, device=device)),
    "report": Stage(ReportConfig, lambda run, config, models: run_report(run, config)),
}
"""The stages in the order data flows."""


RULE = rule_for(PairRule(), models_in().clip)
"""Which pairs the miniature keeps: the thresholds in the folder of its CLIP. They were set from what that says of 140
exact rendered pairs: pictures at least 0.35 alike, texts at least 0.72, 0.86 in 19 of 20, directions above 0.35 in 19
of 20 (reshape 0.07)."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo: every stage's config, and which models it starts from."""

    prompts: PromptsConfig
    pairs: PairsConfig
    train: TrainConfig
    world: WorldConfig
    scenes: ScenesConfig
    edit: EditConfig
    compare: CompareConfig
    report: ReportConfig
    models_sha256: Mapping[str, str]
    """Hash of each model's folder: with other models it is another run."""


def demo_config(models: Models) -> DemoConfig:
    """The demo that ships: about ten minutes on two cores, most of it editing."""
    return DemoConfig(
        prompts=PromptsConfig(num_prompts=64),
        pairs=replace(PAIRS, rule=rule_for(PAIRS.rule, models.clip)),
        train=TrainConfig(
            training=TrainingConfig(
                num_steps=60, batch_size=16, learning_rate=2e-5, num_warmup_steps=10, ema_decay=0.95
            )
        ),
        world=WorldConfig(num_objects=1),
        scenes=ScenesConfig(),
        edit=EditConfig(),
        compare=CompareConfig(),
        report=ReportConfig(),
        models_sha256=models.sha256(),
    )


def demo(folder: Path, config: DemoConfig, models: Models, *, seed: int = 0) -> Iterator[Progress]:
    """Go through every stage, from prompts to the page, in a new folder or one that holds a part of this run."""
    with working(RunFolder.open(folder, config, seed=seed), *STAGES) as run:
        for name, stage in STAGES.items():
            with profile.stage(name):
                yield from stage.run(run, getattr(config, name), models)


def learn_forms(
    folder: Path, config: RoundsConfig, pairs: PairsConfig, models: Models, *, seed: int = 0
) -> Iterator[Progress]:
    """Go through rounds of prompts and pairs, the forms of each learned from those before; see `prompts.rounds`."""
    with working(open_run(folder, seed=seed), "rounds") as run:
        pairs = replace(pairs, rule=rule_for(pairs.rule, models.clip))
        make, limits = (lambda opened: make_pairs(opened, pairs, models)), _limits_of(models)
        yield from run_rounds(run, config, make, pairs_config=pairs, limits=limits)


def edit_folder(
    scene: Path, requests: Sequence[EditRequest], choice: EditChoice, *, start: Path | None = None
) -> Generator[Progress, None, list[Path]]:
    """Edit a fitted scene by one request after another, each from the result of the one before.

    Each becomes an edit case without truth of the scene, so that `compare` and `report` see it too, and has a folder
    of its own; these are returned. The last step's note is the last one, and what there is to say about it. The first
    edit starts from a finished one in the folder `start`, or from the fitted scene.
    """
    scene_folder = find_scene(scene)
    if not (scene_folder / CAPTURE / TRANSFORMS).is_file():
        raise InputError(f"{scene_folder} holds splats that were not fitted here, or an edit; {FIT_FIRST}")
    with working(open_run(scene_folder.parent.parent), "edit") as run:
        editors, folders = OpenEditors(), list[Path]()
        for request in requests:
            point = None if start is None else StartingPoint.of(start)
            used = choice
            if choice.editor == AUTO:
                chosen = choose_editor(choice, scene_folder, request)
                used, why = chosen.choice, chosen.reason
                yield Progress(stage="edit", done=0, total=1, note=f"with the editor {used.editor}: {why}")
            opened = open_edit(run, scene_folder, request=request, choice=used, start=point, editors=editors)
            for step in opened.steps:
                yield Progress(stage="edit", done=step.step, total=step.num_steps, note=step.note)
            start = opened.folder
            folders.append(start)
            reason = read_json(start / EDIT_RECORD, EditRecord).reason
            note = f"{start} ({reason})" if reason else str(start)
            yield Progress(stage="edit", done=1, total=1, note=note)
        return folders


def clip_name(source: Path) -> str:
    """Name a clip after its film or folder, in letters that paths and commands take well; `clip` where none is left."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", source.resolve().stem).strip("-.") or "clip"


def take_clip(source: Path, out: Path | None, options: ClipOptions) -> Iterator[Progress]:
    """Read a film, a folder of frames or a clip that was made before into a run; the last note is its folder there.

    The run is by default `runs/` and the source's name. A clip of a run, or a run with one clip, stays where it is.
    """
    is_stored = (source / CLIP_RECORD).is_file()
    if any(source.glob(CLIPS)) or (is_stored and source.resolve().parent.name == "scenes"):
        if out is not None:
            raise InputError(f"{source} is of a run already; another one is made of what is read into it")
        yield Progress(stage="clip", done=1, total=1, note=str(source if is_stored else find_clip(source)))
        return
    out = Path("runs") / source.resolve().stem if out is None else out
    folder = out / "scenes" / clip_name(source)
    if (folder / FIT_RECORD).exists():
        raise InputError(f"{folder} is a fitted scene; give the clip a run of its own, such as --out {out}-clip")
    with working(open_run(out), "scenes"):
        if is_stored:
            copy_clip(source, folder)
        else:
            yield from store_clip(source, folder, options)
    yield Progress(stage="clip", done=1, total=1, note=str(folder))


def edit_clip_folder(clip: Path, requests: Sequence[EditRequest], choice: ClipChoice) -> Iterator[Progress]:
    """Edit a clip of a run by each of some requests; the last step's note is the folder of the last result."""
    clip_folder = find_clip(clip) if (clip / RUN_RECORD).is_file() else clip
    with working(open_run(clip_folder.parent.parent), "edit") as run:
        editors = OpenEditors()
        for request in requests:
            used = choice
            if choice.editor == AUTO:
                chosen = choose_editor(choice, clip_folder, request)
                used, why = chosen.choice, chosen.reason
                yield Progress(stage="edit", done=0, total=1, note=f"with the editor {used.editor}: {why}")
            opened = open_clip_edit(run, clip_folder, request=request, choice=used, editors=editors)
            yield from opened.steps
            yield Progress(stage="compare", done=0, total=1, note="measuring")
            judge_clip(run.path, opened.folder, open_judges(CompareConfig()))
            yield Progress(stage="compare", done=1, total=1, note=str(opened.folder))
