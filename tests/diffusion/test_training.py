from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from miniature.text_to_image import build_unet
from restage.diffusion.training import TrainingConfig, explicit_attention, read_metrics, train
from restage.records import InputError


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
