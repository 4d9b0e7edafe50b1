"""Views of hosts are put back and get masks; those of our own server come with theirs."""

import dataclasses
from pathlib import Path

import pytest
import torch

from restage.edit.editors import MenuEditor
from restage.edit.editors.endpoint import EndpointEditor
from restage.edit.editors.interface import EditorSource, ViewBatch
from restage.edit.editors.settled import SettledEditor
from restage.edit.job import asked_pictures
from restage.edit.methods import METHODS
from restage.edit.pictures import quantize
from restage.records import EditRequest, InputError
from restage.run.endpoint_config import EndpointConfig
from tests.edit.endpoint.fake_images import answer_bytes, encode
from tests.edit.endpoint.test_endpoint import OURS, models


def test_views_of_hosts_are_settled_and_those_of_our_own_server_are_not(server, tmp_path):
    config = EndpointConfig(base_url=server.url)
    menu_editor = MenuEditor(name="endpoint", model=Path("fake"), endpoint=config)
    settled = menu_editor.open(EditorSource(answers=tmp_path))
    assert isinstance(settled, SettledEditor) and settled.finds_masks
    with pytest.raises(InputError, match="cannot be told"):
        settled.prepare(asked_pictures(METHODS["idu"](), 40))  # what the editor inside says
    assert settled.remarks[-1].startswith("0 pictures were asked for")
    server.models = lambda: models("fake", **OURS, editor="grade")
    assert isinstance(menu_editor.open(EditorSource(answers=tmp_path)), EndpointEditor)
    server.models = lambda: models("fake", **OURS, editor="pipeline")  # whose masks are joined over all views here
    joined = menu_editor.open(EditorSource(answers=tmp_path))
    assert isinstance(joined, SettledEditor) and joined.finds_masks
    moved = dataclasses.replace(menu_editor, name="drifting-1-endpoint").open(EditorSource(answers=tmp_path))
    assert isinstance(moved, SettledEditor) and moved.finds_masks


def test_masks_are_found_where_the_server_sends_none(server, tmp_path):
    config = EndpointConfig(base_url=server.url, picture_size="own")
    editor = MenuEditor(name="endpoint", model=Path("fake"), endpoint=config).open(EditorSource(answers=tmp_path))
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(2, 3, 12, 12, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    views = quantize(0.3 + 0.3 * views)

    def paint(asked):
        pixels = asked.picture.copy()
        pixels[10:30, 14:34] = 255
        return answer_bytes(encode(pixels))

    server.answer = paint
    how = {"view_indices": (0, 1), "noise_level": 1.0, "seed": 0}
    request = EditRequest(instruction="paint a square", source_caption="", target_caption="")
    asked: list[tuple[list[int], tuple[int, ...]]] = []

    def join(places, masks):
        asked.append((list(places), tuple(masks.shape)))
        return masks

    edited = editor.edit(ViewBatch(views, views, request=request, join_masks=join, **how))
    truth = torch.zeros(48, 48)
    truth[10:30, 14:34] = 1
    both, either = ((edited.masks > 0.5) & (truth > 0.5)).sum(), ((edited.masks > 0.5) | (truth > 0.5)).sum()
    assert both / either > 0.8 and asked == [([0, 1], (2, 48, 48))]
