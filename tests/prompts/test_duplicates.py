import pytest

from restage.prompts.config import PromptsConfig
from restage.prompts.orders import NounQuota
from restage.prompts.rejects import Duplicates
from restage.prompts.stage import run_prompts
from restage.prompts.store import read_prompts
from restage.records import InputError, PromptPair
from restage.run.folder import RunFolder

LONG = "a fluffy white cat with green eyes asleep on an old brown leather sofa beside a tall window in the {} light"


def pair_of(source: str, target: str, instruction: str = "edit it", kind: str = "recolour", **more) -> PromptPair:
    return PromptPair(source=source, target=target, instruction=instruction, kind=kind, **more)


GRASS = "a red cube and a blue ball on grass at noon"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("A red cube and a blue ball on the grass, at noon", "the same content as before"),
        ("at noon, a photo of the blue ball and a red cube on grass", "the same content as before"),
        ("a red  cube with blue balls on grass at noon.", "the same content as before"),
        ("a blue cube and a red ball on grass at noon", ""),
        ("a red cube and a blue ball on snow at noon", ""),
        ("a red cone and a blue ball on grass at noon", ""),
        ("a big red cube and a blue ball on grass at noon", ""),
    ],
)
def test_other_wordings_have_the_same_content_and_another_colour_thing_size_or_binding_has_not(other, said):
    known = Duplicates()
    assert known.find(pair_of(GRASS, GRASS.replace("noon", "night"))) == ""
    assert known.find(pair_of(other, other.replace("noon", "night"), "do it")) == said


def test_the_same_edit_in_other_words_is_a_duplicate_and_another_edit_is_not():
    known = Duplicates()
    assert known.find(pair_of("a red cube on grass", "a blue cube on grass")) == ""
    assert known.find(pair_of("A RED cube  on grass", "a blue cube on grass", "Edit it")) == "the same text as before"
    said = known.find(pair_of("a red cube on the grass", "a blue cube on the grass", "paint it"))
    assert said == "the same content as before"
    assert known.find(pair_of("a red cube on grass", "a pink cube on grass")) == ""
    assert known.find(pair_of("a blue cube on grass", "a red cube on grass")) == ""


def test_long_captions_that_differ_by_a_word_or_two_are_near_duplicates_unless_the_edit_differs():
    source, target = LONG.format("soft"), LONG.format("soft").replace("white", "black")
    known = Duplicates()
    assert known.find(pair_of(source, target)) == ""
    near = pair_of(LONG.format("warm"), LONG.format("warm").replace("white", "black"))
    assert known.find(near) == "nearly the same as before"
    assert Duplicates(near=1.0).find(near) == "" == known.find(pair_of(near.source, near.source.replace("cat", "dog")))


def test_each_pair_that_is_kept_differs_in_content_from_all_others(tmp_path):
    run = RunFolder.open(tmp_path / "run", {}, seed=0)
    list(run_prompts(run, PromptsConfig(num_prompts=120, kinds=("time",))))
    pairs, known = read_prompts(run.path / "prompts" / "prompts.jsonl"), Duplicates()
    assert len(pairs) == 120 and {known.find(pair) for pair in pairs} == {""}


def test_no_noun_gets_more_than_its_quota(tmp_path):
    run = RunFolder.open(tmp_path / "run", {}, seed=0)
    list(run_prompts(run, PromptsConfig(num_prompts=64, kinds=("recolour",), max_noun_share=0.125)))
    nouns = [pair.words[0] for pair in read_prompts(run.path / "prompts" / "prompts.jsonl")]
    assert len(nouns) == 64 and max(nouns.count(noun) for noun in set(nouns)) == 8
    assert "enough pairs about" in (run.path / "prompts" / "rejects.jsonl").read_text()


def test_a_quota_leaves_grounds_and_times_and_small_sets_alone():
    quota = NounQuota(0.1, 10)
    for _ in range(20):
        quota.count(pair_of("a", "b", kind="ground", words=("grass",)))
    assert quota.find(pair_of("a", "b", kind="ground", words=("grass",))) == "" and quota.limit == 4


@pytest.mark.parametrize("near", [0.0, 1.1])
def test_a_share_out_of_range_is_refused(near):
    with pytest.raises(InputError):
        Duplicates(near=near)
