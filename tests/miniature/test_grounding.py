from __future__ import annotations

import pytest
import torch
from diffusers.models import UNet2DModel

from miniature.grounding import grounding_loss, watched, word_targets
from miniature.text_to_image import build_unet
from miniature.tokenizer import MAX_TOKENS
from restage.world.description import Description, SceneObject
from tests.tiny_models import tokenizer_of_the_world


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of_the_world()


def test_attention_on_the_object_costs_nothing_and_beside_it_one() -> None:
    pixels = torch.zeros(1, 16)
    pixels[0, :4] = 1
    tokens = torch.tensor([[0.0, 1.0]])
    for inside in (True, False):
        attention = torch.zeros(1, 16, 2)
        attention[0, slice(0, 4) if inside else slice(4, 16), 1] = 0.5
        loss = grounding_loss([attention], torch.tensor([0]), tokens, pixels, torch.ones(1))
        assert float(loss) == pytest.approx(0.0 if inside else 1.0)


def test_words_look_at_their_own_object(tokenizer) -> None:
    objects = (SceneObject(kind="cube", color="red"), SceneObject(kind="ball", color="blue", x=1.0))
    description = Description(objects=objects, ground="sand", time="noon")
    ids = torch.ones(1, 4, 4, dtype=torch.uint8)
    ids[0, 0], ids[0, 1] = 2, 3
    caption = "a red cube and a blue ball on sand at noon"
    rows, tokens, regions = word_targets(tokenizer, [caption, ""], [description] * 2, torch.cat([ids, ids]))
    assert rows.tolist() == [0] * 5
    assert regions[:, :4].sum(1).tolist() == [4, 4, 0, 0, 0]
    assert regions[2].reshape(4, 4)[1].sum() == 4 and regions[4].reshape(4, 4)[2:].sum() == 8
    assert torch.allclose(tokens.sum(1), torch.ones(5))


def test_words_of_looks_go_to_their_own_object_and_those_of_places_to_none(tokenizer) -> None:
    cube = SceneObject(kind="cube", color="red", size="big", pattern="striped", second_color="white")
    objects = (
        cube,
        SceneObject(kind="ball", color="white", size="big", x=1.0),
        SceneObject(kind="cone", color="#345678"),
    )
    scene = Description(objects=objects, ground="snow", time="noon")
    ids = torch.arange(16, dtype=torch.uint8).view(1, 4, 4) % 5  # sky, ground and the three objects
    caption = "at noon, a cone and a big white ball next to a big red and white striped cube on snow"
    rows, tokens, regions = word_targets(tokenizer, [caption], [scene], ids)
    offsets = tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
    found = []
    for mask, region in zip(tokens, regions, strict=True):
        spans = [offsets[i] for i in mask.nonzero()[:, 0].tolist()]
        assert mask[mask > 0].tolist() == pytest.approx([1 / len(spans)] * len(spans))
        found.append((caption[spans[0][0] : spans[-1][1]], spans[0][0], ids.flatten()[region.nonzero()[0]].item()))
    assert [(word, owner) for word, _, owner in found] == [
        *((word, 2) for word in ("big", "red", "white", "striped", "cube")),
        *((word, 3) for word in ("big", "white", "ball")),
        *(("cone", 4), ("snow", 1)),
    ]
    assert [start for word, start, owner in found if word == "big" and owner == 3] == [caption.index("big white ball")]
    assert rows.tolist() == [0] * len(found)


def test_a_batch_without_captions_grounds_nothing(tokenizer) -> None:
    description = Description(objects=(SceneObject(kind="cube", color="red"),), ground="sand", time="noon")
    words = word_targets(tokenizer, ["", ""], [description] * 2, torch.ones(2, 4, 4, dtype=torch.uint8))
    maps = torch.full((2, 16, MAX_TOKENS), 1 / MAX_TOKENS, requires_grad=True)
    loss = grounding_loss([maps], *words, torch.ones(2))
    loss.backward()
    assert float(loss.detach()) == 0 and maps.grad is not None and not maps.grad.any()


def test_watching_a_unet_does_not_change_what_it_predicts_and_ends() -> None:
    torch.manual_seed(0)
    unet = build_unet(4).eval()
    before = unet.attn_processors
    inputs, text = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 192)
    with torch.no_grad():
        plain = unet(inputs, 10, encoder_hidden_states=text).sample
        with watched(unet, 16) as shares:
            seen = unet(inputs, 10, encoder_hidden_states=text).sample
    torch.testing.assert_close(plain, seen)
    assert all(torch.allclose(maps.sum(-1), torch.ones(1, 256)) for maps in shares.maps)
    assert unet.attn_processors == before


def test_a_unet_without_cross_attention_cannot_be_watched() -> None:
    unet = UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    with pytest.raises(RuntimeError, match="no cross attention"), watched(unet, 16):
        pass
