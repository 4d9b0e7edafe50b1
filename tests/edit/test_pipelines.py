"""Published editors on tiny random models that diffusers' own pipelines save."""

import dataclasses
import importlib
import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from restage.cli import run
from restage.diffusion.editor import EditSettings, Guidance
from restage.edit.editors import EditorSource, open_editor
from restage.edit.editors.edit_model import PUBLISHED, ModelEditor
from restage.edit.editors.interface import ViewBatch
from restage.edit.editors.pipeline import PipelineEditor, PipelineOptions
from restage.edit.editors.settled import SettledEditor
from restage.edit.families import FAMILIES, cached_pipelines, find_model
from restage.edit.methods import Nothing
from restage.records import EditRequest, InputError
from restage.run.folder import RunFolder
from restage.scenes.io.nerfstudio import write_capture
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.scenes.references import ShownPicture
from tests.edit.tiny_pipelines import BUILDERS, build, save

REQUEST = EditRequest(instruction="a red cube", source_caption="", target_caption="")


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    """A tiny InstructPix2Pix folder, and the pipeline that wrote it."""
    pipeline = build("StableDiffusionInstructPix2PixPipeline")
    pipeline.scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    folder = tmp_path_factory.mktemp("pix2pix")
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return folder, pipeline


def test_instruct_pix2pix_edits_as_the_pipeline_of_diffusers_does(pix2pix, views):
    folder, pipeline = pix2pix
    editor = open_editor("instruct_pix2pix", EditorSource(model=folder))
    assert isinstance(editor, ModelEditor) and editor.settings is PUBLISHED
    editor = ModelEditor(
        editor.model, EditSettings(steps=1, guidance=Guidance(text=7.5, image=1.5), use_bfloat16=False)
    )
    editor.model.backbone.has_autocast = False
    batch = ViewBatch(views, views, request=REQUEST, view_indices=(0, 5), noise_level=1.0, seed=3)
    ours = editor.edit(batch)
    theirs = pipeline(
        prompt=[REQUEST.instruction] * 2,
        image=views,
        latents=batch.draw_noise((4, 16, 16)),
        num_inference_steps=1,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        output_type="pt",
    ).images
    assert torch.allclose(ours.images, theirs, atol=2e-3)
    assert theirs.std() > 0.05


def test_instruct_pix2pix_offers_two_branches_that_see_the_original(pix2pix, views):
    editor = open_editor("instruct_pix2pix", EditorSource(model=pix2pix[0]))
    assert isinstance(editor, ModelEditor)
    scores = editor.scores()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    first, second = (scores.branches(views[i : i + 1], REQUEST, view_index=i, seed=0) for i in range(2))
    assert not torch.equal(first.edited(latents, 400, None), first.source(latents, 400, None))
    assert not torch.equal(first.source(latents, 400, None), second.source(latents, 400, None))
    stronger = first.edited(latents, 400, 20.0) - first.edited(latents, 400, 7.5)
    assert stronger.abs().max() > 0
    assert torch.equal(first.source(latents, 400, 20.0), first.source(latents, 400, 7.5))


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    """A tiny FLUX.1 Kontext folder."""
    folder = tmp_path_factory.mktemp("kontext")
    save("FluxKontextPipeline", folder)
    return folder


def edit_by_kontext(folder, views, originals=None, **changes):
    editor = open_kontext(folder, "steps=4")
    options = {"view_indices": tuple(range(len(views))), "noise_level": 1.0, "seed": 0, **changes}
    return editor.edit(ViewBatch(views, views if originals is None else originals, request=REQUEST, **options))


def open_kontext(folder, *options: str) -> PipelineEditor:
    editor = open_editor("pipeline", EditorSource(model=folder, options=("size=64", *options)))
    assert isinstance(editor, SettledEditor) and isinstance(editor.editor, PipelineEditor)
    return editor.editor


def test_kontext_edits_a_view_by_its_seed_and_original_alone(kontext, views):
    both = edit_by_kontext(kontext, views)
    assert both.images.shape == views.shape and both.masks.shape == (2, 32, 32)
    alone = edit_by_kontext(kontext, views[1:], view_indices=(1,))
    assert torch.allclose(alone.images[0], both.images[1], atol=1e-5)
    other = edit_by_kontext(kontext, views[1:], view_indices=(1,), originals=views[:1])
    assert not torch.allclose(other.images, alone.images, atol=1e-4)


def test_kontext_starts_from_the_view_at_partial_noise_only(kontext, views):
    def difference(noise_level: float) -> float:
        one, two = (
            edit_by_kontext(kontext, x, view_indices=(0,), originals=views[:1], noise_level=noise_level).images
            for x in (views[:1], views[1:])
        )
        return float((one - two).abs().mean())

    assert difference(1.0) == pytest.approx(0, abs=1e-6)
    assert difference(0.25) > 0.002


def test_kontext_takes_views_whose_size_its_latents_do_not_divide(kontext):
    odd = torch.rand(1, 3, 30, 37, generator=torch.Generator().manual_seed(0))
    assert edit_by_kontext(kontext, odd).images.shape == odd.shape


def test_the_rest_of_the_schedule_starts_where_the_shifted_scheduler_does(kontext):
    start = open_kontext(kontext)._start(0.5, 64)
    assert len(start.sigmas) == 14 and start.sigmas[0] == pytest.approx(0.5)
    assert 0.5 < start.first < 0.8  # shifted towards noise, as the pipeline will


UNTESTED = {"GlmImagePipeline": "diffusers 0.42 and transformers 5.23 do not agree on what its vision encoder returns"}
NEEDS_TORCHVISION = {"OmniGenPipeline"}
MEGAPIXEL_MODULES = (
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit",
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus",
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_inpaint",
    "diffusers.pipelines.qwenimage21.pipeline_qwenimage21",
    "diffusers.pipelines.longcat_image.pipeline_longcat_image_edit",
)


@pytest.fixture
def small_pictures(monkeypatch):
    """Let pipelines that choose a size of a megapixel choose a small one: it is the only thing that is not theirs."""
    for module in map(importlib.import_module, MEGAPIXEL_MODULES):
        choose = module.calculate_dimensions
        monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio, choose=choose: choose(64 * 64, ratio))
    sizes = importlib.import_module("diffusers.pipelines.joyimage.image_processor").BUCKETS
    monkeypatch.setitem(sizes, 1024, [(64, 64)])
    table = property(lambda pipeline: [(64, 64)], lambda pipeline, value: None)
    monkeypatch.setattr(diffusers.Kandinsky5I2IPipeline, "resolutions", table, raising=False)


def write_small_scene(tiny_scene, run_folder: Path) -> Path:
    """Write a run with a scene of two training views and one held-out view."""
    opened = RunFolder.open(run_folder, Nothing(), seed=0)
    scene = opened.path / "scenes" / "tiny"
    capture = dataclasses.replace(
        tiny_scene.capture.select((0, 3, 5)), train_indices=(0, 1), held_out_indices=(2,), name="tiny"
    )
    write_capture(capture, scene / "capture")
    write_splats(tiny_scene.splats, scene / "splats.ply")
    return scene


def test_every_family_of_the_table_is_tested_or_says_why_not():
    assert set(BUILDERS) | set(UNTESTED) == set(FAMILIES)
    assert not set(BUILDERS) & set(UNTESTED)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_family_edits_a_scene_by_restage_edit(name, small_pictures, tiny_scene, tmp_path, capsys):
    if name in NEEDS_TORCHVISION:
        pytest.importorskip("torchvision", reason=f"diffusers' {name} needs torchvision")
    save(name, tmp_path / "model")
    scene = write_small_scene(tiny_scene, tmp_path / "run")
    arguments = ["edit", str(scene), "paint the ball", "--editor", "pipeline", "--method", "replace_once"]
    arguments += ["--model", str(tmp_path / "model"), "--model-options", "steps=1", "size=64", "--time-budget", "0.001"]
    # What random weights paint may agree by chance with a view that lies elsewhere.
    arguments += ["--max-drift", "1"]
    assert run(arguments) == 0, capsys.readouterr().err
    (record,) = (tmp_path / "run" / "edit").rglob("record.json")
    assert json.loads(record.read_text())["status"] == "done"
    edited = read_splats(record.parent / "splats.ply")
    assert not torch.equal(edited.sh, read_splats(scene / "splats.ply").sh)
    views = [Image.open(path) for path in (record.parent / "views").iterdir()]
    assert len(views) == 2 and views[0].size == (32, 32)


class Spy:
    """A pipeline that keeps what it is called with and answers with the view in negative."""

    vae_scale_factor = 8

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, **arguments):
        self.calls.append(arguments)
        count = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
        return (torch.zeros(count, 3, 64, 64),)


def spy_on(name: str, *options: str, **changes) -> list[dict]:
    spy = Spy()
    editor = PipelineEditor(spy, FAMILIES[name], PipelineOptions.of(("size=64", *options)))
    views = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    how = {"view_indices": (0, 1, 2), "noise_level": 1.0, "seed": 0, **changes}
    edited = editor.edit(ViewBatch(views, how.pop("originals", views), request=REQUEST, **how))
    assert edited.images.shape == views.shape and not edited.images.any()
    return spy.calls


def test_pictures_masks_and_references_go_where_the_table_says():
    reference, region = torch.rand(3, 20, 40), torch.zeros(3, 32, 32)
    region[:, :16] = 1
    how = {"references": (ShownPicture(reference),), "regions": region}
    first = spy_on("Flux2KleinPipeline", **how)[0]
    assert [picture.size for picture in first["image"]] == [(64, 64), (64, 64)]
    assert (first["height"], first["width"]) == (64, 64) and first["guidance_scale"] == 4.0
    inpaint = spy_on("Flux2KleinInpaintPipeline", noise_level=0.5, **how)[0]
    assert inpaint["strength"] == 0.5 and inpaint["image_reference"].size == (64, 64) and "height" not in inpaint
    assert inpaint["mask_image"][0, 0, 0, 0] == 1 and inpaint["mask_image"][0, 0, -1, 0] == 0
    plain = spy_on("QwenImageEditPipeline", **how)[0]
    assert plain["true_cfg_scale"] == 4.0 and plain["negative_prompt"] == " " and "mask_image" not in plain
    assert spy_on("QwenImageEditInpaintPipeline")[0]["mask_image"].min() == 1  # no region: everything may change
    nested = spy_on("OmniGenPipeline")[0]
    assert nested["prompt"][0] == "<img><|image_1|></img> a red cube" and len(nested["input_images"]) == 3


def test_several_views_go_into_one_call_where_the_pipeline_takes_them():
    assert [len(call["prompt"]) for call in spy_on("StableDiffusionInstructPix2PixPipeline", "batch_size=2")] == [2, 1]
    assert len(spy_on("QwenImageEditPlusPipeline")) == 3


def test_views_with_equal_noise_keys_get_the_same_noise_in_any_batch():
    def draws(calls: list[dict]) -> list[float]:
        return [float(torch.rand((), generator=call["generator"])) for call in calls]

    own, shared = (draws(spy_on("Flux2KleinPipeline", noise_keys=keys)) for keys in (None, (7, 8, 7)))
    assert len(set(own)) == 3 and shared[0] == shared[2] != shared[1]


def test_options_set_steps_guidance_and_size_and_wrong_ones_are_refused():
    call = spy_on("DreamLitePipeline", "steps=3", "guidance=2", "image_guidance=1.25")[0]
    assert (call["num_inference_steps"], call["guidance_scale"], call["image_guidance_scale"]) == (3, 2, 1.25)
    for options, match in (
        (("stepz=3",), "a key of steps, guidance"),
        (("steps",), "as key=value"),
        (("steps=many",), "steps: expected int"),
        (("steps=0",), "steps of at least 1"),
        (("weights=nf5",), "weights: invalid enum value 'nf5'"),
    ):
        with pytest.raises(InputError, match=match):
            PipelineOptions.of(options)
    with pytest.raises(InputError, match="the editor grade has no options"):
        open_editor("grade", EditorSource(options=("steps=3",)))


def test_weights_are_held_in_eight_bits_and_give_nearly_the_same_picture(kontext, views):
    whole, small = edit_by_kontext(kontext, views), open_kontext(kontext, "steps=4", "weights=float8")
    weight = small.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.float8_e4m3fn
    edited = small.edit(ViewBatch(views, views, request=REQUEST, view_indices=(0, 1), noise_level=1.0, seed=0))
    assert 0 < (edited.images - whole.images).abs().mean() < 0.02
    for option in ("weights=nf4", "offload=model"):
        with pytest.raises(InputError, match="needs bitsandbytes|moves weights to a GPU"):
            open_kontext(kontext, option)


def test_a_folder_of_another_pipeline_is_refused_with_a_list_of_those_known(tmp_path):
    for index, match in (
        ('{"_class_name": "StableDiffusionPipeline"}', "'StableDiffusionPipeline', which is none of .*OmniGenPipeline"),
        ('{"_class_name": 7}', "holds a ''"),
        ('{"_class_name": "Flux2KleinPipeline", "vae": ["evil", "Loader"]}', "its vae is a Loader of evil"),
    ):
        (tmp_path / "model_index.json").write_text(index)
        with pytest.raises(InputError, match=match):
            open_editor("pipeline", EditorSource(model=tmp_path))
    with pytest.raises(InputError, match="name the pipeline's folder with --model"):
        open_editor("pipeline", EditorSource())


def test_pipelines_of_the_hubs_cache_are_found_by_name_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--klein"
    for commit in ("old", "new"):
        folder = repository / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
        (folder / "model.safetensors").write_bytes(bytes(1000))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("old")
    (tmp_path / "models--owner--other" / "snapshots" / "a").mkdir(parents=True)
    (found,) = cached_pipelines()
    assert (found.name, found.class_name, found.weights_gb) == ("owner/klein", "Flux2KleinPipeline", 1e-6)
    assert found.folder == find_model(Path("owner/klein")) == repository / "snapshots" / "old"
    with pytest.raises(InputError, match="hf download owner/none"):
        find_model(Path("owner/none"))
    with pytest.raises(InputError, match="does not exist"):
        find_model(tmp_path / "nowhere")
