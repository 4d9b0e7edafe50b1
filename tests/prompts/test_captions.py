import json

import pytest

from restage.prompts.config import PromptsConfig
from restage.prompts.grammar import parse_caption, read_captions, write_caption_pair
from restage.prompts.stage import run_prompts
from restage.prompts.store import read_prompts
from restage.records import InputError
from restage.run.folder import RunFolder
from restage.world import second
from restage.world.capture import camera_at
from restage.world.grammar import caption_of, sample_description
from restage.world.places import object_words, read_place


def test_every_caption_of_the_grammar_is_read_back_in_its_wording():
    for seed in range(60):
        scene = sample_description(seed)
        caption = caption_of(scene, 7 * seed)
        found = parse_caption(f"  {caption.capitalize()}. ")
        assert found is not None and caption_of(found.description, found.wording_seed) == caption
        assert [(o.kind, o.color, o.size) for o in found.description.objects] == [
            (o.kind, o.color, o.size) for o in scene.objects
        ]


def test_captions_of_the_second_edition_are_read_with_their_places_and_looks():
    placed, patterned = 0, 0
    for seed in range(80):
        scene = second.sample_description(seed)
        caption = second.caption_of(scene, 7 * seed, camera_at(float(seed), 0.3, 4.0, 32))
        found = parse_caption(caption)
        assert found is not None and caption_of(found.description, found.wording_seed, found.place) == caption
        assert sorted(map(object_words, found.description.objects)) == sorted(map(object_words, scene.objects))
        placed += found.place is not None
        patterned += any(item.pattern for item in scene.objects)
    assert placed > 15 and patterned > 15
    assert parse_caption("a red cube next to a cube on sand at noon") is None  # of itself, or of another?


def test_an_edit_of_a_placed_caption_keeps_its_place_where_it_names_what_is_left():
    caption = "a striped cone on top of a cube on the grass, at noon"
    pairs = [write_caption_pair(caption, kind, seed) for kind in ("recolour", "ground", "remove") for seed in range(4)]
    for pair in pairs:
        assert pair is not None and pair.source == caption
        assert ("on top of a" in pair.target) == (pair.kind != "remove")
        assert "#" not in f"{pair.target} {pair.instruction} {pair.undo} {pair.words}"
    assert not any(pair.undo for pair in pairs if pair and pair.kind == "recolour")  # the colors had no names


def test_an_edit_of_the_second_edition_says_its_place_in_the_captions_wording():
    caption = "a red ball next to a blue cube on grass at noon"
    for kind in ("add", "move"):
        pair = write_caption_pair(caption, kind, 3, edition=2)
        assert pair is not None and pair.source == caption
        assert pair.target.endswith(" on grass at noon") and read_place(pair.target) != read_place(caption)
    moved, gone = (write_caption_pair(caption, kind, 3, edition=2) for kind in ("move", "remove"))
    assert moved is not None and gone is not None and moved.undo == gone.undo == ""  # its old place is not known


@pytest.mark.parametrize(
    "caption", ["", "a red cube", "a red cube on grass", "a cat on grass at noon", "a red cube under grass at noon"]
)
def test_other_captions_are_not_read(caption):
    assert parse_caption(caption) is None


def test_an_edit_of_a_caption_keeps_its_wording():
    caption = "at noon, a big red cube and a blue ball on the grass"
    pair = write_caption_pair(caption, "recolour", 3)
    assert pair is not None and pair.source == caption and pair.parent.startswith("caption-")
    assert len(pair.target.split()) == len(caption.split()) and len(pair.swaps) == 1
    assert write_caption_pair("a red cube on grass at noon", "remove", 0) is None


def test_a_users_captions_become_pairs_and_those_that_cannot_are_rejects_with_a_reason(tmp_path):
    lines = ["# my captions", "a red cube on grass at noon", "", "my cat asleep", "a red cube on grass at noon"]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    config = PromptsConfig(num_prompts=6, captions=tmp_path / "mine.txt", kinds=("recolour", "remove", "time"))
    run = RunFolder.open(tmp_path / "run", {}, seed=0)
    list(run_prompts(run, config))
    pairs = read_prompts(run.path / "prompts" / "prompts.jsonl")
    assert {pair.source for pair in pairs} == {lines[1]} and {pair.kind for pair in pairs} == {"recolour", "time"}
    rejects = [json.loads(line) for line in (run.path / "prompts" / "rejects.jsonl").read_text().splitlines()]
    assert {(reject["reason"], reject["raw"]) for reject in rejects} == {
        ("the grammar cannot read this caption", "my cat asleep"),
        ("its scene allows no remove", lines[1]),
    }
    (tmp_path / "mine.txt").write_text("a blue ball on sand at night")
    with pytest.raises(InputError, match="another config"):
        list(run_prompts(run, config))


def test_captions_of_which_none_can_be_read_are_an_error_that_says_why(tmp_path):
    (tmp_path / "mine.txt").write_text("my cat asleep")
    run = RunFolder.open(tmp_path / "run", {}, seed=0)
    with pytest.raises(InputError, match="no prompt pair was written: the grammar cannot read this caption"):
        list(run_prompts(run, PromptsConfig(num_prompts=3, captions=tmp_path / "mine.txt")))
    assert not (run.path / "prompts" / "prompts.jsonl").exists()


def test_missing_and_empty_caption_files_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (("none", "does not exist"), ("empty.txt", "no caption"), ("binary.txt", "not readable")):
        with pytest.raises(InputError, match=message):
            read_captions(tmp_path / name)
