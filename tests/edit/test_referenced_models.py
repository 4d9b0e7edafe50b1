"""Edit models that look at references, in the methods and as followers of an anchor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from restage.diffusion.edit_models import load_edit_model, save_edit_model
from restage.diffusion.editor import EditSettings
from restage.diffusion.references import Beside, PictureTokens
from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.anchored import Anchor, follow_anchor
from restage.edit.editors.edit_model import MUTUAL, ModelEditor, _Plan
from restage.edit.editors.interface import ViewBatch, score_model_of
from restage.edit.editors.referenced import show_references
from restage.edit.methods import ReplaceOnce, Restage
from restage.edit.methods.distill import Sds
from restage.edit.methods.joint import Joint
from restage.edit.pictures import write_image
from restage.edit.sharing import ViewSharing, near_epipolar_lines
from restage.edit.single import EditChoice, open_edit
from restage.records import EditRequest, InputError
from restage.run.folder import RunFolder
from restage.scenes.references import GivenPicture, ShownPicture
from tests.scenes.test_references import picture
from tests.tiny_models import CHANNELS, WIDTH, write_tiny_models

SHOWN = tuple(ShownPicture(torch.tensor(color)[:, None, None].expand(3, 24, 20).contiguous()) for color in (
    (0.9, 0.1, 0.1), (0.1, 0.1, 0.9),
))  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random models, by how they look at references."""
    models = write_tiny_models(tmp_path_factory.mktemp("models"))
    model = load_edit_model(models / "edit_model")
    assert model.unet.conv_out.bias is not None
    model.unet.conv_out.bias.data[CHANNELS] = 2.0  # nearly everything may change
    tokens = PictureTokens(model.unet, CHANNELS, WIDTH)
    torch.nn.init.constant_(tokens.picture_weights, 1.0)
    found = {"words": models / "edit_model"}
    for reader in (Beside(), tokens):
        found[reader.name] = models / f"edit_model_{reader.name}"
        looking = dataclasses.replace(model, reader=reader)
        save_edit_model(looking, found[reader.name], models / "text_to_image")
    return found


def open_model(folders: dict[str, Path], arm: str) -> ModelEditor:
    options = (MUTUAL,) if arm == "mutual" else ()
    editor = open_editor("edit_model", EditorSource(model=folders.get(arm, folders["words"]), options=options))
    assert isinstance(editor, ModelEditor)
    return dataclasses.replace(editor, settings=EditSettings(steps=2, use_bfloat16=False))


def batch(tiny_scene, **changes) -> ViewBatch:
    views = tiny_scene.capture.images[:3]
    told = {"request": tiny_scene.request, "view_indices": (0, 1, 3), "noise_level": 1.0, "seed": 0}
    return ViewBatch(views, views, **(told | changes))


@pytest.mark.parametrize("arm", ["beside", "tokens", "mutual"])
def test_views_and_predictions_depend_on_the_reference(tiny_scene, folders, arm: str) -> None:
    editor = open_model(folders, arm)
    images = [show_references(editor, (shown,)).edit(batch(tiny_scene)).images for shown in SHOWN]
    assert float((images[0] - images[1]).abs().max()) > 1e-5
    with pytest.raises(InputError, match="the edit model looks at one reference, got 2"):
        show_references(editor, SHOWN).edit(batch(tiny_scene))
    predicted = []
    for shown in SHOWN:
        scores = score_model_of(show_references(editor, (shown,)))
        branches = scores.branches(tiny_scene.capture.images[:1], tiny_scene.request, view_index=0, seed=0)
        latents = scores.encode(tiny_scene.capture.images[:1])
        predicted.append([branch(latents, 500, 2.0) for branch in branches])
    (edited, source), (other_edited, other_source) = predicted
    assert not torch.equal(edited, other_edited) and torch.equal(source, other_source)


def test_a_model_of_words_says_that_it_looks_at_none(folders) -> None:
    with pytest.raises(InputError, match="an edit model that was trained with references"):
        show_references(open_model(folders, "words"), SHOWN[:1])
    with pytest.raises(InputError, match="has one option, references=mutual"):
        open_editor("edit_model", EditorSource(model=folders["words"], options=("steps=3",)))
    assert not open_model(folders, "mutual").shares_attention and open_model(folders, "beside").shares_attention


METHODS = {
    "replace_once": ReplaceOnce(num_steps=2),
    "restage": Restage(num_key_views=3, color_steps=1, shape_steps=1),
    "joint": Joint(num_views=3, noise_levels=(1.0,), steps_per_round=1),
    "sds": Sds(num_steps=2),
}


@pytest.mark.parametrize("arm", ["beside", "tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_scenes_are_edited_by_a_reference(tiny_scene, folders, tmp_path: Path, arm: str, method: str) -> None:
    run = RunFolder.open(tmp_path / "run", EditChoice(), seed=0)
    scene, found = run.path / "scenes" / "tiny", []
    tiny_scene.write(scene)
    for content in (picture(), picture(kind="JPEG", quality=1)):
        references = (GivenPicture(content).keep(scene),)
        request = EditRequest(instruction="as it", source_caption="", target_caption="", references=references)
        choice = EditChoice(method=method, model=folders[arm], settings=METHODS[method])
        *_, last = open_edit(run, scene, request=request, choice=choice).steps
        found.append(last.splats)
    assert any(not torch.equal(x, y) for x, y in zip(*(one.parameters().values() for one in found), strict=True))


def test_tokens_of_a_picture_beside_the_views_match_one_by_one(tiny_scene) -> None:
    cameras = tiny_scene.capture.cameras[[0, 1]]
    sharing = ViewSharing(cameras, group_size=2, seed=0)
    near = _Plan(sharing, is_beside=True).near(0, 1, 2 * 64)
    own = torch.arange(128).reshape(8, 16)[:, :8].flatten()
    beside = torch.arange(128).reshape(8, 16)[:, 8:].flatten()
    assert torch.equal(near[own][:, own], near_epipolar_lines(cameras.to_size(8, 8), reach=1.0))
    assert torch.equal(near[beside][:, beside], torch.eye(64, dtype=torch.bool))
    assert not near[own][:, beside].any() and not near[beside][:, own].any()


@pytest.mark.parametrize("arm", ["beside", "tokens"])
def test_views_follow_an_anchor_by_the_instruction_alone(tiny_scene, folders, arm: str) -> None:
    editor, asked = open_model(folders, arm), []

    @dataclasses.dataclass
    class Spy:
        editor: ModelEditor

        @property
        def anchor_form(self):
            return self.editor.anchor_form

        def edit(self, batch: ViewBatch):
            asked.append(batch)
            return self.editor.edit(batch)

    originals, truth = tiny_scene.capture.images, tiny_scene.truth_images
    anchor = Anchor(1, originals[1], edited=truth[1])
    edited = follow_anchor(Spy(editor), anchor, "auto").edit(batch(tiny_scene))
    assert torch.equal(edited.images[1], truth[1])
    (part,) = asked
    assert part.view_indices == (0, 3) and part.request == tiny_scene.request
    (shown,) = part.references
    assert torch.equal(shown.picture, truth[1]) and shown.mask is not None
    inside = (shown.mask > 0.5) & (tiny_scene.truth_masks[1] > 0.5)
    assert inside.sum() > 0.5 * (shown.mask > 0.5).sum()


def test_a_view_that_was_edited_elsewhere_is_handed_back_as_the_reference(tiny_scene, folders, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "run", EditChoice(), seed=0)
    scene = run.path / "scenes" / "tiny"
    tiny_scene.write(scene)
    write_image(tmp_path / "view_1.png", tiny_scene.truth_images[1])
    choice = EditChoice(
        method="replace_once",
        model=folders["tokens"],
        settings=METHODS["replace_once"],
        anchor=str(tmp_path / "view_1.png"),
    )
    opened = open_edit(run, scene, request=tiny_scene.request, choice=choice)
    assert list(opened.steps) and "anchor-" in opened.folder.parts[-3]
    plain = dataclasses.replace(choice, model=folders["words"])
    with pytest.raises(InputError, match="or an edit model that was trained with references"):
        open_edit(run, scene, request=tiny_scene.request, choice=plain)
