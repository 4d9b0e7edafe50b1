"""An edited view goes along with every other one, as a second picture or in a grid."""

import numpy as np
import pytest
import torch

from restage.edit.editors.anchored import Anchor, follow_anchor
from restage.records import InputError
from tests.edit.endpoint.fake_images import answer_bytes, encode, invert, pixels_of
from tests.fake_server import fail


def test_an_anchor_goes_along_as_a_second_picture_and_is_paid_once(server, open_editor, batch):
    def answer(asked):
        first, *others = [pixels_of(one) for one in asked.files.get("image", asked.files.get("image[]", []))]
        return answer_bytes(encode(others[0] if others else 255 - first))

    server.answer = answer
    for _ in range(2):  # the second time all answers are on disk
        editor = follow_anchor(open_editor(), Anchor(5, batch.originals[1]), "5")
        edited = editor.edit(batch)
        negative = 1 - batch.originals[1]
        assert torch.allclose(edited.images, negative.expand_as(edited.images), atol=1e-6)
        assert editor.remarks[-1].startswith(f"{4 - editor.asker.num_kept} pictures were asked for")
    assert len(server.asked) == 4
    prompts = [asked.fields["prompt"] for asked in server.asked]
    assert prompts[0] == "make it negative"
    assert set(prompts[1:]) == {"make it negative. Apply the same change as in the second picture."}
    assert [len(asked.files.get("image[]", [])) for asked in server.asked] == [0, 2, 2, 2]


def test_a_model_of_one_picture_sees_the_anchor_in_a_grid(server, open_editor, batch):
    editor = follow_anchor(open_editor("dall-e-2"), Anchor(5, batch.originals[1]), "auto")
    edited = editor.edit(batch)
    assert torch.allclose(edited.images, 1 - batch.originals, atol=1e-6)
    assert sorted(asked.picture.shape for asked in server.asked) == [(16, 24, 3), *[(32, 48, 3)] * 3]
    grid = next(asked.picture for asked in server.asked if asked.picture.shape[0] == 32)
    first = (batch.originals[1].permute(1, 2, 0) * 255).round().numpy()
    assert np.array_equal(grid[:16], np.concatenate([first, 255 - first], axis=1))


def test_an_anchor_lies_in_its_picture_as_the_view_does(server, open_editor, batch):
    editor = follow_anchor(open_editor(picture_size="64x64"), Anchor(5, batch.originals[1]), "auto")
    editor.edit(batch)
    sizes = [pixels_of(one).shape for asked in server.asked for one in asked.files.get("image[]", [])]
    assert sizes == [(64, 64, 3)] * 6


def test_too_few_answers_end_an_anchored_edit_too(server, open_editor, batch):
    server.answer = lambda asked: fail(400, "no") if "image[]" in asked.files else invert(asked)
    editor = follow_anchor(open_editor(), Anchor(5, batch.originals[1]), "auto")
    with pytest.raises(InputError, match="too few views could be edited"):
        editor.edit(batch)
