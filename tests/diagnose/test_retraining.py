"""Models and scenes that a swap needs and no run has: made as the runs made theirs."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from restage.cli import run as restage
from restage.diagnose import DiagnoseConfig, run_diagnose
from restage.diagnose.cases import find_cases
from restage.diagnose.parts import RunParts, differing_training
from restage.diagnose.trials import Attempt, DiagnosisWork, Trials
from restage.diagnose.workbench import Mix, Workbench
from restage.diffusion.config import TrainingConfig
from restage.pairs.config import PUBLISHED
from restage.pairs.encoding import ImagePair, pixel_sha256
from restage.pairs.files import open_files, point_to_store
from restage.pairs.score import set_rule
from restage.pairs.store import write_shard
from restage.records import PromptPair, read_json
from restage.run.folder import open_run
from restage.run.models import models_in
from restage.scenes.config import FitConfig, ScenesConfig
from restage.scenes.io import read_capture, write_capture
from restage.scenes.stage import run_scenes
from restage.train.config import TrainConfig
from restage.train.stage import run_train
from restage.work.engine import settings_for, work_through
from restage.work.task import EngineConfig, Task, TaskQueue
from tests.tiny_models import write_tiny_models

TRAIN = TrainConfig(training=TrainingConfig(num_steps=2, batch_size=2, num_warmup_steps=1, is_bf16=False))
COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return models_in(write_tiny_models(tmp_path_factory.mktemp("models")))


def write_pairs(folder: Path, *, shift: int) -> None:
    """Pairs of the same pictures with captions that are `shift` pairs too far."""
    pairs, rows = [], []
    for number in range(len(COLORS)):
        color = COLORS[(number + shift) % len(COLORS)]
        prompt = PromptPair(source="a cube", target=f"a {color} cube", instruction=f"make it {color}", kind="recolour")
        source = torch.full((3, 128, 128), 0.2 * number)
        mask = torch.zeros(128, 128)
        mask[:64] = 1
        pair = ImagePair(id=f"pair-{number}", source=source, edited=1 - source, mask=mask, prompt=prompt, facts={})
        rows.append(
            {
                "id": pair.id,
                "source_caption": prompt.source,
                "target_caption": prompt.target,
                "instruction": prompt.instruction,
                "accepted": True,
                "reason": "",
                "pixel_sha256": pixel_sha256(pair.source, pair.edited, pair.mask),
                **dict.fromkeys(("image_similarity", "direction_similarity", "source_text", "target_text"), 0.9),
                "change": 0.5,
                "mask_share": 0.5,
            }
        )
        pairs.append(pair)
    write_shard(folder, 0, pairs=pairs, rows=rows, facts={"content": "x"})
    set_rule(open_files(folder), PUBLISHED)


def trained_run(folder: Path, models, *, shift: int, seed: int) -> RunParts:
    run = open_run(folder)
    write_pairs(folder / "pairs", shift=shift)
    config = replace(TRAIN, training=replace(TRAIN.training, seed=seed))
    list(run_train(run, config, start=models.edit_model))
    return RunParts.open(folder, "replace_once")


def test_a_model_trained_anew_on_mixed_pairs_is_the_one_that_such_a_run_would_have_trained(tmp_path, models):
    a = trained_run(tmp_path / "a", models, shift=0, seed=0)
    b = trained_run(tmp_path / "b", models, shift=1, seed=1)
    bench = Workbench({"A": a, "B": b}, ("edit_model", "captions", "training"), tmp_path / "work", models.edit_model)
    for part, others in (("captions", {"shift": 1, "seed": 0}), ("training", {"shift": 0, "seed": 1})):
        mix = bench.model(frozenset({part}))
        assert isinstance(mix, Mix) and not bench.is_made(mix)
        list(bench.make(mix))
        mixed = bench.folder_of(mix)
        expected = trained_run(tmp_path / f"such-{part}", models, **others)
        assert bench.weights_id(mixed) == expected.weights_sha256 not in (a.weights_sha256, b.weights_sha256)
    both = frozenset({"captions", "training"})
    assert bench.model(both) == b.model and bench.model(frozenset()) == a.model
    assert bench.seconds() > 0


def test_pairs_in_a_store_are_compared_where_it_is_named_and_named_as_not_looked_at_where_it_is_not(
    tmp_path, models, monkeypatch
):
    a, b = (trained_run(tmp_path / name, models, shift=shift, seed=0).path for shift, name in enumerate("ab"))
    urls = []
    for run in (a, b):
        (run / "pairs").rename(tmp_path / f"store-{run.name}")
        urls.append(f"file://{tmp_path}/store-{run.name}")
        (run / "pairs").mkdir()
        point_to_store(run / "pairs", urls[-1])
    named = [RunParts.open(run, "replace_once", stores=tuple(urls)) for run in (a, b)]
    assert differing_training(*pickle.loads(pickle.dumps(named))) == ("captions",)
    unnamed = [RunParts.open(run, "replace_once", stores=(urls[0],)) for run in (a, b)]
    assert differing_training(*unnamed) == () and unnamed[0].unread == ""
    assert unnamed[1].unread.endswith(f"a store is used only when it is named: --store {urls[1]}")
    taken = []
    monkeypatch.setattr("restage.diagnose.stage.run_diagnose", lambda *_, stores, **__: taken.append(stores) or ())
    assert restage(["diagnose", str(a), str(b), "--store", *urls]) == 0 and taken == [tuple(urls)]


def move_cameras(b: Path) -> None:
    """Let all cameras of a run lie about where they stood, and fit its scenes anew."""
    for folder in (b / "scenes").iterdir():
        if folder.is_dir():
            capture = read_capture(folder / "capture")
            poses = capture.cameras.camera_to_world.clone()
            poses[:, :3, 3] += 0.1
            write_capture(replace(capture, cameras=replace(capture.cameras, camera_to_world=poses)), folder / "capture")
            for name in ("fit.json", "splats.ply"):
                (folder / name).unlink()
    (b / "scenes" / "stage.json").unlink()
    list(run_scenes(open_run(b), ScenesConfig(fit=FitConfig(steps=15, num_splats=120, seed=1))))


def test_processes_make_the_scenes_and_trials_that_one_process_makes(make_run, tmp_path):
    a, b = make_run("a"), make_run("b")
    move_cameras(b)
    (case,) = find_cases(a, b, 1)
    runs = {side: RunParts.open(path, "replace_once") for side, path in (("A", a), ("B", b))}
    from_b = frozenset({"cameras"})
    found = []
    for config in (EngineConfig(threads=1), EngineConfig(engine="local", workers=2)):
        folder = tmp_path / str(config.engine)
        work = DiagnosisWork(Workbench(runs, (), folder, runs["A"].model), Trials(folder / "trials"))
        attempts = [Attempt(case=case, kind=kind, from_b=from_b) for kind in ("exact", "scene")]
        items = [*work.bench.mixes(case, from_b), *attempts]
        tasks = [Task(index=index, kind="swaps", item=item) for index, item in enumerate(items)]
        assert len(tasks) == 3 and all(work.found(task) is None for task in tasks)
        queue = TaskQueue(tasks, range(3), max_attempts=1, needs={1: [0], 2: [0]})
        list(work_through(queue, settings_for(work, config, device="cpu"), config))
        assert all(work.found(task) is not None for task in tasks)
        found.append([work.trial(attempt).numbers for attempt in attempts])
    assert repr(found[0]) == repr(found[1]) and found[0][1]["psnr_db"] > 0


def test_shifted_cameras_are_named_by_psnr_where_progress_says_nothing(make_run, monkeypatch):
    a, b = make_run("a"), make_run("b")
    move_cameras(b)

    def measure(self, setup, kind, seed):
        scene = setup.truth.parents[1].name
        position = read_capture(setup.scene / "capture").cameras.positions[0, 0].item()
        own = read_capture(b / "scenes" / scene / "capture").cameras.positions[0, 0].item()
        psnr_db = (22.0 if position == own else 30.0) + 0.1 * int(scene[-1])
        numbers = dict.fromkeys(("progress", "views_progress", "spill", "mask_iou", "disagreement"), 0.5)
        return {**numbers, "views_disagreement": 0.1, "psnr_db": psnr_db}

    monkeypatch.setattr(Trials, "_measure", measure)
    steps = list(run_diagnose(a, b, DiagnoseConfig(method="replace_once", max_cases=4), models=models_in()))
    found = read_json(b / "diagnose" / "diagnosis.json")
    assert found["measure"] == "psnr_db" and found["answer"] == "cameras"
    shares = {part["part"]: part["share"]["mean"] for part in found["parts"] if part["within"] == "scenes"}
    assert shares["cameras"] == pytest.approx(8.0) and shares["fit"] == pytest.approx(0.0)
    assert {step.stage for step in steps} >= {"refit", "swaps"}
    refits = [read_json(path) for path in (b / "diagnose" / "scenes").glob("*/diagnose.json")]
    assert len(refits) == 2 * 4 and all(record["sides"]["cameras"] != record["sides"]["fit"] for record in refits)
    assert found["cpu_seconds"] >= sum(record["seconds"] for record in refits) > 0
