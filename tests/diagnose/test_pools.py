from dataclasses import replace

import pytest
import torch

from restage.diagnose.parts import PairPool, mix_pairs
from restage.pairs.config import PUBLISHED
from restage.pairs.encoding import ImagePair, pixel_sha256
from restage.pairs.files import open_files
from restage.pairs.score import set_rule
from restage.pairs.store import write_shard
from restage.records import PromptPair

NUM_PAIRS = 4


def image_pair(number, words=None):
    color = torch.full((3, 16, 16), 0.2 * number)
    prompt = PromptPair(
        source=f"a ball {words or number}", target=f"a cube {words or number}", instruction="swap", kind="reshape"
    )
    facts = {"kind": "reshape"}
    mask = torch.ones(16, 16)
    return ImagePair(id=f"pair-{number}", source=color, edited=1 - color, mask=mask, prompt=prompt, facts=facts)


def row_of(pair, is_accepted):
    return {
        "id": pair.id,
        "source_caption": pair.prompt.source,
        "target_caption": pair.prompt.target,
        "instruction": pair.prompt.instruction,
        "accepted": is_accepted,
        "reason": "" if is_accepted else "nothing changed",
        "image_similarity": 0.9,
        "direction_similarity": 0.9 if is_accepted else 0.0,
        "source_text": 0.9,
        "target_text": 0.9,
        "change": 0.5,
        "mask_share": 1.0,
    }


def pool(folder, *, accepted, words=None, rule=None):
    """Pairs of equal pictures; those not accepted are rows without pictures."""
    pairs = [image_pair(number, None if words is None else words[number]) for number in range(NUM_PAIRS)]
    rows = [row_of(pair, number in accepted) for number, pair in enumerate(pairs)]
    for row, pair in zip(rows, pairs, strict=True):
        row["pixel_sha256"] = pixel_sha256(pair.source, pair.edited, pair.mask)
    stored = [pair for number, pair in enumerate(pairs) if number in accepted]
    write_shard(folder, 0, pairs=stored, rows=rows, facts={"content": "x"})
    set_rule(open_files(folder), rule or PUBLISHED)
    return PairPool.read(open_files(folder))


EVERYTHING = range(NUM_PAIRS)


@pytest.fixture
def filtered(tmp_path):
    return pool(tmp_path / "filtered", accepted=(0, 2))


@pytest.fixture
def unfiltered(tmp_path):
    return pool(tmp_path / "unfiltered", accepted=EVERYTHING, rule=replace(PUBLISHED, min_direction_similarity=-2.0))


@pytest.fixture
def shuffled(tmp_path):
    return pool(tmp_path / "shuffled", accepted=(0, 2), words=[1, 2, 3, 0])


def test_pools_differ_in_what_was_done_to_them_and_in_nothing_else(filtered, unfiltered, shuffled):
    assert filtered.differences(filtered) == ()
    assert filtered.differences(unfiltered) == ("selection",)
    assert filtered.differences(shuffled) == ("captions",)
    assert shuffled.differences(unfiltered) == ("captions", "selection")


def test_a_mix_takes_each_thing_from_the_run_that_is_named(filtered, unfiltered):
    pools = {"A": filtered, "B": unfiltered}
    sides = {"pictures": "A", "captions": "A"}
    assert len(mix_pairs(pools, {**sides, "selection": "A"}).pairs) == 2
    found = mix_pairs(pools, {**sides, "selection": "B"})
    assert len(found.pairs) == NUM_PAIRS and found.num_missing == 0


def test_captions_of_one_run_go_with_pictures_of_the_other(filtered, shuffled):
    pools = {"A": filtered, "B": shuffled}
    sides = {"pictures": "A", "selection": "A"}
    own, other = (mix_pairs(pools, {**sides, "captions": side}).pairs for side in "AB")
    assert [pair.prompt.source for pair in own] == ["a ball 0", "a ball 2"]
    assert [pair.prompt.source for pair in other] == ["a ball 1", "a ball 3"]
    assert all(torch.equal(one.source, two.source) for one, two in zip(own, other, strict=True))


def test_pairs_that_no_run_has_stored_are_counted_as_missing(filtered, tmp_path):
    other = pool(tmp_path / "other", accepted=(0, 2), rule=replace(PUBLISHED, min_direction_similarity=-2.0))
    rejected = {key: {**row, "accepted": True} for key, row in other.rows.items()}
    pools = {"A": filtered, "B": replace(other, rows=rejected)}
    found = mix_pairs(pools, {"pictures": "A", "captions": "A", "selection": "B"})
    assert len(found.pairs) == 2 and found.num_missing == 2
