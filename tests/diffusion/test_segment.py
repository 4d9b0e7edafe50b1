"""Segments of pictures from the UNet alone, on a tiny random model."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from restage.diffusion import segment
from restage.diffusion.backbone import load_backbone
from restage.diffusion.segment import SegmentConfig, coarse_segments, cut_masks, segment_images, sharpen_masks
from restage.records import InputError
from tests.diffusion.test_stable_diffusion_shapes import make_pipeline
from tests.diffusion.tiny import TinyBackbone, tiny_backbone, tiny_unet

CONFIG = SegmentConfig(num_segments=3, num_steps=2, batch_size=6)


class Segmentable(TinyBackbone):
    """The tiny model, with an encoder."""

    def encode_images(self, images):
        small = nn.functional.avg_pool2d(images, 8) * 4 - 2
        return torch.cat([small, small.mean(1, keepdim=True)], dim=1)


@pytest.fixture(scope="module")
def backbone():
    tiny = tiny_backbone()
    return Segmentable(tiny.tokenizer, tiny_unet(channels=(32, 64)), tiny.schedule, tiny.table)


@pytest.fixture(scope="module")
def images():
    """A dark square on a bright ground, and noise."""
    square = torch.full((3, 128, 128), 0.9)
    square[:, 40:88, 40:88] = 0.1
    return torch.stack([square, torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))])


def labels_of(backbone, images, **settings):
    *_, last = segment_images(backbone, images, config=dataclasses.replace(CONFIG, **settings))
    return last.labels


@pytest.fixture(scope="module")
def steps(backbone, images):
    return list(segment_images(backbone, images, config=CONFIG))


def test_the_same_pictures_get_the_same_labels(backbone, images, steps):
    first, again = steps[-1].labels, labels_of(backbone, images)
    assert torch.equal(first, again)
    assert first.shape == (2, 128, 128) and int(first.min()) >= 0 and int(first.max()) < 3


def test_labels_do_not_depend_on_the_batch_size(backbone, images, steps):
    whole = labels_of(backbone, images, batch_size=64)
    assert (whole == steps[-1].labels).float().mean() > 0.999  # near ties fall by the last bits


def test_progress_counts_segments(steps):
    assert [step.done for step in steps] == [3, 6] and {step.total for step in steps} == {6}


def test_each_segment_answers_most_where_it_lies(backbone, images, steps):
    """Of the pixels of a coarse segment, far more get its label than chance would give."""
    coarse, fine = coarse_segments(backbone, images, config=CONFIG), steps[-1].labels
    at_cells = nn.functional.interpolate(coarse[:, None].float(), scale_factor=8)[:, 0].long()
    assert (fine == at_cells).float().mean() > 0.6


def test_a_square_is_a_segment_of_its_own(backbone, images):
    config = dataclasses.replace(CONFIG, num_segments=2)
    labels = coarse_segments(backbone, images[:1], config=config)[0]
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[5:11, 5:11] = True
    assert len(labels[6:10, 6:10].unique()) == 1
    assert (labels[~inside] != labels[8, 8]).float().mean() > 0.7


def test_pushed_rows_attend_as_their_source_does(backbone, images):
    """Without a push, the edits of an image are the image itself: fixed attention and known errors change nothing."""
    pictures = segment._Pictures(backbone, images, ["", "a red cube"], CONFIG)
    _, layer = pictures.read()
    moved = pictures.answer(layer, torch.tensor([0, 1, 1]), torch.zeros(3, 256))
    assert moved.abs().max() < 1e-5


def test_the_model_is_as_it_was_afterwards(backbone, images):
    processors = dict(backbone.unet.attn_processors)
    labels_of(backbone, images[:1], num_segments=2)
    assert not any(module._forward_hooks for module in backbone.unet.modules())
    assert all(backbone.unet.attn_processors[name] is processor for name, processor in processors.items())


def test_pictures_may_be_wider_than_high(backbone, images):
    wide = torch.cat([images[:1], images[1:]], dim=3)
    labels = labels_of(backbone, wide, num_segments=2, num_steps=1)
    assert labels.shape == (1, 128, 256)
    assert coarse_segments(backbone, wide, config=CONFIG).shape == (1, 16, 32)


@pytest.mark.parametrize("signal", [0.1, 0.6224, 0.9983])
def test_noise_is_named_by_the_signal_that_it_leaves(backbone, images, signal):
    pictures = segment._Pictures(backbone, images, ["", ""], CONFIG)
    kept = backbone.schedule.alphas_cumprod[pictures.timestep_of(signal)]
    assert abs(float(kept) - signal) < 1e-3


@pytest.mark.parametrize(
    "settings",
    [{"num_segments": 0}, {"num_steps": 0}, {"batch_size": 1}, {"blur_px": -1.0}, {"strength": 0.0}, {"signal": 1.0}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        SegmentConfig(**settings)


@pytest.mark.parametrize("settings", [{"layer_size": 5}, {"feature_layer": 2}, {"modulated_layer": -3}])
def test_layers_that_are_not_there_are_refused(backbone, images, settings):
    with pytest.raises(InputError, match="cross-attention layers"):
        labels_of(backbone, images, **settings)


def test_captions_must_fit_the_pictures(backbone, images):
    with pytest.raises(InputError, match="one caption for each"):
        next(segment_images(backbone, images, captions=["one"], config=CONFIG))


def test_a_sharp_mask_is_the_union_of_the_segments_that_it_covers():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 2:6, 2:4], labels[0, 2:6, 4:6] = 1, 2
    masks = torch.zeros(1, 8, 8)
    masks[0, 1:6, 1:5] = 1  # all of 1, half of 2, less of the rest
    assert torch.equal(sharpen_masks(masks, labels), (labels == 1).float())
    assert torch.equal(sharpen_masks(masks, labels, min_share=0.4), (labels > 0).float())


def test_a_mask_that_covers_no_segment_stays_as_it_is():
    masks = torch.zeros(2, 8, 8)
    masks[0, :2, :2] = 1
    assert torch.equal(sharpen_masks(masks, torch.zeros(2, 8, 8, dtype=torch.long)), masks)


def test_sharpening_twice_is_sharpening_once():
    generator = np.random.default_rng(0)
    labels = torch.from_numpy(generator.integers(0, 5, (3, 16, 16)))
    once = sharpen_masks(torch.from_numpy(generator.uniform(size=(3, 16, 16))).float(), labels)
    assert torch.equal(sharpen_masks(once, labels), once)


def test_masks_of_another_size_are_refused():
    with pytest.raises((InputError, TypeCheckError), match="one size|annotation"):
        sharpen_masks(torch.zeros(1, 8, 8), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(InputError, match="min_share"):
        sharpen_masks(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long), min_share=1.0)


def test_a_mask_is_cut_down_to_the_thing_in_it(images):
    masks, truth = torch.zeros(1, 128, 128), torch.zeros(1, 128, 128)
    masks[0, 32:96, 24:96] = 1
    truth[0, 40:88, 40:88] = 1
    found = cut_masks(masks, images[:1])
    assert torch.equal(found, truth)
    assert torch.equal(cut_masks(masks, images[:1]), found)


def test_masks_that_cannot_be_cut_stay_as_they_are(images):
    masks = torch.stack([torch.zeros(128, 128), torch.ones(128, 128)])
    assert torch.equal(cut_masks(masks, images), masks)
    with pytest.raises((InputError, TypeCheckError), match="one size|annotation"):
        cut_masks(masks[:, :64], images)


@pytest.fixture(scope="module", params=["1", "XL"])
def stable_diffusion(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"stable-diffusion-{request.param}")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the pipeline, about its scheduler
        torch.manual_seed(0)
        make_pipeline(request.param).save_pretrained(folder)
    return dataclasses.replace(load_backbone(folder), has_autocast=False)


def test_it_works_on_the_shapes_of_stable_diffusion(stable_diffusion):
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    config = SegmentConfig(num_segments=2, num_steps=1, layer_size=8)
    steps = list(segment_images(stable_diffusion, image, captions=["a red ball"], config=config))
    assert steps[-1].labels.shape == (1, 128, 128)
    assert coarse_segments(stable_diffusion, image, config=config).shape == (1, 8, 8)
