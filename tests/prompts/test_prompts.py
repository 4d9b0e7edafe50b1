import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from restage.prompts.config import WRITER_NAMES, PromptsConfig
from restage.prompts.orders import Answer, Order, Writer
from restage.prompts.stage import run_prompts
from restage.prompts.store import read_prompts, write_prompts
from restage.prompts.writers import WRITERS
from restage.records import InputError, PromptPair, content_id, file_sha256
from restage.run.folder import RunFolder
from restage.world.description import PATTERNS
from restage.world.grammar import EDIT_KINDS
from restage.world.places import read_place

PAIR: dict[str, Any] = {
    "source": "a red cube",
    "target": "a blue cube",
    "instruction": "make it blue",
    "kind": "recolour",
}


def open_run(path: Path, seed: int = 0) -> RunFolder:
    return RunFolder.open(path, {}, seed=seed)


def run_all(path: Path, config: PromptsConfig, seed: int = 0) -> tuple[PromptPair, ...]:
    list(run_prompts(open_run(path, seed), config))
    return read_prompts(path / "prompts" / "prompts.jsonl")


def test_kinds_get_equal_shares_and_no_text_comes_twice(tmp_path):
    pairs = run_all(tmp_path / "run", PromptsConfig(num_prompts=30))
    counts = [sum(pair.kind == kind for pair in pairs) for kind in EDIT_KINDS]
    assert len(pairs) == 30 and max(counts) - min(counts) <= 1
    assert len({(pair.source.lower(), pair.target.lower(), pair.instruction.lower()) for pair in pairs}) == 30


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_all(tmp_path / name, PromptsConfig(num_prompts=14), seed)
    first, again, other = ((tmp_path / name / "prompts" / "prompts.jsonl").read_bytes() for name in "abc")
    assert first == again != other


def test_a_finished_stage_is_left_as_it_is(tmp_path):
    run_all(tmp_path / "run", PromptsConfig(num_prompts=7))
    (progress,) = run_prompts(open_run(tmp_path / "run"), PromptsConfig(num_prompts=7))
    assert progress.note == "already done"
    with pytest.raises(InputError, match="another config"):
        list(run_prompts(open_run(tmp_path / "run"), PromptsConfig(num_prompts=8)))


def test_swaps_and_words_stand_in_the_captions(tmp_path):
    for pair in run_all(tmp_path / "run", PromptsConfig(num_prompts=42), seed=3):
        assert all(old in pair.source and new in pair.target for old, new in pair.swaps)
        assert all(word in pair.source or word in pair.target for word in pair.words)


class CountingWriter(Writer):
    """A writer as a newcomer may add it: no forms, and nothing but what it must have."""

    def __init__(self, settings) -> None:
        self.number = 0

    def write(self, chunks):
        for order in (order for chunk in chunks for order in chunk):
            self.number += 1
            yield self._answer(order)

    def _answer(self, order: Order) -> Answer:
        source, target = (f"a {thing} beside {self.number} dogs" for thing in ("cat", "hat"))
        return Answer(
            order, PromptPair(source=source, target=target, instruction="turn the cat into a hat", kind=order.kind)
        )


def test_the_menu_of_writers_has_the_names_that_settings_know():
    assert WRITER_NAMES == (*WRITERS,)


def test_the_second_edition_says_where_things_go(tmp_path):
    kinds = ("add", "move", "pattern")
    config = PromptsConfig(num_prompts=30, kinds=kinds, edition=2)
    pairs = run_all(tmp_path / "run", config)
    placed = [pair for pair in pairs if pair.kind in ("add", "move")]
    assert len(placed) == 20 and all(read_place(pair.target) for pair in placed)
    assert all(set(pair.target.split()) & set(PATTERNS) for pair in pairs if pair.kind == "pattern")
    assert content_id("config", PromptsConfig()) == content_id("config", PromptsConfig(edition=1))


def test_forms_of_the_second_edition_learn_as_those_of_the_first(tmp_path):
    config = PromptsConfig(num_prompts=12, kinds=("move", "pattern"), edition=2, use_forms=True)
    pairs = run_all(tmp_path / "run", config)
    assert {pair.kind for pair in pairs} == {"move", "pattern"}
    assert all(f"kind={pair.kind} objects=" in pair.form for pair in pairs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": ("move",)}, "unknown kind of edit 'move'"),
        ({"kinds": ("look",), "edition": 2}, "unknown kind of edit 'look'"),
        ({"edition": 3}, "expected edition 1, or 2"),
        ({"edition": 2, "writer": "llm"}, "with the writer 'grammar'"),
    ],
)
def test_what_an_edition_does_not_know_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        PromptsConfig(**fields)


def add_to_menu(monkeypatch):
    monkeypatch.setitem(WRITERS, "counting", CountingWriter)
    monkeypatch.setattr("restage.prompts.config.WRITER_NAMES", (*WRITERS,))


def test_a_writer_is_a_class_and_a_line_in_the_menu(tmp_path, monkeypatch):
    add_to_menu(monkeypatch)
    pairs = run_all(tmp_path / "run", PromptsConfig(num_prompts=3, writer="counting", kinds=("reshape",)))
    assert [pair.source for pair in pairs] == [f"a cat beside {number} dogs" for number in (1, 2, 3)]


def test_a_writer_without_forms_cannot_learn_them(tmp_path, monkeypatch):
    add_to_menu(monkeypatch)
    with pytest.raises(InputError, match="'counting' has no forms to learn; writers that have: grammar, llm"):
        run_all(tmp_path / "run", PromptsConfig(writer="counting", use_forms=True))
    assert not [*tmp_path.glob("run/prompts/*.jsonl")]


def test_a_writer_that_only_repeats_itself_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("restage.prompts.grammar.write_grammar_pair", lambda kind, seed, edition: PromptPair(**PAIR))
    with pytest.raises(InputError, match="no new pair"):
        run_all(tmp_path / "run", PromptsConfig(num_prompts=2))


def test_a_users_file_goes_the_same_way(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({**PAIR, "swaps": [["red", "blue"]]}) + "\n\n" + json.dumps(PAIR) + "\n")
    pairs = run_all(tmp_path / "run", PromptsConfig(path=path))
    assert [pair.swaps for pair in pairs] == [(("red", "blue"),), ()]


def test_what_is_written_is_read_back(tmp_path):
    pairs = run_all(tmp_path / "run", PromptsConfig(num_prompts=7))
    write_prompts(tmp_path / "prompts.jsonl", pairs)
    assert read_prompts(tmp_path / "prompts.jsonl") == pairs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not readable as JSON"),
        ("[]", "line 2: expected object, got array"),
        (json.dumps({**PAIR, "source": " "}), "line 2: a prompt pair needs a source"),
        (json.dumps({"source": "a"}), "line 2: object missing required field target"),
        (json.dumps({**PAIR, "wrods": []}), "line 2: unknown field 'wrods'"),
        (json.dumps({**PAIR, "words": "cube"}), "line 2: words: expected array, got str"),
        (json.dumps({**PAIR, "swaps": [["red"]]}), "line 2: swaps.0.: expected array of length 2"),
        (json.dumps({**PAIR, "kind": 3}), "line 2: kind: expected str, got int"),
        (json.dumps({**PAIR, "id": "prompt-0"}), "line 2: its id"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_missing_and_empty_files_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, message in (("none.jsonl", "does not exist"), ("empty.jsonl", "no prompt pair")):
        with pytest.raises(InputError, match=message):
            read_prompts(tmp_path / name)


@pytest.mark.parametrize("settings", [{"num_prompts": 0}, {"writer": "poet"}, {"kinds": ("paint",)}, {"kinds": ()}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        PromptsConfig(**settings)


def write_pictured(folder, name="photos/one.PNG", **changes):
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(folder / "photos" / "one.PNG")
    (folder / "photos" / "two.jpg").write_bytes(b"no picture")
    (folder / "mine.jsonl").write_text(json.dumps({**PAIR, "picture": name, **changes}) + "\n")
    return folder / "mine.jsonl"


def test_pictures_of_a_users_pairs_are_copied_under_names_of_their_content(tmp_path):
    path = write_pictured(tmp_path / "user", pictured="target")
    (pair,) = run_all(tmp_path / "run", PromptsConfig(path=path))
    copy = tmp_path / "run" / "prompts" / pair.picture
    assert copy.read_bytes() == (tmp_path / "user" / "photos" / "one.PNG").read_bytes()
    assert pair.picture == f"pictures/{file_sha256(copy)[:16]}.png" and pair.pictured == "target"
    plain = PromptPair.from_plain(PAIR)
    assert len({pair.id, plain.id, dataclasses.replace(pair, pictured="source").id}) == 3
    assert plain.id == dataclasses.replace(plain, pictured="target").id  # without a picture nothing is shown


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("photos/none.png", {}, "does not exist"),
        ("../other.png", {}, "inside"),
        ("photos/two.jpg", {}, "not readable as an image"),
        ("photos/one.PNG", {"pictured": "both"}, "'both'"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(tmp_path, name, changes, message):
    path = write_pictured(tmp_path / "user", name, **changes)
    with pytest.raises(InputError, match=message):
        run_all(tmp_path / "run", PromptsConfig(path=path))
    assert not (tmp_path / "run" / "prompts" / "prompts.jsonl").exists()
