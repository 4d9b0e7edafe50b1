"""What the seeds of the grammar's first edition gave on 2026-11-30, before there was a second one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from restage.records import canonical_json, content_id
from restage.world.capture import ring_cameras, sample_camera
from restage.world.config import WorldConfig
from restage.world.grammar import (
    caption_of,
    possible_kinds,
    prompt_pair_of,
    request_of,
    sample_description,
    sample_edit,
)
from restage.world.render import render_view
from restage.world.stage import edit_name, sample_scene

WORDS = {"train": "9b016006fac44f0f", "unseen": "1718023fda67810b"}
PICTURES = {0: "71b36d367d024de4", 3: "c06c2d70bda882e6", 4: "e1f233a8df70581e", 7: "21f34181b8be32ed"}


def short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def words_of(split: str) -> str:
    told = []
    for seed in range(80):
        description = sample_description(seed, split=split)
        for kind in possible_kinds(description):
            edit = sample_edit(description, seed, kind=kind, split=split)
            pair = prompt_pair_of(edit, seed)
            told.append([caption_of(description, seed), edit, pair, pair.id, request_of(edit, seed), edit_name(edit)])
    return short_hash(canonical_json(told).encode())


def picture_of(seed: int) -> str:
    """Hash of two views in 8 bits, of which another processor's last bits change nothing."""
    description = sample_description(seed)
    cameras = sample_camera(description, seed, size=64), ring_cameras(description, 3, seed=seed, size=64)[1]
    data = b""
    for camera in cameras:
        view = render_view(description, camera)
        data += (view.image * 255 + 0.5).astype(np.uint8).tobytes() + view.object_ids.astype(np.uint8).tobytes()
    return short_hash(data)


@pytest.mark.parametrize("split", WORDS)
def test_old_seeds_keep_their_scenes_edits_and_words(split: str) -> None:
    assert words_of(split) == WORDS[split]


@pytest.mark.parametrize("seed", PICTURES)
def test_old_seeds_keep_their_pictures(seed: int) -> None:
    assert picture_of(seed) == PICTURES[seed]


def test_a_config_that_says_nothing_of_editions_keeps_its_id_and_its_scenes() -> None:
    config = WorldConfig()
    assert content_id("config", config) == "config-0c73279ec82038a8"
    _, edits = sample_scene(config, name="scene-000", seed=0)
    assert [edit_name(edit) for edit in edits] == ["recolour-b63768", "ground-af510a"]
