from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from restage.audit.records import check_records
from restage.audit.show import describe_run
from restage.clips.config import ClipOptions
from restage.clips.files import StoredClip, open_clip
from restage.compare.clips import read_clip_scores
from restage.edit.clips import stage
from restage.edit.clips.carried import Carried
from restage.edit.clips.stage import ClipChoice, find_clip, open_clip_edit
from restage.recipes import edit_clip_folder, take_clip
from restage.records import EditRequest, InputError, Progress, read_json
from restage.run.folder import open_run
from restage.run.reading import EditRecord
from restage.scenes.config import FitConfig
from restage.scenes.stage import fit_folder

SMALL = Carried(window=3, overlap=1)


def run_of(world_clip: tuple[Path, EditRequest], folder: Path) -> Path:
    *_, last = take_clip(world_clip[0], folder, ClipOptions())
    return Path(last.note)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "frames").glob("*.png"))}


def test_a_clip_is_edited_measured_shown_and_verified(world_clip: tuple[Path, EditRequest], tmp_path: Path) -> None:
    clip = run_of(world_clip, tmp_path / "run")
    choice = ClipChoice(editor="exact", settings=SMALL)
    *_, last = edit_clip_folder(tmp_path / "run", [world_clip[1]], choice)
    folder = Path(last.note)
    record = read_json(folder / "record.json", EditRecord)
    assert record.status == "done" and record.method == "carried" and record.kind == "ground"
    assert {path.name for path in folder.iterdir()} == {"frames", "masks", "clip.mp4", "record.json"}
    scores = read_clip_scores(tmp_path / "run", record.id)
    assert scores is not None and scores.has_exact_flow and len(scores.progress) == len(open_clip(clip))
    assert (scores.values["progress"] or 0) > 0.7 and scores.values["text_alignment"] is not None
    assert (tmp_path / "run" / "compare" / "clips" / f"{record.id}.png").is_file()
    steps = check_records(tmp_path / "run")
    with pytest.raises(StopIteration) as ended:
        while True:
            next(steps)
    assert ended.value.value.findings == []
    lines = "\n".join(describe_run(tmp_path / "run"))
    assert "clip tiny: 5 frames, 8 a second" in lines and "carried-exact/0: done" in lines
    assert [step.note for step in edit_clip_folder(clip, [world_clip[1]], choice)][-1] == str(folder)


def test_a_killed_edit_goes_on_with_the_next_window_and_ends_the_same(
    world_clip: tuple[Path, EditRequest], tmp_path: Path
) -> None:
    choice, found = ClipChoice(editor="noisy-0.3-exact", settings=SMALL), []
    for name in ("whole", "killed"):
        clip = run_of(world_clip, tmp_path / name)
        opened = open_clip_edit(open_run(tmp_path / name), clip, request=world_clip[1], choice=choice)
        if name == "killed":
            for step in opened.steps:
                assert isinstance(step, Progress)
                if (opened.folder / "windows" / "00000.npz").exists():
                    break
            opened = open_clip_edit(open_run(tmp_path / name), clip, request=world_clip[1], choice=choice)
        notes = [step.note for step in opened.steps]
        assert any("window 1 of 2" in note for note in notes) == (name == "whole")
        found.append(files_of(opened.folder))
        assert not (opened.folder / "windows").exists()
    assert found[0] == found[1] and len(found[0]) == 5


def test_windows_of_another_edit_are_not_gone_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "windows"
    folder.mkdir()
    np.savez(folder / "00000.npz", result=np.array("edited-other"))
    assert stage._resume(folder, "edited-mine", 3, "cpu") == (0, None) and not folder.exists()


def test_what_cannot_be_edited_is_refused(world_clip: tuple[Path, EditRequest], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown clip method"):
        ClipChoice(method="idu")
    with pytest.raises(InputError, match="unknown editor"):
        ClipChoice(editor="nobody")
    with pytest.raises(InputError, match="expected settings"):
        ClipChoice(method="per_frame", settings=SMALL)
    open_run(tmp_path / "run")
    with pytest.raises(InputError, match="one clip; it has none"):
        find_clip(tmp_path / "run")
    run_of(world_clip, tmp_path / "run")
    other = tmp_path / "tiny"
    other.mkdir()
    plain = json.loads((world_clip[0] / "clip.json").read_text())
    (other / "clip.json").write_text(json.dumps({**plain, "frames_per_s": 3}))
    with pytest.raises(InputError, match="another clip"):
        list(take_clip(other, tmp_path / "run", ClipOptions()))


def test_what_a_longer_clip_left_behind_is_not_taken_over(world_clip: tuple[Path, EditRequest], tmp_path: Path) -> None:
    frames = open_run(tmp_path / "run").path / "scenes" / "tiny" / "frames"
    frames.mkdir(parents=True)
    (frames / "frame_999.png").write_bytes(b"of a copy that was stopped")
    clip = run_of(world_clip, tmp_path / "run")
    assert len(open_clip(clip)) == 5
    opened = open_clip_edit(
        open_run(tmp_path / "run"), clip, request=world_clip[1], choice=ClipChoice(editor="exact", settings=SMALL)
    )
    (opened.folder / "frames").mkdir(parents=True)
    (opened.folder / "frames" / "frame_000999.png").write_bytes(b"of an edit that was stopped")
    list(opened.steps)
    assert len(files_of(opened.folder)) == 5


def test_a_clip_and_a_scene_of_one_name_are_kept_apart(world_clip: tuple[Path, EditRequest], tmp_path: Path) -> None:
    scene = tmp_path / "run" / "scenes" / "tiny"
    scene.mkdir(parents=True)
    (scene / "fit.json").write_text("{}")
    with pytest.raises(InputError, match="is a fitted scene; give the clip a run of its own"):
        run_of(world_clip, tmp_path / "run")
    run_of(world_clip, tmp_path / "other")
    with pytest.raises(InputError, match="is a clip; give the scene a run of its own"):
        list(fit_folder(tmp_path / "tiny", tmp_path / "other", FitConfig()))


def test_frames_are_read_a_window_at_a_time(
    world_clip: tuple[Path, EditRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, most, plain = run_of(world_clip, tmp_path / "run"), [0], StoredClip.read

    def counted(self: StoredClip, indices: range) -> torch.Tensor:
        most[0] = max(most[0], len(indices))
        return plain(self, indices)

    monkeypatch.setattr(StoredClip, "read", counted)
    choice = ClipChoice(editor="exact", settings=SMALL)
    list(open_clip_edit(open_run(tmp_path / "run"), clip, request=world_clip[1], choice=choice).steps)
    assert most[0] == 3
