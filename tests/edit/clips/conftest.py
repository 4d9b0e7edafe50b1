from __future__ import annotations

from pathlib import Path

import pytest

from restage.records import EditRequest
from restage.world.clips import sample_clip, sample_clip_edits, write_clip, write_clip_truth
from restage.world.grammar import sample_description

NUM_FRAMES = 5


@pytest.fixture(scope="session")
def world_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EditRequest]:
    """A small clip of the world with the truth of a new ground, and what is asked for."""
    folder = tmp_path_factory.mktemp("clips") / "tiny"
    scene = sample_description(3, split="all")
    clip = sample_clip(3, motion="still", moves_camera=True, num_frames=NUM_FRAMES, size=48, scene=scene)
    write_clip(clip, folder)
    (edit,) = sample_clip_edits(clip, ["ground"], 3, edition=1)
    write_clip_truth(clip, edit, folder)
    return folder, EditRequest(instruction=edit.instruction, source_caption="", target_caption="")
