from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from miniature.text_to_image import build_unet
from restage.diffusion.config import TrainingConfig
from restage.diffusion.training import LossParts, explicit_attention, read_metrics, train
from restage.records import InputError
from restage.run import threads
from restage.run.threads import limited_threads


def _tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 5, 192, generator=generator)


def test_explicit_attention_gives_what_fused_attention_gives_and_ends() -> None:
    torch.manual_seed(0)
    unet = build_unet(4)
    latents, text = _tensors()

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        unet.zero_grad()
        output = unet(latents, 10, encoder_hidden_states=text).sample
        output.square().mean().backward()
        found = unet.conv_in.weight.grad
        assert found is not None
        return output.detach(), found.clone()

    before = dict(unet.attn_processors)
    fused = gradient()
    with explicit_attention(unet) as num_changed:
        assert num_changed == len(before)
        assert set(unet.attn_processors.values()).isdisjoint(before.values())
        explicit = gradient()
    assert unet.attn_processors == before
    for one, other in zip(fused, explicit, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_explicit_attention_reaches_text_encoders_and_ends_after_an_error() -> None:
    config = CLIPTextConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    encoder = CLIPTextModel(config)
    with pytest.raises(RuntimeError, match="on purpose"), explicit_attention(encoder) as num_changed:
        assert num_changed >= 1 and encoder.config._attn_implementation == "eager"
        raise RuntimeError("on purpose")
    assert encoder.config._attn_implementation == "sdpa"


def test_explicit_attention_leaves_models_without_attention_alone() -> None:
    with explicit_attention(nn.Linear(2, 2)) as num_changed:
        assert num_changed == 0


@pytest.mark.slow
def test_compiled_training_learns_what_plain_training_learns(tmp_path: Path) -> None:
    inputs = torch.linspace(-1, 1, 32)[:, None]
    losses = {}
    for is_compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        names = list(model.state_dict())

        def loss_of(step: int, generator: torch.Generator, model: nn.Module = model) -> dict[str, torch.Tensor]:
            return {"square": (model(inputs) - inputs.square()).square().mean()}

        config = TrainingConfig(num_steps=30, learning_rate=1e-2, is_bf16=False, is_compiled=is_compiled)
        folder = tmp_path / str(is_compiled)
        list(train(model, loss_of, folder=folder, config=config))
        losses[is_compiled] = [row["loss"] for row in read_metrics(folder)]
        assert list(model.state_dict()) == names
        assert model._compiled_call_impl is None
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert losses[True][-1] < 0.7 * losses[True][0]


def test_a_training_with_another_seed_is_not_gone_on_with(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"square": model(torch.ones(4, 1)).square().mean()}

    list(train(model, loss_of, folder=tmp_path, config=TrainingConfig(num_steps=2, is_bf16=False)))
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(InputError, match="seed 0, not 1"):
        next(train(model, loss_of, folder=tmp_path, config=TrainingConfig(num_steps=4, seed=1, is_bf16=False)))
    assert (tmp_path / "state.pt").read_bytes() == before
    list(train(model, loss_of, folder=tmp_path, config=TrainingConfig(num_steps=4, is_bf16=False)))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def _train(folder: Path, num_steps: int = 2, *, made_from: str = "", width: int = 1, **settings: Any) -> None:
    model = nn.Linear(width, 1)

    def loss_of(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"square": model(torch.ones(4, width)).square().mean()}

    config = TrainingConfig(num_steps=num_steps, is_bf16=False, **settings)
    list(train(model, loss_of, folder=folder, config=config, made_from=made_from))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: _cut(folder / "state.pt"), "not readable as the state of this training; delete it"),
        (lambda folder: (folder / "state.pt").write_bytes(b""), "not readable as the state of this training"),
        (lambda folder: (folder / "state.pt").write_text("hello"), "not readable as the state of this training"),
        (lambda folder: torch.save([1, 2], folder / "state.pt"), "not readable as the state of this training"),
        (lambda folder: torch.save({"step": 1, "seed": 0}, folder / "state.pt"), "not readable as the state"),
        (lambda folder: (folder / "metrics.jsonl").write_text("{x}\n"), "metrics.jsonl line 1 is not readable as JSON"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"step": "x"}\n'), "metrics.jsonl line 1: "),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"loss": 1}\n'), "expected a step and the same losses"),
    ],
)
def test_a_damaged_training_is_refused_in_one_line(damage: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    _train(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError) as caught:
        _train(tmp_path, 4)
    (line,) = str(caught.value).splitlines()
    assert str(tmp_path) in line and words in line


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"learning_rate": 1.0}, "another config, start or pairs"),
        ({"batch_size": 3}, "another config, start or pairs"),
        ({"made_from": "other pairs"}, "another config, start or pairs"),
        ({"width": 2}, "not readable as the state of this training"),
        ({"num_steps": 1}, "holds a training of 2 steps, more than 1"),
    ],
)
def test_the_state_of_another_training_is_refused_in_one_line(
    other: dict[str, Any], words: str, tmp_path: Path
) -> None:
    _train(tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(InputError) as caught:
        _train(tmp_path, **{"num_steps": 4, **other})
    (line,) = str(caught.value).splitlines()
    assert str(tmp_path) in line and words in line
    assert (tmp_path / "state.pt").read_bytes() == before
    _train(tmp_path, 4, checkpoint_every_s=0.0)  # longer, and saved more often, it is the same
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_states_of_older_versions_which_name_no_training_are_gone_on_with(tmp_path: Path) -> None:
    _train(tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.pop("training").startswith("training-")
    torch.save(state, tmp_path / "state.pt")
    _train(tmp_path, 3, made_from="whatever")
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf])
def test_a_learning_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(InputError, match="learning rate above 0"):
        TrainingConfig(num_steps=1, learning_rate=rate)


def _train_in_parts(folder: Path, num_parts: int, num_threads: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Linear(1, 1).requires_grad_(False))

    def loss_of(step: int, generator: torch.Generator) -> LossParts:
        inputs = torch.randn(12, 3, generator=generator)

        def part(rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"square": (model(rows) - rows.prod(1, keepdim=True)).square().sum() / len(inputs)}

        return LossParts(tuple(partial(part, rows) for rows in inputs.chunk(num_parts)))

    with limited_threads(num_threads):
        list(train(model, loss_of, folder=folder, config=TrainingConfig(num_steps=5, learning_rate=1e-2)))
    return model.state_dict()


def test_a_batch_in_parts_trains_the_same_weights_with_any_number_of_threads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(threads._followed.watch, "free", lambda: 3.0)
    monkeypatch.setattr(threads, "num_usable_cores", lambda: 3)
    monkeypatch.setattr(threads, "LOOK_S", 0.0)
    one, two, three = (_train_in_parts(tmp_path / str(count), 4, count) for count in (1, 2, 3))
    whole = _train_in_parts(tmp_path / "whole", 1, 1)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])
        assert torch.equal(tensor, three[name])
        torch.testing.assert_close(tensor, whole[name], rtol=0.02, atol=2e-3)
