"""Models behind the server give what they give in one process, to the 8 bits of a file."""

import dataclasses

import pytest
import torch

from restage.edit.editors import MenuEditor
from restage.edit.editors.endpoint import open_endpoint
from restage.edit.editors.interface import EditorSource, ViewBatch
from restage.edit.pictures import quantize
from restage.records import EditRequest
from restage.run.endpoint_config import EndpointConfig
from restage.serve.served import PaintItem, open_served
from tests.serve.conftest import serving
from tests.tiny_models import write_tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_tiny_models(tmp_path_factory.mktemp("models"))


def batch_of(num_views):
    views = torch.rand(num_views, 3, 128, 128, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    request = EditRequest(instruction="make the cube blue", source_caption="a red cube", target_caption="a blue cube")
    return ViewBatch(
        views, views, request=request, view_indices=tuple(range(num_views)), noise_level=1.0, seed=3, noise_keys=None
    )


def test_a_served_model_edits_as_in_one_process(models, tmp_path):
    name = "edit_model"
    alone = MenuEditor(name=name, model=models / name).open(EditorSource())
    with serving(open_served(name, models / name, device="cpu"), port=18_400) as running:
        config = EndpointConfig(base_url=running.url, num_parallel=3)
        served = open_endpoint(EditorSource(endpoint=config, answers=tmp_path / "answers"))
        first = batch_of(3)
        # Renders that are edited again, from less noise, with noise of other views.
        again = dataclasses.replace(first, views=first.views.flip(0), noise_level=0.5, noise_keys=(0, 1, 0))
        for batch in (first, again):
            ours, theirs = alone.edit(batch), served.edit(batch)
            for one, other in ((ours.images, theirs.images), (ours.masks, theirs.masks)):
                # Batches of other sizes may round the last bit of a float to the other side of a level.
                assert float((quantize(one) - other).abs().max()) < 1.01 / 255
                assert float(((quantize(one) - other) != 0).float().mean()) < 0.001


def test_pictures_are_painted_from_captions_by_their_seeds(models):
    served = open_served("text_to_image", models / "text_to_image", device="cpu")
    items = [PaintItem("a red cube", 5), PaintItem("a red cube", 6)]
    both = served.work(items)
    assert both[0].image.shape == (3, 128, 128) and not torch.equal(both[0].image, both[1].image)
    assert torch.allclose(served.work(items[1:])[0].image, both[1].image, atol=1e-4)
    with serving(served, port=18_400) as running:
        answer = running.ask(
            "/v1/images/generations", b'{"prompt": "a red cube", "seed": 5}', Content_Type="application/json"
        )
        assert answer.status == 200 and len(answer.json["data"]) == 1
        refused = running.ask("/v1/images/generations", b'{"prompt": "a red cube", "size": "512x512"}')
        assert refused.status == 400 and "'size'" in refused.json["error"]["message"]
