from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.controls import (
    CONTROLS,
    held_out_edits,
    layout_kept,
    measure,
    names_in_order,
    open_folder,
    size_is_right,
    summarize,
)
from miniature.probe import Probe
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.clip import Clip, load_clip
from restage.diffusion.config import SamplerConfig
from restage.records import InputError
from restage.world.grammar import KINDS, Description, Edit, SceneObject
from tests.tiny_models import write_tiny_models

CUBE, BALL = SceneObject(kind="cube", color="red"), SceneObject(kind="ball", color="blue", x=1.5)
CONE = dataclasses.replace(CUBE, kind="cone")
SCENE = Description(objects=(CUBE, BALL), ground="sand", time="night")


def edit_to(*objects: SceneObject, kind: str) -> Edit:
    return Edit(kind=kind, instruction="", before=SCENE, after=dataclasses.replace(SCENE, objects=objects))


def cells(*boxes: tuple[str, slice]) -> Tensor:
    """A map of 16 x 16 cells with objects of full height in some columns."""
    found = torch.zeros(16, 16, dtype=torch.long)
    for kind, columns in boxes:
        found[4:12, columns] = FIRST_KIND_CLASS + KINDS.index(kind)
    return found


CUBE_AND_BALL = cells(("cube", slice(1, 5)), ("ball", slice(9, 13)))


def test_a_reshaped_object_in_its_place_keeps_the_layout() -> None:
    edited = cells(("cone", slice(2, 6)), ("ball", slice(9, 13)))
    assert layout_kept(edit_to(CONE, BALL, kind="reshape"), CUBE_AND_BALL, edited)


def test_a_reshaped_object_elsewhere_does_not() -> None:
    edited = cells(("cone", slice(13, 16)), ("ball", slice(9, 13)))
    assert not layout_kept(edit_to(CONE, BALL, kind="reshape"), CUBE_AND_BALL, edited)


def test_an_object_that_is_not_edited_and_moves_does_not_keep_the_layout() -> None:
    edited = cells(("cone", slice(1, 5)), ("ball", slice(11, 15)))
    assert not layout_kept(edit_to(CONE, BALL, kind="reshape"), CUBE_AND_BALL, edited)


def test_a_removed_object_leaves_the_layout_of_the_others() -> None:
    edit = edit_to(BALL, kind="remove")
    assert layout_kept(edit, CUBE_AND_BALL, cells(("ball", slice(9, 13))))
    assert not layout_kept(edit, CUBE_AND_BALL, cells(("ball", slice(2, 6))))


def test_an_added_object_may_stand_before_another() -> None:
    edit = edit_to(CUBE, BALL, SceneObject(kind="tree", color="green"), kind="add")
    edited = cells(("cube", slice(1, 5)), ("ball", slice(9, 13)), ("tree", slice(12, 15)))
    assert layout_kept(edit, CUBE_AND_BALL, edited)


@pytest.mark.parametrize(("size", "columns", "is_right"), [("small", 2, True), ("small", 4, False), ("big", 6, True)])
def test_a_resized_object_has_to_take_other_room(size: str, columns: int, is_right: bool) -> None:
    edit = edit_to(dataclasses.replace(CUBE, size=size), BALL, kind="resize")
    edited = cells(("cube", slice(1, 1 + columns)), ("ball", slice(9, 13)))
    assert size_is_right(edit, CUBE_AND_BALL, edited) == is_right


def test_sizes_of_other_edits_are_not_looked_at() -> None:
    assert size_is_right(edit_to(CONE, BALL, kind="reshape"), CUBE_AND_BALL, CUBE_AND_BALL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Clip, Probe]:
    folder = write_tiny_models(tmp_path_factory.mktemp("models"))
    return load_backbone(folder / "text_to_image"), load_clip(folder / "clip"), Probe(widths=(8, 8, 8)).eval()


@pytest.mark.parametrize("names", [["blend only, backwards"], ["blend only, backwards", "none"]])
def test_every_choice_of_controls_is_measured(models: tuple[Backbone, Clip, Probe], names: list[str]) -> None:
    rows, pictures = measure(
        models,
        held_out_edits("add", 2),
        {name: CONTROLS[name] for name in names},
        guidance=3.0,
        sampler=SamplerConfig(num_steps=2),
    )
    assert [row["control"] for row in rows] == names_in_order(names) * 2
    assert pictures.shape == (2, 1 + len(names), 3, 128, 128)


def test_good_pairs_are_counted_among_all_and_right_edits_among_right_sources() -> None:
    names = ("accepted", "source_right", "edit_right", "layout_kept")
    verdicts = ["yyyy", "ynyy", "nyny", "yyyn"]
    found = summarize([{name: x == "y" for name, x in zip(names, row, strict=True)} for row in verdicts])
    assert found["accepted"] == 0.75
    assert found["good"] == found["accepted_and_good"] == 0.25
    assert found["good_if_accepted"] == 0.333
    assert found["edit_right"] == found["layout_kept"] == found["accepted_and_right"] == 0.667


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    open_folder(tmp_path / "rows", {"steps": 14})
    open_folder(tmp_path / "rows", {"steps": 14})
    with pytest.raises(InputError, match="choose another --folder"):
        open_folder(tmp_path / "rows", {"steps": 20})
