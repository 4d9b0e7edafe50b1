import pytest
import torch

from restage.diffusion.attention import attention_layers
from restage.diffusion.backbone import load_backbone
from restage.records import InputError
from restage.regions.attention_masks import attention_masks
from restage.run.models import models_in
from restage.world.capture import make_truth, sample_camera
from restage.world.grammar import caption_of, sample_description, sample_edit
from restage.world.render import render_view


def test_a_word_is_found_where_its_thing_is_and_attention_is_left_as_it_was():
    backbone = load_backbone(models_in().text_to_image)
    before = [layer.processor for layer in attention_layers(backbone.unet)]
    inside, outside = [], []
    for seed in range(3):
        description = sample_description(seed, num_objects=1)
        camera = sample_camera(description, seed)
        image = torch.from_numpy(render_view(description, camera).image)[None]
        edit = sample_edit(description, seed, kind="recolour")
        thing = make_truth(edit, camera).masks[0] > 0
        caption = caption_of(description, seed)
        mask = attention_masks(backbone, image, caption, [description.objects[0].kind])[0]
        assert mask.shape == (128, 128) and float(mask.max()) == pytest.approx(1)
        inside.append(float(mask[thing].mean()))
        outside.append(float(mask[~thing].mean()))
    assert min(inside) > 0.3 and max(outside) < 0.1
    assert [layer.processor for layer in attention_layers(backbone.unet)] == before
    with pytest.raises(InputError, match="got none"):
        attention_masks(backbone, image, caption, [])
