from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from restage.records import InputError
from restage.train import examples as module
from restage.train.chunks import StoredRows
from restage.train.examples import LEAVE_ALONE, Examples, can_be_mirrored, encode_examples
from tests.train.tiny import CHANNELS, SIZE, tiny_backbone, tiny_pair


def encode(pairs, folder: Path, backbone, **options) -> Examples:
    generator = encode_examples(pairs, backbone, folder, **options)
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def make_pairs():
    return [
        tiny_pair(0),
        tiny_pair(1, instruction="add a ball on the left", kind="add"),
        tiny_pair(2, instruction="make it bigger", kind="resize"),
        tiny_pair(3),
        tiny_pair(4, instruction="make it night", kind="time"),
    ]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SIZE", 2)


def test_examples_hold_latents_masks_and_texts_of_each_pair_and_its_mirror_image(backbone, tmp_path, small_chunks):
    pairs = make_pairs()
    examples = encode(pairs, tmp_path, backbone)
    assert examples.num_pairs == 5 and len(examples.source) == 9
    all_rows = torch.arange(9)
    sources, edited_ones, masks = examples.source[all_rows], examples.edited[all_rows], examples.masks[all_rows]
    assert sources.shape == edited_ones.shape == (9, CHANNELS, SIZE // 8, SIZE // 8)
    texts = examples.texts[examples.text]
    for row in range(9):
        partner = int(examples.mirrored[row])
        pair = pairs[min(row, partner)]
        assert int(examples.mirrored[partner]) == row
        is_image = row >= examples.num_pairs
        source, edited, mask = (item.flip(-1) if is_image else item for item in (pair.source, pair.edited, pair.mask))
        for stored, picture in ((sources, source), (edited_ones, edited)):
            expected = backbone.encode_images(picture[None])[0]
            torch.testing.assert_close(stored[row].float(), expected, rtol=2e-3, atol=2e-3)
        pooled = torch.nn.functional.avg_pool2d(mask[None, None], 8)[0, 0]
        torch.testing.assert_close(masks[row].float(), pooled, rtol=0, atol=1e-3)
        expected = backbone.encode_text([pair.prompt.instruction])[0]
        torch.testing.assert_close(texts[row].float(), expected, rtol=2e-3, atol=2e-3)
    assert int(examples.mirrored[1]) == 1  # it names a side


def test_the_first_texts_are_the_empty_one_and_those_that_leave_alone(backbone, tmp_path):
    examples = encode(make_pairs(), tmp_path, backbone)
    expected = backbone.encode_text(["", *LEAVE_ALONE])
    found = examples.texts[torch.arange(len(expected))]
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)
    assert examples.leave_alone == (1, 2, 3, 4)


def test_only_edits_that_ask_for_a_state_are_settled_by_themselves(backbone, tmp_path):
    examples = encode(make_pairs(), tmp_path, backbone, mirror=False)
    assert len(examples.source) == 5
    is_settled = (examples.settled_text >= 0).tolist()
    assert is_settled == [True, False, False, True, True]
    assert examples.settled_text[0] == examples.text[0]


def test_ways_back_have_their_own_texts(backbone, tmp_path):
    pairs = [
        tiny_pair(0),
        tiny_pair(1, instruction="add a ball", kind="add", undo="remove the ball"),
        tiny_pair(2, instruction="remove the ball", kind="remove", undo="add a ball"),
        tiny_pair(3, undo="put it back on the left"),
    ]
    examples = encode(pairs, tmp_path, backbone)
    assert len(examples.source) == 7 and int(examples.mirrored[3]) == 3  # the last one names a side
    undo, text = examples.undo_text.tolist(), examples.text.tolist()
    assert undo[0] == -1 and (undo[1], undo[2]) == (text[2], text[1])
    expected = backbone.encode_text(["put it back on the left"])[0]
    torch.testing.assert_close(examples.texts[examples.undo_text[3:4]][0].float(), expected, rtol=2e-3, atol=2e-3)
    assert examples.settled_undo.tolist()[:4] == [-1, undo[1], -1, undo[3]]
    for row, image in enumerate(examples.mirrored.tolist()):
        assert undo[row] == undo[image]


def test_what_was_encoded_before_is_read_and_gives_the_same(backbone, tmp_path, small_chunks, monkeypatch):
    first = encode(make_pairs(), tmp_path, backbone)
    (sorted(tmp_path.glob("latents-*"))[0]).unlink()  # as if killed before this one was written
    calls = []
    encode_images = type(backbone).encode_images
    monkeypatch.setattr(
        type(backbone), "encode_images", lambda self, images: calls.append(len(images)) or encode_images(self, images)
    )
    second = encode(make_pairs(), tmp_path, backbone)
    assert 0 < sum(calls) <= 8
    for field in dataclasses.fields(Examples):
        old, new = getattr(first, field.name), getattr(second, field.name)
        if isinstance(old, StoredRows):
            old, new = (stored[torch.arange(len(stored))] for stored in (old, new))
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new, field.name


def test_other_pictures_or_another_model_are_encoded_anew(backbone, tmp_path):
    encode([tiny_pair(0)], tmp_path, backbone)
    encode([tiny_pair(1)], tmp_path, backbone)
    assert len(list(tmp_path.glob("latents-*"))) == 2
    other = tiny_backbone()
    with torch.no_grad():
        next(other.vae.parameters()).add_(0.1)
    encode([tiny_pair(1)], tmp_path, other)
    assert len(list(tmp_path.glob("latents-*"))) == 3


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("make the cube blue", True),
        ("put a ball to the right", False),
        ("Left cube red", False),
        ("make it bright", True),
    ],
)
def test_a_pair_is_mirrored_only_if_no_side_is_named(instruction: str, expected: bool):
    assert can_be_mirrored(tiny_pair(0, instruction=instruction).prompt) is expected


def test_no_pairs_and_pictures_of_different_sizes_are_refused(backbone, tmp_path, small_chunks):
    with pytest.raises(InputError, match="no accepted pairs"):
        encode([], tmp_path, backbone)
    pair = tiny_pair(0)
    with pytest.raises(InputError, match="one size"):
        encode([pair._replace(mask=torch.zeros(8, 8))], tmp_path, backbone)
    small = pair._replace(source=pair.source[:, :32], edited=pair.edited[:, :32], mask=pair.mask[:32])
    with pytest.raises(InputError, match="different sizes"):
        encode([pair, tiny_pair(1), small, small], tmp_path, backbone)


@pytest.mark.parametrize("kind", ["latents", "texts"])
def test_a_damaged_cache_is_refused_in_one_line_and_made_anew_once_deleted(kind: str, backbone, tmp_path: Path):
    source = encode(make_pairs(), tmp_path, backbone).source[torch.arange(9)]
    (path,) = tmp_path.glob(f"{kind}-*")
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    for content, words in (
        (b"", "not whole"),
        (whole[:-9], "not whole"),
        (b"\xff" * 99, "not whole"),
        (changed, "as it was"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            encode(make_pairs(), tmp_path, backbone)
        (line,) = str(caught.value).splitlines()
        assert str(path) in line and words in line and "delete it" in line
    path.unlink()
    again, rows = encode(make_pairs(), tmp_path, backbone), torch.arange(9)
    assert torch.equal(again.source[rows], source)
