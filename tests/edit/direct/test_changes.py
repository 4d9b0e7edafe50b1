"""Direct edits in a run are records like any other, build on each other, and can be undone without loss."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from restage.audit.records import check_pictures, check_records
from restage.compare.config import CompareConfig
from restage.compare.stage import find_results, run_compare
from restage.edit.config import EditConfig
from restage.edit.direct.changes import current_change, open_change, read_history, redo_change, undo_change
from restage.edit.direct.operations import Delete, Duplicate, Move, Operation, Recolor
from restage.edit.methods.remove import Remove
from restage.edit.pictures import write_mask
from restage.edit.single import EditChoice, StartingPoint, open_edit
from restage.edit.stage import list_units
from restage.records import EditRequest, InputError, read_json
from restage.regions.files import read_region, write_region
from restage.regions.region import Region
from restage.run.folder import RunFolder
from restage.run.reading import EditRecord
from restage.scenes.io.splat_files import read_splats, write_splats
from restage.view.scene import list_kept, load_scene
from tests.commands.shell import assert_is_bad_input, restage

CONFIG = EditConfig(methods=("nothing",), editors=("exact",))


class Place:
    """A run of the tiny scene, with its ball as a region."""

    def __init__(self, tiny_scene, folder: Path) -> None:
        self.run = RunFolder.open(folder, CONFIG, seed=0)
        self.scene = self.run.path / "scenes" / "tiny"
        tiny_scene.write(self.scene)
        self.splats = read_splats(self.scene / "splats.ply")
        self.ball = Region.of(self.splats, tiny_scene.is_ball.float(), by="hand")
        write_region(self.run.path, "tiny", "ball", self.ball)

    def change(self, operation: Operation, start: Path | None = None, **how) -> Path:
        point = None if start is None else StartingPoint.of(start)
        how = {"region": self.ball, "region_name": "ball", "start": point} | how
        opened = open_change(self.run, self.scene, operation, **how)
        list(opened.steps)
        return opened.folder


@pytest.fixture
def place(tiny_scene, tmp_path) -> Place:
    return Place(tiny_scene, tmp_path / "run")


def test_a_change_is_an_edit_with_a_record_that_says_what_was_done_to_what(place):
    folder = place.change(Recolor(towards="gold"))
    record = read_json(folder / "record.json", EditRecord)
    assert (record.method, record.editor, record.kind, record.status) == ("recolor", "none", "direct", "done")
    assert record.request is not None and record.request.instruction == "recolor ball towards gold"
    assert record.settings["parameters"]["towards"] == "gold"
    assert record.inputs["region_id"] == place.ball.id and record.inputs["splats_sha256"]
    assert {"splats.ply", "orbit.mp4", "held_out", "origins.npy"} <= {path.name for path in folder.iterdir()}
    inside = place.ball.inside
    after = read_splats(folder / "splats.ply")
    assert torch.equal(after.sh[~inside], place.splats.sh[~inside]) and torch.equal(after.means, place.splats.means)
    assert not torch.allclose(after.sh[inside], place.splats.sh[inside])
    (kept,) = list_kept(load_scene("tiny", place.scene))
    assert kept.label.startswith("recolor ball towards gold")


def test_a_change_on_top_of_a_change_finds_its_region_again_though_splats_are_gone(place):
    half = place.ball.weights.clone()
    half[half.nonzero()[:40, 0]] = 0
    deleted = place.change(Delete(), region=Region.of(place.splats, half, by="hand", part="half"), region_name="half")
    copied = place.change(Duplicate(by=(0.0, 0.0, 1.0)), deleted)
    moved = place.change(Move(by=(1.0, 0.0, 0.0)), copied)
    splats = [read_splats(folder / "splats.ply") for folder in (deleted, copied, moved)]
    assert [len(one) for one in splats] == [160, 200, 200]
    changed = (splats[2].means - splats[1].means).norm(dim=1) > 0.5
    assert int(changed.sum()) == 40 and bool(changed[:40].all())  # the half that is left, and not its copy
    assert np.load(copied / "origins.npy").tolist() == [*range(160), *[-1] * 40]
    assert read_json(moved / "record.json", EditRecord).inputs["starts_from"].startswith("edited-")
    # An edit of another kind starts from there too, and a change from it.
    request = EditRequest(instruction="make it blue", source_caption="", target_caption="")
    choice = EditChoice(method="nothing", editor="grade")
    opened = open_edit(place.run, place.scene, request=request, choice=choice, start=StartingPoint.of(moved))
    list(opened.steps)
    again = place.change(Move(by=(-1.0, 0.0, 0.0)), opened.folder)
    assert int(((read_splats(again / "splats.ply").means - splats[2].means).norm(dim=1) > 0.5).sum()) == 40


def test_undo_takes_back_the_last_change_and_keeps_it(place):
    first = place.change(Recolor(towards="gold"))
    second = place.change(Move(by=(0.0, 0.0, 0.5)), first)
    run = place.run.path
    assert current_change(run, "tiny") == second
    assert undo_change(run, "tiny") == second and current_change(run, "tiny") == first
    assert (second / "splats.ply").is_file()
    assert redo_change(run, "tiny") == second and current_change(run, "tiny") == second
    undo_change(run, "tiny")
    undo_change(run, "tiny")
    assert current_change(run, "tiny") is None
    with pytest.raises(InputError, match="nothing to undo"):
        undo_change(run, "tiny")
    third = place.change(Recolor(towards="red"))
    with pytest.raises(InputError, match="nothing to redo"):
        redo_change(run, "tiny")
    assert [run / made for made in read_history(run, "tiny").made] == [first, second, third]
    # From elsewhere: what an undo goes back to is what the change started from.
    place.change(Move(by=(0.0, 0.5, 0.0)), second)
    undo_change(run, "tiny")
    assert current_change(run, "tiny") == second


def test_the_same_change_is_made_once(place):
    folder = place.change(Recolor(towards="gold"))
    before = (folder / "record.json").read_bytes()
    assert place.change(Recolor(towards="gold")) == folder
    assert (folder / "record.json").read_bytes() == before
    assert len(read_history(place.run.path, "tiny").current) == 1


def test_a_change_with_a_case_is_measured_against_its_truth_and_others_compete_with_nothing(place):
    named = place.change(Recolor(towards="#3333cc"), case="blue")
    free = place.change(Recolor(towards="gold"))
    results = {result.folder for result in find_results(place.run.path)}
    assert results == {named, free}
    assert read_json(named / "record.json", EditRecord).kind == "recolour"
    place.change(Move(by=(0.0, 0.0, 1.0)), named, region=place.ball, case="blue")
    with pytest.raises(InputError, match="another region or start"):
        place.change(Recolor(towards="#3333cc"), named, case="blue")
    with pytest.raises(InputError, match="no edit 'green'; there are: blue"):
        place.change(Recolor(towards="#3333cc"), case="green")
    # The stage `edit` asks no method for what is no instruction.
    assert {unit.edit for unit in list_units(place.run.path, CONFIG)} == {"blue"}


def test_verify_accepts_changes_and_sees_what_was_done_to_them_since(place):
    folder = place.change(Delete())
    place.run.close("done", {})
    list(run_compare(place.run, CompareConfig()))

    def findings() -> list[str]:
        steps = check_records(place.run.path)
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                list(check_pictures(place.run.path, ended.value))
                return [finding.file for finding in ended.value.findings]

    assert findings() == []
    np.save(folder / "origins.npy", np.arange(3))
    assert [Path(file).name for file in findings()] == ["origins.npy"]


def test_a_region_of_other_splats_is_refused(place):
    other = Region.of(place.splats[:100], torch.ones(100), by="hand")
    with pytest.raises(InputError, match="belongs to other splats"):
        place.change(Delete(), region=other)


def the_current(run: Path) -> Path:
    found = current_change(run, "tiny")
    assert found is not None
    return found


def test_the_shell_changes_chains_lists_and_undoes(place):
    run = place.run.path
    result = restage("change", place.scene, "recolor", "--region", "ball", "--towards", "gold", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "changed" in result.stdout
    result = restage("change", place.scene, "move", "--region", "ball", "--by", "0", "0", "0.5", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    means = read_splats(the_current(run) / "splats.ply").means
    torch.testing.assert_close(means[place.ball.inside, 2], place.splats.means[place.ball.inside, 2] + 0.5)
    listed = restage("change", place.scene).stdout
    assert "  recolor ball towards gold" in listed and "* move ball by 0 0 0.5" in listed
    result = restage("change", place.scene, "--undo")
    assert "recolor" in result.stdout.splitlines()[1]
    assert restage("change", place.scene, "--redo").returncode == 0
    assert restage("change", place.scene, "--name", "up in the air").returncode == 0
    assert "* up in the air: move ball" in restage("change", place.scene).stdout
    result = restage("change", place.scene, "delete", "--region", "ball", "--on", "scene", "--device", "cpu")
    record = json.loads((the_current(run) / "record.json").read_text())
    assert "starts_from" not in record["inputs"] and record["method"] == "delete"


def test_the_shell_finds_floaters_shows_them_and_deletes_them(place):
    result = restage("change", place.scene, "clean", "--preview", "--device", "cpu")
    assert result.returncode == 0 and "splats are floaters or haze" in result.stdout, result.stderr
    assert (place.scene / "regions" / "floaters.png").is_file() and current_change(place.run.path, "tiny") is None
    floaters = read_region(place.run.path, "tiny", "floaters", place.splats)
    assert floaters.made["by"] == "clean"
    faint = place.splats.clone()
    faint.opacity_logits[:5] = -5.0
    write_splats(faint, place.scene / "splats.ply")
    result = restage("change", place.scene, "clean", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    folder = current_change(place.run.path, "tiny")
    assert folder is not None and len(read_splats(folder / "splats.ply")) <= 195


def test_the_shell_removes_a_thing_and_fills_its_place(place):
    result = restage("change", place.scene, "remove", "--region", "ball", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    folder = current_change(place.run.path, "tiny")
    assert folder is not None
    record = read_json(folder / "record.json", EditRecord)
    assert record.method == "remove" and record.settings["fill"] == "plain"
    assert not set(np.load(folder / "origins.npy").tolist()) & set(place.ball.inside.nonzero()[:, 0].tolist())
    # The same by an editor that knows the truth, as a method.
    request = EditRequest(instruction="make it blue", source_caption="", target_caption="")
    choice = EditChoice(method="remove", editor="exact", region=Path("ball"))
    opened = open_edit(place.run, place.scene, request=request, choice=choice)
    list(opened.steps)
    assert not set(np.load(opened.folder / "origins.npy").tolist()) & set(place.ball.inside.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("move", "--region", "ball"), ("move needs --by",)),
        (("delete", "--region", "ball", "--hue", "3"), ("delete has no --hue", "no options")),
        (("recolor", "--region", "ball"), ("which color",)),
        (("delete",), ("needs a region",)),
        (("delete", "--region", "bal"), ("bal is no region",)),
        (("delete", "--undo"), ("alone",)),
        (("--undo",), ("nothing to undo",)),
        (("--redo", "--name", "x"), ("alone",)),
        (("--region", "ball", "--towards", "gold"), ("--towards", "say what to change")),
        (("clean", "--region", "ball"), ("omit --region",)),
        (("delete", "--region", "ball", "--preview"), ("goes with clean",)),
        (("delete", "--region", "ball", "--on", "nowhere"), ("nowhere",)),
    ],
)
def test_the_shell_refuses_in_one_line(place, words, expected):
    assert_is_bad_input(restage("change", place.scene, *words), *expected)


def test_a_change_that_is_refused_leaves_nothing_behind(place):
    everything = Region.of(place.splats, torch.ones(200), by="hand")
    before = sorted(place.run.path.rglob("*"))
    for operation in (Delete(), Remove(fill="plain")):
        with pytest.raises(InputError, match="the whole scene"):
            place.change(operation, region=everything)
    assert [path for path in sorted(place.run.path.rglob("*")) if path.is_file() and path not in before] == []


def test_undo_goes_back_along_the_way_that_a_change_was_made(place):
    gold = place.change(Recolor(towards="gold"))
    up = place.change(Move(by=(0.0, 0.0, 0.5)), gold)
    place.change(Move(by=(0.5, 0.0, 0.0)), up)
    place.change(Move(by=(0.0, 0.5, 0.0)), up)  # from a change that was not the last one
    run = place.run.path
    undo_change(run, "tiny")
    assert current_change(run, "tiny") == up
    undo_change(run, "tiny")
    assert current_change(run, "tiny") == gold
    undo_change(run, "tiny")
    assert current_change(run, "tiny") is None and len(read_history(run, "tiny").undone) == 3


def test_an_edit_of_a_moved_thing_happens_where_it_is_now(place):
    moved = place.change(Move(by=(0.0, 0.0, 0.6)))
    request = EditRequest(instruction="make it green", source_caption="", target_caption="")
    how = {"request": request, "start": StartingPoint.of(moved)}
    choice = EditChoice(method="replace_once", editor="grade", region=Path("ball"))
    opened = open_edit(place.run, place.scene, choice=choice, **how)
    list(opened.steps)
    before, after = (read_splats(folder / "splats.ply") for folder in (moved, opened.folder))
    change = (after.sh[:200] - before.sh).abs().amax(dim=(1, 2))
    assert float(change[place.ball.inside].median()) > 0.2
    assert float((change[~place.ball.inside] == 0).float().mean()) > 0.7
    # A region of the edited scene itself is taken, too.
    own = Region.of(before, place.ball.weights, by="hand")
    write_region(place.run.path, "tiny", "own", own)
    opened = open_edit(place.run, place.scene, choice=replace(choice, region=Path("own")), **how)
    list(opened.steps)
    assert torch.equal(read_splats(opened.folder / "splats.ply").sh, after.sh)
    with pytest.raises(InputError, match="no training view shows anything of the region ball"):
        gone = StartingPoint.of(place.change(Delete()))
        open_edit(place.run, place.scene, choice=choice, request=request, start=gone)


def test_other_masks_under_the_same_path_are_another_edit(place, tiny_scene, tmp_path):
    choice = EditChoice(method="replace_once", editor="grade", region=tmp_path / "masks")
    request = EditRequest(instruction="make it green", source_caption="", target_caption="")
    folders = []
    for masks in (tiny_scene.truth_masks, torch.ones_like(tiny_scene.truth_masks)):
        for name, mask in zip(tiny_scene.capture.file_names, masks, strict=True):
            write_mask(tmp_path / "masks" / name, mask)
        folders.append(open_edit(place.run, place.scene, choice=choice, request=request).folder)
    assert folders[0] != folders[1]
