import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from restage.edit.editors import EditorSource, check_editor, open_editor
from restage.edit.editors.drift import Drift, DriftingEditor, find_drift, move, undo_drift
from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.grade import GradeEditor
from restage.edit.editors.interface import ViewBatch
from restage.edit.editors.settled import SettledEditor
from restage.edit.methods import ReplaceOnce
from restage.edit.results import edit_scene
from restage.records import EditRequest, InputError, read_json
from restage.run.reading import EditRecord

GOLD = EditRequest(instruction="make it golden", source_caption="", target_caption="")
SIZE = 96


def picture(seed: int) -> torch.Tensor:
    """Blobs and flat pieces with sharp edges, as photographs have."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((SIZE, SIZE)), 4)
    gray = ndimage.gaussian_filter(np.where(smooth > 0.02, 0.7, 0.3), 0.7) + 2 * smooth
    return torch.from_numpy(np.stack([gray, 0.9 * gray, 0.7 * gray + 0.1])).float().clamp(0, 1)


def batch_of(count: int, **changes) -> ViewBatch:
    views = torch.stack([picture(seed) for seed in range(count)])
    how = {"view_indices": tuple(range(10, 10 + count)), "noise_level": 1.0, "seed": 3, **changes}
    return ViewBatch(views, views, request=GOLD, **how)


def left_px(first: Drift, second: Drift) -> float:
    """Root mean square distance of where two drifts put pixels."""
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2)
    places = [grid @ m[:, :2].T + m[:, 2] for m in (first.matrix(SIZE, SIZE), second.matrix(SIZE, SIZE))]
    return float(np.sqrt(((places[0] - places[1]) ** 2).sum(axis=1).mean()))


def test_the_share_of_a_drift_is_how_far_its_pixels_move():
    drift = Drift(2.0, -1.0, 1.03, 0.02)
    assert drift.share(SIZE, SIZE) * SIZE == pytest.approx(left_px(drift, Drift()), rel=1e-3)
    assert Drift.of(drift.matrix(SIZE, SIZE), SIZE, SIZE) == pytest.approx(drift, abs=1e-9) or math.isclose(
        left_px(Drift.of(drift.matrix(SIZE, SIZE), SIZE, SIZE), drift), 0, abs_tol=1e-9
    )


@pytest.mark.parametrize("instruction", ["make it golden", "turn it to night", "make it negative"])
def test_drifts_up_to_four_hundredths_are_found_under_any_color(instruction):
    batch = batch_of(4)
    batch = replace(batch, request=EditRequest(instruction=instruction, source_caption="", target_caption=""))
    drifting = DriftingEditor(GradeEditor(), 0.04 * SIZE)
    for index, image, original in zip(batch.view_indices, drifting.edit(batch).images, batch.originals, strict=True):
        true = drifting.drift_of(batch, index)
        assert 0.5 * 0.04 <= true.share(SIZE, SIZE) <= 0.04 + 1e-6
        assert left_px(find_drift(image, original), true) < 0.5


def test_a_drift_is_found_beside_a_new_object():
    original, drift = picture(0), Drift(3.0, -2.0, 1.02, 0.01)
    edited = original.clone()
    edited[:, 20:55, 30:70] = picture(1)[:, 20:55, 30:70].flip(1)
    assert left_px(find_drift(move(edited, drift), original), drift) < 0.3
    assert find_drift(edited, original) == Drift()


def test_drifts_are_found_where_few_edges_are_and_none_between_other_pictures():
    original = torch.full((3, SIZE, SIZE), 0.6)
    original[:, 50:] = 0.4
    original[:, 30:60, 20:36], original[:, 60:80, 60:75] = 0.1, 0.8
    edited, drift = original.clone(), Drift(-2.5, 2.0, 0.98, 0.01)
    edited[:, 30:60, 20:36] = torch.tensor([0.2, 0.3, 0.9])[:, None, None]
    assert left_px(find_drift(move(edited, drift), original), drift) < 1.0 < 3.0 < left_px(Drift(), drift)
    flat = torch.full((3, SIZE, SIZE), 0.5)
    assert find_drift(flat, original) == find_drift(original, flat) == find_drift(flat, flat) == Drift()
    for seed in range(4):
        assert find_drift(picture(seed), picture(seed + 4)) == Drift()


def test_undoing_changes_what_a_border_lost_as_its_neighbor_changed():
    original, drift = picture(2), Drift(4.0, 3.0)
    darker = 0.5 * original
    still = undo_drift(move(darker, drift), original, drift)
    assert (still - darker)[:, :-4, :-5].abs().mean() < 0.02
    assert (still - darker).abs().mean() < 0.03


def test_views_that_do_not_move_keep_every_bit():
    batch = batch_of(2)
    plain, settled = GradeEditor().edit(batch), SettledEditor(GradeEditor()).edit(batch)
    assert torch.equal(plain.images, settled.images) and torch.equal(plain.masks, settled.masks)
    assert settled.drifts == {0: 0.0, 1: 0.0} and not settled.left_out


def test_a_view_that_moved_too_far_is_left_out_with_its_reason():
    batch = batch_of(3, may_leave_out=True)
    drifting = DriftingEditor(GradeEditor(), 0.04 * SIZE)
    shares = [drifting.drift_of(batch, index).share(SIZE, SIZE) for index in batch.view_indices]
    limit = sum(sorted(shares)[1:]) / 2
    edited = SettledEditor(drifting, max_drift=limit).edit(batch)
    far = shares.index(max(shares))
    assert list(edited.left_out) == [far] and f"view {batch.view_indices[far]} drifted by" in edited.left_out[far]
    assert torch.equal(edited.images[far], batch.originals[far]) and not edited.masks[far].any()
    assert edited.drifts[far] == pytest.approx(shares[far], abs=2e-3)
    with pytest.raises(InputError, match="more than .* allow it with --max-drift"):
        SettledEditor(drifting, max_drift=limit).edit(replace(batch, may_leave_out=False))
    with pytest.raises(InputError, match="max_drift in"):
        SettledEditor(drifting, max_drift=2.0)


def test_only_editors_that_move_pixels_are_registered(tiny_scene, tmp_path):
    source = EditorSource(file_names=tiny_scene.capture.file_names, truth=tiny_scene.write(tmp_path), max_drift=0.06)
    assert isinstance(open_editor("grade", source), GradeEditor) and isinstance(
        open_editor("exact", source), ExactEditor
    )
    drifting = open_editor("drifting-1.5-exact", source)
    assert isinstance(drifting, SettledEditor) and drifting.max_drift == 0.06
    assert isinstance(drifting.editor, DriftingEditor) and drifting.editor.max_drift_px == 1.5
    for name in ("drifting-grade", "drifting-1-none", "drifting--1-grade"):
        with pytest.raises(InputError, match="drifting-<pixels>-<one of them>"):
            check_editor(name)


def test_the_record_says_how_far_the_editor_moved_each_view(tiny_scene, tmp_path):
    how = {"request": GOLD, "method": ReplaceOnce(num_steps=2), "seed": 0}
    splats, capture = tiny_scene.splats, tiny_scene.capture
    how["facts"] = {"scene": "tiny", "edit": "gold", "method": "replace_once", "editor": "drifting-grade"}
    editors = {"plain": GradeEditor(), "moved": SettledEditor(DriftingEditor(GradeEditor(), 1.5), max_drift=0.1)}
    for name, editor in editors.items():
        list(edit_scene(splats, capture, editor=editor, folder=tmp_path / name, **how))
    assert "drifts" not in json.loads((tmp_path / "plain" / "record.json").read_text())
    record = read_json(tmp_path / "moved" / "record.json", EditRecord)
    assert set(record.drifts) == {str(index) for index in capture.train_indices}
    assert record.drift_note.startswith("the editor moved views by ")
