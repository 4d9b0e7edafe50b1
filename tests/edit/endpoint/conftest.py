from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from restage.edit.editors.endpoint import EndpointEditor, open_endpoint
from restage.edit.editors.interface import EditorSource, ViewBatch
from restage.records import EditRequest
from restage.run import http
from restage.run.endpoint_config import EndpointConfig
from tests.edit.endpoint.fake_images import FakeImages, serve_images
from tests.fake_server import KEY


@pytest.fixture(scope="module")
def running() -> Iterator[FakeImages]:
    with serve_images() as fake:
        yield fake


@pytest.fixture
def server(running, monkeypatch) -> FakeImages:
    running.reset()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "RESTAGE_EDITOR_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.001)
    return running


@pytest.fixture
def batch() -> ViewBatch:
    """Four views of 24 x 16 pixels on the levels of a file, each with its number in its first pixel."""
    views = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0)).mul(255).round()
    views[:, :, 0, 0] = torch.arange(4)[:, None].float()
    views /= 255
    request = EditRequest(instruction="make it negative", source_caption="", target_caption="")
    return ViewBatch(
        views, views, request=request, view_indices=(3, 5, 8, 9), noise_level=1.0, seed=7, may_leave_out=True
    )


@pytest.fixture
def open_editor(server, tmp_path) -> Callable[..., EndpointEditor]:
    def open_it(model: str = "fake", options: tuple[str, ...] = (), **changes: Any) -> EndpointEditor:
        how = {"base_url": server.url, "picture_size": "own", "min_views": 2, "timeout_s": 30.0, "max_tries": 3}
        config = EndpointConfig(**{**how, **changes})
        source = EditorSource(
            model=Path(model) if model else None, endpoint=config, answers=tmp_path / "answers", options=options
        )
        return open_endpoint(source)

    return open_it
