"""Control branches: ControlNets of diffusers as its own pipelines use them, and ours against their formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models import MultiControlNetModel
from torch import Tensor

from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.branches import BranchRecord, build_branch, cross_normalize, out_layers, save_branch
from restage.diffusion.conditions import NUM_SLOTS, as_picture, invert_depth, slots_of, stack_conditions
from restage.diffusion.config import BranchSource, SamplerConfig
from restage.diffusion.pair_sampler import PairBatch, sample_pairs
from restage.diffusion.sampling import denoise, guided, initial_noise, latent_shape
from restage.records import InputError
from restage.run.models import folder_sha256
from tests.diffusion.cases import CASES
from tests.diffusion.explicit import explicit_steps
from tests.diffusion.test_stable_diffusion_shapes import make_pipeline

NUM_STEPS = 5  # at which windows of the public pipelines and ours hold the same steps
FEW_STEPS = 2  # where no window is used
PROMPTS = ["a red ball on sand", "a cube on the grass"]


def random_control_net(unet: Any, seed: int) -> ControlNetModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: Any = ControlNetModel.from_unet(unet)
        convolutions = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
        for layer in convolutions:  # they start at zero, and would do nothing
            torch.nn.init.normal_(layer.weight, std=0.1)
    return net.eval()


class Published:
    """A pipeline of diffusers with two ControlNets, and the folders of all."""

    def __init__(self, version: str, folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline: Any = make_pipeline(version)
        pipeline.unet.conv_out.weight.data *= 0.2
        pipeline.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction" if version == "2" else "epsilon",
            clip_sample=False,
            timestep_spacing="trailing",
            steps_offset=1,
        )
        pipeline.save_pretrained(folder)
        self.version, self.pipeline, self.folder = version, pipeline, folder
        self.nets = [random_control_net(pipeline.unet, seed) for seed in (1, 2)]
        for number, net in enumerate(self.nets):
            net.save_pretrained(folder / f"net{number}")

    def backbone(self, *sources: BranchSource) -> Backbone:
        return dataclasses.replace(load_backbone(self.folder, branches=sources), has_autocast=False)

    def latents(
        self, nets: list[ControlNetModel], pictures: list[Tensor], noise: Tensor, *, num_steps: int, **settings: Any
    ) -> Tensor:
        """What the pipeline of diffusers makes of the same noise."""
        parts = {key: value for key, value in self.pipeline.components.items() if value is not None}
        cls: Any = StableDiffusionXLControlNetPipeline if self.version == "XL" else StableDiffusionControlNetPipeline
        if self.version != "XL":
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        several = len(nets) > 1
        controlled = cls(**parts, controlnet=MultiControlNetModel(nets) if several else nets[0])
        controlled.set_progress_bar_config(disable=True)
        width = 8 * noise.shape[-1]
        prompt = [PROMPTS[0]] * len(noise)
        return controlled(
            prompt,
            image=pictures if several else pictures[0],
            latents=noise,
            num_inference_steps=num_steps,
            guidance_scale=3.0,
            height=width,
            width=width,
            output_type="latent",
            negative_prompt=[""] * len(noise),
            **settings,
        ).images


@pytest.fixture(scope="module", params=["1", "2", "XL"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(request.param, tmp_path_factory.mktemp(f"published-{request.param}"))


def sample(backbone: Backbone, noise: Tensor, num_steps: int = FEW_STEPS) -> Tensor:
    text = backbone.encode_prompts([PROMPTS[0]] * len(noise))
    predict = guided(backbone, text, backbone.encode_prompts([""]), torch.full((len(noise),), 3.0))
    steps = backbone.schedule.timesteps(num_steps)
    *_, last = denoise(backbone.schedule, noise, predict=predict, timesteps=steps, solver="ddim")
    return last.latents


def random_picture(size: int, seed: int, channels: int = 3) -> Tensor:
    return torch.rand(channels, size, size, generator=torch.Generator().manual_seed(seed))


def assert_same_latents(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().mean()  # a random model that predicts noise goes far
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-4)


def test_a_control_net_gives_the_picture_that_the_pipeline_of_diffusers_gives(published: Published) -> None:
    backbone = published.backbone(BranchSource(folder=published.folder / "net0", condition="scribble", weight=0.8))
    noise = initial_noise(latent_shape(backbone), [1, 2])
    pictures = torch.stack([random_picture(backbone.picture_size[0], seed) for seed in (3, 4)])
    found = sample(backbone.steered([{"scribble": picture} for picture in pictures]), noise)
    expected = published.latents(
        published.nets[:1], [pictures], noise, num_steps=FEW_STEPS, controlnet_conditioning_scale=0.8
    )
    assert_same_latents(found, expected)
    plain = sample(backbone, noise)
    assert (found - plain).abs().mean() > 0.01 * plain.abs().mean()


def test_several_control_nets_act_each_with_its_weight_and_in_its_window(published: Published) -> None:
    folder = published.folder
    backbone = published.backbone(
        BranchSource(folder=folder / "net0", condition="depth", weight=0.7, end=0.6),
        BranchSource(folder=folder / "net1", condition="canny", weight=1.2, start=0.2),
    )
    size = backbone.picture_size[0]
    noise = initial_noise(latent_shape(backbone), [1])
    depth, edges = random_picture(size, 3, 1), random_picture(size, 4, 1).round()
    depth = (depth - depth.amin()) / (depth.amax() - depth.amin())  # as MiDaS's, which public ControlNets know
    found = sample(backbone.steered([{"depth": 0.3 * depth + 0.1, "canny": edges}]), noise, NUM_STEPS)
    expected = published.latents(
        published.nets,
        [picture.expand(1, 3, -1, -1) for picture in (depth, edges)],
        noise,
        num_steps=NUM_STEPS,
        controlnet_conditioning_scale=[0.7, 1.2],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[0.6, 1.0],
    )
    assert_same_latents(found, expected)


@pytest.mark.parametrize(
    ("published", "name"),
    [("1", "refine and reweight"), ("2", "MasaCtrl"), ("XL", "refine and reweight")],
    indirect=["published"],
)
def test_attention_control_works_under_a_control_net(published: Published, name: str) -> None:
    case = CASES[name]
    backbone = published.backbone(BranchSource(folder=published.folder / "net0", condition="scribble"))
    conditions = {"scribble": random_picture(backbone.picture_size[0], 3)}
    batch = PairBatch(
        control=case.control(),
        source_of=torch.tensor([0]),
        source_text=backbone.encode_prompts([case.source]),
        edit_text=backbone.encode_prompts([case.target]),
        seeds=(case.seed,),
        guidance=torch.tensor([3.0]),
        conditions=(conditions,),
    )
    *_, found = sample_pairs(backbone, batch, SamplerConfig(num_steps=NUM_STEPS, solver="ddim"))
    controller = case.controller(NUM_STEPS, 16, backbone.tokenizer)
    steered, shape = backbone.steered([conditions] * 2), latent_shape(backbone)
    *_, expected = explicit_steps(steered, controller, seed=case.seed, guidance=3.0, shape=shape)
    assert_same_latents(torch.cat([found.source_latents, found.edit_latents]), expected)


# --- ours -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published("1", tmp_path_factory.mktemp("base"))


LAYOUT = {"depth": random_picture(128, 5, 1), "ids": slots_of(random_picture(128, 6, 1)[0].mul(4).long())}


def save_ours(base: Published, folder: Path, *, to_out: bool = False, sha256: str = "", **how: Any) -> BranchSource:
    unet = base.pipeline.unet
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build_branch(unet, ("depth", "ids"), width=16, **how)
        change = {f"{name}.weight": 0.3 * torch.randn_like(layer.weight) for name, layer in out_layers(unet).items()}
    record = BranchRecord(conditions=("depth", "ids"), unet_sha256=sha256)
    save_branch(model, folder, record, change if to_out else {})
    return BranchSource(folder=folder)


def test_cross_normalized_features_have_the_mean_and_deviation_of_the_hidden_ones() -> None:
    hidden = 3 * torch.randn(2, 8, 4, 4) + torch.tensor([1.0, -5.0]).view(2, 1, 1, 1)
    found = cross_normalize(0.2 * torch.randn(2, 8, 4, 4) + 7, hidden, tiny=0.0)
    for of in (torch.Tensor.mean, torch.Tensor.std):
        torch.testing.assert_close(of(found, (1, 2, 3)), of(hidden, (1, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("placement", ["conv_in", "down_0", "mid"])
@pytest.mark.parametrize("injection", ["cross_norm", "zero_conv"])
def test_only_a_cross_normalized_branch_acts_before_it_is_trained(
    base: Published, tmp_path: Path, placement: str, injection: str
) -> None:
    source = save_ours(base, tmp_path / "branch", placement=placement, injection=injection)
    backbone = base.backbone(source)
    noise = initial_noise(latent_shape(backbone), [1, 2])
    plain, found = sample(backbone, noise), sample(backbone.steered([LAYOUT] * 2), noise)
    if injection == "zero_conv":
        torch.testing.assert_close(found, plain)
    else:
        assert (found - plain).abs().mean() > 3e-4 * plain.abs().mean()
        alone = sample(backbone.steered([LAYOUT]), noise[1:])
        assert_same_latents(found[1:], alone)


@pytest.mark.parametrize("off", [{"weight": 0.0}, {"end": 0.0}, {"start": 1.0}])
def test_a_branch_that_is_off_changes_nothing(base: Published, tmp_path: Path, off: dict[str, float]) -> None:
    source = save_ours(base, tmp_path / "branch")
    backbone = base.backbone(dataclasses.replace(source, **off))
    noise = initial_noise(latent_shape(backbone), [1])
    torch.testing.assert_close(sample(backbone.steered([LAYOUT]), noise), sample(backbone, noise), rtol=0, atol=0)


def test_features_are_added_where_the_branch_says(base: Published, tmp_path: Path) -> None:
    backbone = base.backbone(save_ours(base, tmp_path / "branch", placement="mid"))
    model: Any = backbone.branches[0].model
    seen = []
    for handle in ("up_blocks", "mid_block"):
        part: Any = getattr(backbone.unet, handle)
        part = part[0] if handle == "up_blocks" else part
        part.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    hidden = []
    backbone.unet.mid_block.register_forward_hook(  # pyright: ignore[reportOptionalMemberAccess]
        lambda module, args, output: hidden.append(output)
    )
    latents, t = initial_noise(latent_shape(backbone), [1]), torch.tensor([500])
    steered = backbone.steered([LAYOUT])
    steered.predict_noise(latents, t, backbone.encode_prompts(["a ball"]))
    features = model.finish(steered.inputs[0], t)
    features = torch.nn.functional.adaptive_avg_pool2d(features, hidden[0].shape[2:])
    expected = hidden[0] + cross_normalize(features, hidden[0])
    torch.testing.assert_close(seen[-1]["hidden_states"], expected)


def test_what_a_branch_changed_in_the_unet_is_added_to_its_weights(base: Published, tmp_path: Path) -> None:
    source = save_ours(base, tmp_path / "branch", to_out=True, sha256=folder_sha256(base.folder / "unet"))
    changed, plain = base.backbone(source), base.backbone()
    delta = changed.branches[0].to_out
    assert len(delta) == len(out_layers(plain.unet))
    before, after = plain.unet.state_dict(), changed.unet.state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight + delta.get(name, 0))


def test_a_copied_encoder_with_conditions_of_ours_is_one_folder_as_well(base: Published, tmp_path: Path) -> None:
    net: Any = ControlNetModel.from_unet(base.pipeline.unet, conditioning_channels=1 + 2 + NUM_SLOTS)
    save_branch(net, tmp_path / "net", BranchRecord(conditions=("depth", "ids")), {})
    backbone = base.backbone(BranchSource(folder=tmp_path / "net"))
    noise = initial_noise(latent_shape(backbone), [1])
    torch.testing.assert_close(sample(backbone.steered([LAYOUT]), noise), sample(backbone, noise))


def test_bad_branches_and_conditions_are_refused(base: Published, tmp_path: Path) -> None:
    source = save_ours(base, tmp_path / "branch")
    backbone = base.backbone(source)
    with pytest.raises(InputError, match="depth, ids was given canny"):
        backbone.steered([{"canny": LAYOUT["depth"]}])
    with pytest.raises(InputError, match="--branch"):
        base.backbone().steered([LAYOUT])
    with pytest.raises(InputError, match="say what it takes"):
        base.backbone(BranchSource(folder=base.folder / "net0"))
    with pytest.raises(InputError, match="ControlBranch or ControlNetModel"):
        base.backbone(BranchSource(folder=base.folder / "unet", condition="depth"))
    with pytest.raises(InputError, match="another UNet"):
        base.backbone(save_ours(base, tmp_path / "other", sha256="0" * 64))
    with pytest.raises(InputError, match="branch.json is missing"):
        (tmp_path / "branch" / "branch.json").unlink()
        base.backbone(source)
    with pytest.raises(InputError, match="3 pictures do not fit a batch of 4"):
        sample(backbone.steered([LAYOUT] * 3), initial_noise(latent_shape(backbone), [1, 2]))


def test_a_branch_is_named_on_one_line() -> None:
    found = BranchSource.parse("depth=models/net,weight=0.5,end=0.6")
    assert found == BranchSource(folder=Path("models/net"), condition="depth", weight=0.5, end=0.6)
    assert BranchSource.parse("mine") == BranchSource(folder=Path("mine"))
    for text in ("", "=net", "net,weight", "net,wait=1", "net,weight=x", "net,start=0.8,end=0.2"):
        with pytest.raises(InputError):
            BranchSource.parse(text)


# --- conditions -----------------------------------------------------------------------------------------------------


def test_inverse_depth_has_one_scale_and_is_zero_where_nothing_is() -> None:
    depth = torch.tensor([[0.5, 2.0], [torch.inf, 0.0]])
    torch.testing.assert_close(invert_depth(depth, 1.0), torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]))


def test_slots_tell_things_apart_and_an_order_moves_them() -> None:
    ids = torch.tensor([[0, 1], [3, 7]])
    found = slots_of(ids)
    assert found.sum(0).eq(1).all() and found[0, 0, 0] == found[1, 0, 1] == found[2, 1, 0] == found[3, 1, 1] == 1
    moved = slots_of(torch.tensor([[0, 1], [2, 3]]), order=[4, 0])
    assert moved[6, 1, 0] == moved[2, 1, 1] == 1 and moved.sum() == 4
    with pytest.raises(InputError, match="at most 6"):
        slots_of(torch.arange(10)[None])


def test_a_missing_condition_is_zero_and_others_are_brought_to_size() -> None:
    found = stack_conditions(("depth", "ids"), [{"depth": torch.tensor([[[0.2, 0.8]]])}], (2, 4))
    assert found.shape == (1, 9, 2, 4) and not found[:, 1:].any()
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.2, 0.2, 0.8, 0.8]))
    stretched = as_picture("depth", torch.tensor([[[0.2, 0.8]]]), (1, 2))
    torch.testing.assert_close(stretched, torch.tensor([[[0.0, 1.0]]]).expand(3, 1, 2))
