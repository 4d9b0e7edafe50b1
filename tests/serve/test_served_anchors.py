"""An edited view that the others follow, through a real server and the editor that asks it."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from restage.edit.editors.anchored import Anchor, AnchoredEditor, follow_anchor
from restage.edit.editors.endpoint import open_endpoint
from restage.edit.editors.exact import ExactEditor
from restage.edit.editors.interface import Edited, EditorSource, ViewBatch
from restage.edit.pictures import quantize, read_image
from restage.edit.single import EditChoice, open_edit
from restage.records import EditRequest, read_json
from restage.run.folder import RunFolder
from restage.run.reading import EditRecord
from restage.serve.served import ServedEditor
from tests.edit.conftest import tiny_scene  # noqa: F401


@dataclass
class FollowingExact:
    """Knows the truth of every view, but gives it only to who shows the edited anchor with it, or asks for that."""

    exact: ExactEditor
    views: torch.Tensor
    anchor: int
    takes_references = True

    def edit(self, batch: ViewBatch) -> Edited:
        indices = tuple(int((self.views - view).abs().mean(dim=(1, 2, 3)).argmin()) for view in batch.originals)
        truth = self.exact.edit(replace(batch, view_indices=indices))
        (shown,) = self.exact.edit(replace(batch.select([0]), view_indices=(self.anchor,))).images
        if batch.references and torch.equal(batch.references[0].picture, shown):
            return truth
        is_anchor = torch.tensor(indices) == self.anchor
        images = torch.where(is_anchor[:, None, None, None], truth.images, batch.originals)
        return Edited(images, truth.masks * is_anchor[:, None, None])


@pytest.fixture
def scene(tiny_scene, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = RunFolder.open(tmp_path / "run", EditChoice(), seed=0)
    tiny_scene.write(run.path / "scenes" / "tiny")
    return run, run.path / "scenes" / "tiny", tiny_scene


def test_exact_behind_the_server_edits_all_views_only_by_the_anchor(scene, serve_it, tmp_path, monkeypatch):
    run, folder, tiny = scene
    exact = ExactEditor(folder / "truth" / "blue", tiny.capture.file_names)
    served = ServedEditor("following", FollowingExact(exact, quantize(tiny.capture.images), 3), "exact", "abc")
    assert "references" in served.takes
    records, num_changed = {}, {}
    originals = dict(zip(tiny.capture.file_names, quantize(tiny.capture.images), strict=True))
    with serve_it(served) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        for anchor in ("", "3"):
            choice = EditChoice(method="replace_once", editor="endpoint", anchor=anchor)
            opened = open_edit(run, folder, request=tiny.request, choice=choice)
            list(opened.steps)
            records[anchor] = read_json(opened.folder / "record.json", EditRecord)
            views = [(originals[path.name], read_image(path)) for path in (opened.folder / "views").iterdir()]
            num_changed[anchor] = sum(not torch.equal(*pair) for pair in views)
    assert num_changed == {"": 1, "3": 6}
    assert records["3"].inputs["anchor"] == "anchor-3" and records["3"].inputs["anchor_view"] == "view_3.png"
    assert records["3"].id != records[""].id and "anchor" not in records[""].inputs


def test_grade_behind_the_server_edits_in_a_grid_as_it_does_without(grade, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", grade.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    editor = open_endpoint(EditorSource(answers=tmp_path))
    views = torch.rand(4, 3, 20, 30, generator=torch.Generator().manual_seed(2)).mul(255).round() / 255
    request = EditRequest(instruction="turn the bear into gold", source_caption="", target_caption="")
    regions = torch.zeros(4, 20, 30)
    regions[:, 5:15, 8:20] = 1
    how = {"view_indices": (0, 1, 2, 3), "noise_level": 1.0, "seed": 3, "regions": regions}
    batch = ViewBatch(views, views, request=request, **how)
    alone = editor.edit(batch)
    following = follow_anchor(editor, Anchor(2, views[2], regions[2]), "auto")
    assert isinstance(following, AnchoredEditor) and following.form.is_grid
    edited = following.edit(batch)
    assert torch.equal(edited.images, alone.images) and torch.equal(edited.masks, alone.masks)
    assert len(list(Path(tmp_path).glob("**/*.png"))) == 4 + 3  # the anchor's own edit was on disk
