"""Files of prompts with byte-order marks, and captions that are too long for the models."""

import codecs
import json

import pytest

from restage.prompts.config import PromptsConfig
from restage.prompts.grammar import read_captions
from restage.prompts.rejects import TokenLimits
from restage.prompts.stage import run_prompts
from restage.prompts.store import read_prompts
from restage.records import InputError, PromptPair
from restage.run.folder import RunFolder
from restage.run.models import ASSETS
from tests.prompts.llm_runs import rejects_of

LIMITS = TokenLimits((ASSETS / "text_to_image", ASSETS / "clip"))
SHORT = {"source": "a red cube", "target": "a blue cube", "instruction": "make it blue", "kind": "recolour"}
MARKED = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (b"", "utf-8"),
)


@pytest.mark.parametrize(("mark", "encoding"), MARKED)
@pytest.mark.parametrize("first", ["a red cube", "# mine"])
def test_a_byte_order_mark_costs_no_line(tmp_path, mark, encoding, first):
    (tmp_path / "mine.txt").write_bytes(mark + f"{first}\na big ball\n".encode(encoding))
    assert read_captions(tmp_path / "mine.txt") == (("a red cube",) if first[0] == "a" else ()) + ("a big ball",)
    (tmp_path / "mine.jsonl").write_bytes(mark + json.dumps(SHORT).encode(encoding))
    assert read_prompts(tmp_path / "mine.jsonl")[0].source == "a red cube"


def test_a_prompt_that_is_too_long_is_a_reject_and_does_not_stop_the_others(tmp_path):
    words = " and".join([" very"] * 200)
    rows = [SHORT, {**SHORT, "target": f"a{words} blue cube"}, {**SHORT, "target": "a green cube"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunFolder.open(tmp_path / "run", {}, seed=1)
    *_, last = run_prompts(run, PromptsConfig(path=tmp_path / "mine.jsonl"), limits=LIMITS)
    kept = read_prompts(tmp_path / "run" / "prompts" / "prompts.jsonl")
    assert [pair.target for pair in kept] == ["a blue cube", "a green cube"] and "2 prompt pairs" in last.note
    (reject,) = rejects_of(tmp_path / "run")
    assert reject["reason"].endswith("tokens, of which 56 fit") and reject["pair"]["target"] == rows[1]["target"]


def test_the_last_number_of_tokens_that_fits_is_taken():
    for number in range(30, 60):
        pair = PromptPair.from_plain({**SHORT, "source": " ".join(["a"] * number)})
        assert (LIMITS.find(pair) == "") == (number + 2 <= 48)


def test_rows_of_instruct_pix2pix_are_prompt_pairs(tmp_path):
    row = {"input": "a red cube", "edit": "make it blue", "output": "a blue cube", "url": "https://example.org/1.jpg"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (pair,) = read_prompts(tmp_path / "rows.jsonl")
    assert (pair.source, pair.target, pair.instruction) == ("a red cube", "a blue cube", "make it blue")


def test_a_line_of_a_megabyte_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("a" * 1_000_000)
    with pytest.raises(InputError, match="line 1: expected at most 100000 characters"):
        read_captions(tmp_path / "mine.txt")
