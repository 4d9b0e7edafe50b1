"""Folders of models that are broken in every way that is known: each ends in one line that names the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from restage.cli import run
from restage.compare.judges import load_dino
from restage.diffusion.backbone import load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.edit_models import load_edit_model
from restage.edit.editors import EditorSource, open_editor
from restage.prompts.rejects import TokenLimits
from restage.records import InputError, PromptPair
from restage.train.stage import load_start
from tests.tiny_models import write_tiny_models


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def models(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "models"))


def weights_in(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def cut(share: float) -> Callable[[Path], Any]:
    def cut_file(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return cut_file


def on_weights(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: change(weights_in(folder))


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def rewrite(folder: Path) -> None:
        path = weights_in(folder)
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return rewrite


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[max(tensors)] = torch.zeros(3, 5)


def rename(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"another.{name}"] = tensors.pop(name)


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def pickled(name: str) -> Callable[[Path], Any]:
    def pickle(folder: Path) -> None:
        weights_in(folder).unlink()
        torch.save(Bomb(), folder / name)

    return pickle


def shard(folder: Path) -> dict[str, str]:
    """Divide weights into two files with an index, as published models of more than a few GB are."""
    path = weights_in(folder)
    tensors = load_file(path)
    names, stem = sorted(tensors), path.name.removesuffix(".safetensors")
    placed = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    path.unlink()
    write_index(folder, stem, {"metadata": {"total_size": 1}, "weight_map": placed})
    return placed


def write_index(folder: Path, stem: str, value: Any) -> None:
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(value))


def sharded(change: Callable[[Path, dict[str, str]], Any]) -> Callable[[Path], Any]:
    return lambda folder: change(folder, shard(folder))


def reindex(value: Any) -> Callable[[Path, dict[str, str]], Any]:
    def change(folder: Path, placed: dict[str, str]) -> None:
        (index,) = folder.glob("*.index.json")
        index.write_text(json.dumps(value(placed) if callable(value) else value))

    return change


def swap_shards(folder: Path, placed: dict[str, str]) -> None:
    first, second = sorted(set(placed.values()))
    shutil.copy(folder / first, folder / second)


WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (on_weights(cut(0)), "not whole"),
    "half": (on_weights(cut(0.5)), "not whole"),
    "all but the end": (on_weights(cut(0.999)), "not whole"),
    "a header that never ends": (on_weights(lambda path: path.write_bytes(b"\xff" * 64)), "not whole"),
    "a pointer of Git LFS": (
        on_weights(lambda path: path.write_text("version https://git-lfs")),
        "not whole",
    ),
    "no file": (on_weights(Path.unlink), "holds no weights"),
    "pickled .bin": (pickled("pytorch_model.bin"), "pickled weights alone (pytorch_model.bin)"),
    "pickled .pt": (pickled("model.pt"), "pickled weights alone (model.pt)"),
    "pickled .ckpt": (pickled("model.ckpt"), "convert them: python -c"),
    "a tensor is missing": (with_tensors(lambda tensors: tensors.pop(max(tensors))), "lacks 1 of the model's weights"),
    "all are missing": (with_tensors(rename), "of the model's weights, such as"),
    "a tensor of another shape": (with_tensors(reshape), "shape"),
    "a shard is missing": (
        sharded(lambda folder, placed: (folder / min(placed.values())).unlink()),
        "which is not there",
    ),
    "half a shard": (sharded(lambda folder, placed: cut(0.5)(folder / max(placed.values()))), "not whole"),
    "a shard for another": (sharded(swap_shards), "lacks"),
    "a shard outside": (
        sharded(reindex(lambda placed: {"weight_map": dict.fromkeys(placed, "../x.safetensors")})),
        "'../x.safetensors', which is not there",
    ),
    "an index without files": (sharded(reindex({})), "weight_map"),
    "an index of numbers": (sharded(reindex({"weight_map": {"a": 3}})), "expected str, got int"),
    "an index that is a list": (sharded(reindex([])), "got array"),
}

PARTS: dict[str, Callable[[Path], Any]] = {
    "text_to_image/unet": lambda models: load_backbone(models / "text_to_image"),
    "text_to_image/text_encoder": lambda models: load_start(models / "text_to_image"),
    "text_to_image/vae": lambda models: open_editor("text_to_image", EditorSource(model=models / "text_to_image")),
    "clip": lambda models: load_clip(models / "clip"),
    "edit_model/unet": lambda models: open_editor("edit_model", EditorSource(model=models / "edit_model")),
}


def refusal(open_it: Callable[[Any], Any], models: Any) -> str:
    """Open broken models; return the error, which is one line."""
    with pytest.raises(InputError) as caught:
        open_it(models)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_broken_weights_are_refused_in_one_line(
    name: str, part: str, models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(models)
    change, words = WEIGHTS[name]
    change(models / part)
    line = refusal(PARTS[part], models)
    assert str(models / part) in line and words in line
    assert not (models / "exploded").exists()
    assert capfd.readouterr() == ("", "")  # the libraries' own tables and warnings stay out of it


def in_json(name: str, **changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**value, **changes}))

    return change


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


CONFIGS: list[tuple[str, Callable[[Path], Any], str]] = [
    *((part, lambda folder: (folder / "config.json").unlink(), "config.json") for part in PARTS),
    *((part, text("config.json", "{"), "config.json is not readable as JSON") for part in PARTS),
    *((part, text("config.json", "[]"), "expected object, got array") for part in PARTS),
    *(
        (part, in_json("config.json", _class_name="UNet1DModel", model_type="bert", architectures=["Bert"]), "'")
        for part in PARTS
    ),
    *((part, in_json("config.json", _class_name=["x"], model_type=["x"]), "expected str, got array") for part in PARTS),
    ("text_to_image/unet", in_json("config.json", in_channels="four"), "in_channels: expected int, got str"),
    ("text_to_image/unet", in_json("config.json", sample_size=None), "sample_size: expected int | array, got null"),
    ("text_to_image/unet", in_json("config.json", cross_attention_dim=-3), "cross_attention_dim: expected int >= 1"),
    ("text_to_image/unet", in_json("config.json", down_block_types=["Nothing"] * 2), "unet cannot be loaded"),
    ("text_to_image/unet", in_json("config.json", block_out_channels=[8, 16]), "unet"),
    ("text_to_image/unet", in_json("config.json", norm_num_groups="x"), "unet cannot be loaded"),
    ("text_to_image/vae", in_json("config.json", scaling_factor="x"), "scaling_factor: expected float, got str"),
    ("text_to_image/vae", in_json("config.json", latent_channels=3), "vae"),
    ("text_to_image/text_encoder", in_json("config.json", hidden_size=24), "text_encoder"),
    ("text_to_image/text_encoder", in_json("config.json", hidden_size=[1]), "hidden_size: expected int, got array"),
    ("text_to_image/text_encoder", in_json("config.json", num_hidden_layers="x"), "text_encoder cannot be loaded"),
    ("text_to_image/text_encoder", in_json("config.json", hidden_act="x"), "text_encoder cannot be loaded"),
    ("clip", in_json("config.json", text_config=3), "text_config: expected object, got int"),
    ("clip", in_json("config.json", vision_config={"hidden_size": "x"}), "clip cannot be loaded"),
    ("clip", text("preprocessor_config.json", '{"image_mean": [0.5]}'), "image_mean: expected array of length 3"),
    ("clip", text("preprocessor_config.json", '{"image_std": [1, 0, 1]}'), "image_std"),
    ("text_to_image/tokenizer", text("tokenizer.json", ""), "tokenizer cannot be loaded"),
    ("text_to_image/tokenizer", text("tokenizer.json", "[]"), "tokenizer cannot be loaded"),
    ("text_to_image/tokenizer", lambda folder: cut(0.5)(folder / "tokenizer.json"), "tokenizer cannot be loaded"),
    ("text_to_image/tokenizer", lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
    ("text_to_image/tokenizer", lambda folder: shutil.rmtree(folder), "tokenizer does not exist"),
    ("text_to_image/tokenizer", text("tokenizer_config.json", "{"), "tokenizer cannot be loaded"),
    ("text_to_image/tokenizer", in_json("tokenizer_config.json", model_max_length="x"), "model_max_length of 1 to"),
    ("text_to_image/tokenizer", in_json("tokenizer_config.json", model_max_length=500), "model_max_length of 1 to"),
    ("text_to_image/tokenizer", lambda folder: (folder / "tokenizer_config.json").unlink(), "model_max_length"),
    ("clip", lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
    ("clip", in_json("config.json", text_config={"vocab_size": 5}), "clip"),
    ("text_to_image/scheduler", text("scheduler_config.json", "3"), "expected object, got int"),
    ("text_to_image/scheduler", in_json("scheduler_config.json", num_train_timesteps="x"), "num_train_timesteps"),
    ("text_to_image/scheduler", in_json("scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps"),
    ("text_to_image/scheduler", in_json("scheduler_config.json", trained_betas=["a"]), "trained_betas"),
    ("text_to_image/scheduler", in_json("scheduler_config.json", trained_betas=[2.0, 3.0]), "check the betas"),
    ("text_to_image/scheduler", in_json("scheduler_config.json", beta_schedule="x"), "beta_schedule must be"),
    ("edit_model", text("edit_model.json", "[]"), "expected object, got array"),
    ("edit_model", in_json("edit_model.json", guidance="strong"), "guidance: expected object, got str"),
    ("edit_model", in_json("edit_model.json", condition_scale="x"), "condition_scale: expected float"),
    ("edit_model", in_json("edit_model.json", text_to_image="../nowhere"), "nowhere"),
    ("edit_model", lambda folder: shutil.rmtree(folder / "unet"), "unet/config.json is missing"),
]


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_broken_configs_are_refused_in_one_line(number: int, models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part, change, words = CONFIGS[number]
    change(models / part)
    of_model = {"clip": PARTS["clip"], "edit_model": lambda models: load_edit_model(models / "edit_model")}
    line = refusal(PARTS.get(part) or of_model.get(part) or PARTS["text_to_image/unet"], models)
    assert str(models / part.split("/")[0]) in line and words in line
    assert capfd.readouterr() == ("", "")


def test_shards_that_are_all_there_give_the_model_of_one_file(models: Path) -> None:
    before = load_backbone(models / "text_to_image")
    for part in ("unet", "text_encoder", "vae"):
        shard(models / "text_to_image" / part)
    after = load_backbone(models / "text_to_image")
    for part in ("unet", "text_encoder", "vae"):
        old, new = (getattr(model, part).state_dict() for model in (before, after))
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_the_line_about_pickled_weights_says_how_to_convert_them(part: str, models: Path) -> None:
    folder = models / "text_to_image" / part
    before, path = load_backbone(models / "text_to_image"), weights_in(folder)
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(path), folder / name)
    path.unlink()
    line = refusal(lambda models: load_backbone(models / "text_to_image"), models)
    exec(line.split('python -c "')[1].removesuffix('"'), {})
    old, new = (getattr(model, part).state_dict() for model in (before, load_backbone(models / "text_to_image")))
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


def test_a_model_in_one_file_is_named_with_how_to_convert_it(tmp_path: Path) -> None:
    torch.save(Bomb(), tmp_path / "v1-5.ckpt")
    for folder in (tmp_path, tmp_path / "v1-5.ckpt"):
        line = refusal(load_backbone, folder)
        assert "v1-5.ckpt" in line and "from_single_file" in line
    assert not (tmp_path / "exploded").exists()


def test_tokens_without_an_embedding_are_refused(models: Path) -> None:
    path = models / "clip" / "tokenizer.json"
    content = json.loads(path.read_text())
    known = len(content["model"]["vocab"])
    content["model"]["vocab"] |= {f"more{number}": known + number for number in range(9)}
    path.write_text(json.dumps(content))
    assert f"the tokenizer has {known + 9} tokens, the text encoder knows {known}" in refusal(PARTS["clip"], models)


def test_a_broken_tokenizer_is_named_when_prompts_are_counted(models: Path) -> None:
    cut(0.5)(models / "clip" / "tokenizer.json")
    pair = PromptPair(source="red " * 90, target="x", instruction="x", kind="recolour")
    assert "tokenizer.json is not readable as a tokenizer" in refusal(TokenLimits([models / "clip"]).find, pair)


def test_a_dino_may_lack_the_pooling_that_it_never_had_and_nothing_else(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    load_dino(tmp_path)
    with_tensors(lambda tensors: tensors.pop("layernorm.weight"))(tmp_path)
    assert "lacks 1 of the model's weights, such as layernorm.weight" in refusal(load_dino, tmp_path)


def test_a_command_with_a_broken_model_ends_with_one_line_and_2(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(0.5)(weights_in(models / "clip"))
    assert run(["calibrate", str(models / "clip")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(models / "clip" / "model.safetensors") in line and "not whole" in line
