"""The page's server side, without a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from restage.regions.region import Region
from restage.view import ViewSession, open_scenes
from restage.view.serve import serving

pytest.importorskip("viser", reason="needs restage[view]")


@pytest.fixture
def page(run_folder: Path) -> Iterator[Any]:
    with serving(ViewSession(run_folder), port=18_280) as served:
        yield served.page


def test_what_the_handles_hold_stays_lifted_when_its_splats_are_sent_again(page: Any) -> None:
    session = page.session
    session.select(Region.of(session.before, (torch.arange(200) < 80).float(), by="hand"))
    page.controls.region.moves.value = True
    page.refresh()
    assert "lifted" in page.nodes.splats and len(page.controls.region.handles) == 2
    page.nodes.show_splats(session.shown.splats, marked=None)  # as another thread does at the end of an undo
    assert "lifted" not in page.nodes.splats
    page.controls.refresh()
    assert "lifted" in page.nodes.splats


def test_a_scene_that_was_made_meanwhile_is_shown_and_can_be_chosen(page: Any, run_folder: Path) -> None:
    shutil.copytree(run_folder / "scenes" / "tiny", run_folder / "scenes" / "new")
    page.session.scenes = open_scenes(run_folder)
    page.session.choose_scene("new")
    page.load_scene()
    assert page.session.scene.name == page.controls.scene.value == "new" and page.controls.scene.visible
    page.controls.scene.value = "tiny"
    assert page.session.scene.name == "tiny"
