"""One view is edited first, and the editor sees it beside every other one."""

import dataclasses
import json
from dataclasses import dataclass, field

import pytest
import torch

from restage.cli import run
from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.anchored import Anchor, AnchoredEditor, find_anchor, follow_anchor
from restage.edit.editors.drift import Drift, DriftingEditor, move
from restage.edit.editors.grade import GradeEditor, grade_views
from restage.edit.editors.interface import AnchorForm, Edited, ViewBatch
from restage.edit.editors.pipeline import PipelineEditor, PipelineOptions
from restage.edit.editors.settled import SettledEditor
from restage.edit.families import FAMILIES
from restage.edit.pictures import read_image, write_image
from restage.edit.single import EditChoice, estimate_edit
from restage.records import EditRequest, InputError
from restage.run.endpoint_config import EndpointConfig
from tests.edit.test_drift import batch_of, picture
from tests.edit.test_pipelines import Spy, write_small_scene
from tests.edit.tiny_pipelines import save


@dataclass
class Painter:
    """An editor that paints views in the color of the edited view that it is shown; alone, in gray."""

    anchor_form: AnchorForm
    batches: list[ViewBatch] = field(default_factory=list)

    def edit(self, batch: ViewBatch) -> Edited:
        self.batches.append(batch)
        images = torch.full_like(batch.originals, 0.25)
        if batch.references:
            images[:] = batch.references[0].picture.mean(dim=(1, 2))[:, None, None]
        elif batch.originals.shape[2] > picture(0).shape[1]:
            height, width = (side // 2 for side in batch.originals.shape[2:])
            images[:] = torch.nan
            shown = batch.originals[:, :, :height, width:].mean(dim=(2, 3))
            images[:, :, height:, width:] = shown[:, :, None, None]
        return Edited(images, torch.ones_like(images[:, 0]))


REFERENCE, GRID = AnchorForm(False, "As in the second."), AnchorForm(True, "As above.", takes_mask=True)


@pytest.mark.parametrize("form", [REFERENCE, GRID])
def test_the_anchor_is_edited_once_and_all_others_follow_it(form):
    batch = batch_of(4, noise_keys=(0, 1, 0, 1))
    painter = Painter(form)
    editor = AnchoredEditor(painter, Anchor(11, batch.originals[1]), form)
    edited = editor.edit(batch)
    assert torch.allclose(edited.images, torch.tensor(0.25), atol=1e-6) and edited.masks.min() == 1
    editor.edit(batch_of(2))
    alone, others, later = painter.batches
    assert alone.view_indices == (11,) and torch.equal(alone.originals, batch.originals[1:2]) and not alone.references
    assert alone.request == batch.request
    assert others.view_indices == (10, 12, 13) and later.view_indices == (10,)
    assert others.request.instruction == f"make it golden. {form.words}"
    seeds = batch.noise_seeds()
    assert others.noise_seeds() == (seeds[0], seeds[2], seeds[3])
    if form.is_grid:
        height, width = batch.originals.shape[2:]
        grid = others.originals[1]
        assert torch.equal(grid[:, :height, :width], batch.originals[1]) and (grid[:, :height, width:] == 0.25).all()
        assert torch.equal(grid[:, height:, :width], batch.originals[2])
        assert torch.equal(grid[:, height:, width:], batch.originals[2])
        assert others.regions is not None and others.regions.sum() == 3 * height * width
        assert others.regions[:, height:, width:].min() == 1
    else:
        assert torch.equal(others.originals, batch.originals[[0, 2, 3]]) and others.regions is None
        assert (others.references[0].picture == 0.25).all()


def test_a_picture_of_the_users_is_not_edited_and_the_others_follow_it():
    batch = batch_of(3)
    blue = batch.originals[2] * torch.tensor([0.2, 0.4, 1.0])[:, None, None]
    painter = Painter(REFERENCE)
    edited = AnchoredEditor(painter, Anchor(12, batch.originals[2], edited=blue), REFERENCE).edit(batch)
    assert [one.view_indices for one in painter.batches] == [(10, 11)]
    assert torch.equal(edited.images[2], blue) and edited.masks[2].mean() > 0.5
    assert torch.allclose(edited.images[0].mean(dim=(1, 2)), blue.mean(dim=(1, 2)), atol=1e-6)


def test_an_anchor_changes_inside_its_region_alone():
    batch = batch_of(2)
    region = torch.zeros_like(batch.originals[0, 0])
    region[:40] = 1
    painter = Painter(REFERENCE)
    AnchoredEditor(painter, Anchor(11, batch.originals[1], region=region), REFERENCE).edit(batch)
    shown = painter.batches[1].references[0].picture
    assert (shown[:, :40] == 0.25).all() and torch.equal(shown[:, 40:], batch.originals[1, :, 40:])


def test_an_anchor_that_drifted_is_put_back_before_it_is_shown():
    batch = batch_of(2)
    drifting = DriftingEditor(GradeEditor(), 3.0)
    painter = Painter(REFERENCE)

    @dataclass
    class Both:
        anchor_form = REFERENCE

        def edit(self, batch: ViewBatch) -> Edited:
            return painter.edit(batch) if batch.references else drifting.edit(batch)

    settled = follow_anchor(SettledEditor(Both()), Anchor(11, batch.originals[1]), "auto")
    edited = settled.edit(batch)
    still = grade_views(batch.originals[1:], "make it golden").images[0]
    drifted = drifting.edit(batch).images[1]
    inside = (slice(None), slice(8, -8), slice(8, -8))
    error, before = ((one - still)[inside].abs().mean() for one in (painter.batches[0].references[0].picture, drifted))
    assert error < 0.3 * before
    assert edited.drifts[1] == pytest.approx(drifting.drift_of(batch, 11).share(96, 96), abs=2e-3)
    strict = follow_anchor(SettledEditor(Both(), max_drift=0.01), Anchor(11, batch.originals[1]), "auto")
    with pytest.raises(InputError, match="view 11, which was edited first, drifted by .* --max-drift"):
        strict.edit(batch)


def test_editors_that_can_be_shown_nothing_are_refused(tiny_scene, tmp_path):
    source = EditorSource(file_names=tiny_scene.capture.file_names, truth=tiny_scene.write(tmp_path))
    for name in ("grade", "exact", "drifting-1-exact"):
        with pytest.raises(InputError, match="omit --anchor, or choose pipeline, endpoint, or an edit model"):
            follow_anchor(open_editor(name, source), Anchor(0, tiny_scene.capture.images[0]), "auto")
    forced = follow_anchor(Painter(REFERENCE), Anchor(0, picture(0)), "grid:auto")
    assert isinstance(forced, AnchoredEditor) and forced.form.is_grid and "upper right" in forced.form.words


def test_every_family_is_shown_an_anchor_as_its_row_says():
    for name, family in FAMILIES.items():
        form = PipelineEditor(None, family).anchor_form
        assert form.is_grid == (not family.reference) and form.takes_mask == bool(family.mask)
        assert ("upper" in form.words) == form.is_grid, name


def anchored_calls(name: str) -> list[dict]:
    spy, views = Spy(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    editor = PipelineEditor(spy, FAMILIES[name], PipelineOptions(size=64))
    request = EditRequest(instruction="a red cube", source_caption="", target_caption="")
    batch = ViewBatch(views, views, request=request, view_indices=(0, 1), noise_level=1.0, seed=0)
    AnchoredEditor(editor, Anchor(0, views[0]), editor.anchor_form).edit(batch)
    return spy.calls


def test_pipelines_get_the_anchor_where_their_row_says():
    first, second = anchored_calls("Flux2KleinPipeline")
    assert len(first["image"]) == 1 and len(second["image"]) == 2
    assert second["prompt"] == "a red cube. Apply the same change as in image 2."
    nested = anchored_calls("OmniGenPipeline")[1]
    assert [len(one) for one in nested["input_images"]] == [2]
    assert nested["prompt"][0].startswith("<img><|image_1|></img> a red cube.")
    assert nested["prompt"][0].endswith(" <img><|image_2|></img>")
    inpaint = anchored_calls("Flux2KleinInpaintPipeline")[1]
    assert inpaint["image_reference"].getpixel((5, 5)) == (0, 0, 0)  # what the spy answered for the anchor
    masked = anchored_calls("QwenImageEditInpaintPipeline")[1]
    assert masked["mask_image"][0, 0, 40:, 40:].min() == 1 and masked["mask_image"][0, 0, :30].max() == 0
    plain = anchored_calls("LongCatImageEditPipeline")[1]["image"]
    assert plain.getpixel((60, 5)) == (0, 0, 0) and plain.getpixel((5, 5)) != (0, 0, 0)


def painted(scene_picture: torch.Tensor) -> torch.Tensor:
    """As a user edits a view elsewhere: other colors, a new thing, and moved a little."""
    edited = 0.6 * scene_picture.flip(0) + 0.1
    edited[:, 10:30, 60:80] = 0.9
    return move(edited, Drift(2.0, -1.0, 1.02, 0.01))


def capture_of_pictures(tiny_scene):
    images = torch.stack([picture(seed) for seed in range(8)])
    cameras = dataclasses.replace(tiny_scene.capture.cameras, width=96, height=96)
    return dataclasses.replace(tiny_scene.capture, images=images, cameras=cameras)


def test_the_view_that_a_picture_shows_is_found_by_name_or_by_edges(tiny_scene, tmp_path):
    capture = capture_of_pictures(tiny_scene)
    edited = painted(capture.images[5])
    for name in ("view_5.png", "from the editor.png"):
        write_image(tmp_path / name, torch.nn.functional.interpolate(edited[None], scale_factor=3, mode="bicubic")[0])
        anchor = find_anchor(str(tmp_path / name), capture, max_drift=0.1)
        assert anchor.index == 5 and anchor.edited is not None and 0.01 < anchor.drift < 0.05
        inside = anchor.edited[:, 35:90, 6:90]
        assert (inside - (0.6 * capture.images[5].flip(0) + 0.1)[:, 35:90, 6:90]).abs().mean() < 0.03


def test_an_anchor_that_cannot_be_meant_is_refused(tiny_scene, tmp_path):
    capture = capture_of_pictures(tiny_scene)
    write_image(tmp_path / "view_3.png", move(picture(3), Drift(shift_x_px=9.0)))
    write_image(tmp_path / "stranger.png", picture(99))
    write_image(tmp_path / "wide.png", picture(0)[:, :50])
    write_image(tmp_path / "twin.png", picture(0))
    twins = dataclasses.replace(capture, images=capture.images[[0, 0, 2, 3, 4, 5, 6, 7]])
    for how, shown, match in (
        ("17", capture, "number of a training view"),
        ("2", capture, "number of a training view as --anchor, one of .*, got 2"),  # it is held out
        ("nowhere.png", capture, "expected --anchor auto, the number of a view, or a picture's file"),
        (str(tmp_path / "stranger.png"), capture, "shows none of the training views"),
        (str(tmp_path / "wide.png"), capture, "96x50 pixels; expected a whole view, 96x96"),
        (str(tmp_path / "twin.png"), twins, "may show view_0.png or view_1.png; call it by the view's name"),
        (str(tmp_path / "view_3.png"), capture, "drifted by 9.4% of its width, more than 5.0%"),
    ):
        with pytest.raises(InputError, match=match):
            find_anchor(how, shown, max_drift=0.05)


def test_auto_is_a_training_view_amid_the_others_or_that_which_shows_most_of_the_region(tiny_scene):
    capture = tiny_scene.capture
    arc = dataclasses.replace(capture.select((0, 1, 2, 3, 4)), file_names=tuple("abcde"))
    assert find_anchor("auto", arc, max_drift=0.1).index == 2
    regions = torch.zeros(8, 32, 32)
    regions[7, :9], regions[2], regions[4, :5] = 1, 1, 1
    assert find_anchor("auto", capture, regions, max_drift=0.1).index == 7


@pytest.mark.parametrize(("name", "size"), [("Flux2KleinPipeline", 64), ("FluxKontextPipeline", 64)])
def test_restage_edit_follows_an_anchor_and_says_so(name, size, tiny_scene, tmp_path, capsys):
    save(name, tmp_path / "model")
    scene = write_small_scene(tiny_scene, tmp_path / "run")
    edited = tmp_path / "view_3.png"
    write_image(edited, tiny_scene.truth_images[3])
    arguments = ["edit", str(scene), "paint the ball", "--editor", "pipeline", "--method", "replace_once"]
    arguments += ["--model", str(tmp_path / "model"), "--model-options", "steps=1", f"size={size}", "--max-drift", "1"]
    arguments += ["--time-budget", "0.001"]
    records = {}
    for how in ("", "auto", "1", str(edited)):
        assert run([*arguments, *(["--anchor", how] if how else [])]) == 0, capsys.readouterr().err
        (path,) = set((tmp_path / "run" / "edit").rglob("record.json")) - {one[0] for one in records.values()}
        records[how] = (path, json.loads(path.read_text()))
    assert "anchor" not in records[""][1]["inputs"] and "-anchor-" not in str(records[""][0])
    assert records["1"][1]["inputs"]["anchor_view"] == "view_3.png" and "-anchor-1" in records["1"][1]["edit"]
    assert len({record["id"] for _, record in records.values()}) == 4
    shown = [read_image(path) for path in (records[str(edited)][0].parent / "views" / "view_3.png", edited)]
    assert torch.equal(*shown)


def test_an_estimate_counts_the_anchor(tiny_scene, tmp_path):
    tiny_scene.write(tmp_path / "scene")
    write_image(tmp_path / "mine.png", picture(0))
    how = {"editor": "endpoint", "endpoint": EndpointConfig(price_per_picture=0.5)}
    for anchor, count in (("", 6), ("auto", 7), (str(tmp_path / "mine.png"), 6)):
        text = estimate_edit(tmp_path / "scene", EditChoice(anchor=anchor, **how))
        assert text == f"{count} pictures at most, {count / 2:.4g} at 0.5 each"
