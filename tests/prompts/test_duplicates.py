import pytest

from restage.prompts.collect import NounQuota
from restage.prompts.rejects import Duplicates, content_of_caption
from restage.prompts.stage import PromptsConfig, write_answers, write_pairs
from restage.records import InputError, PromptPair

LONG = "a fluffy white cat with green eyes asleep on an old brown leather sofa beside a tall window in the {} light"


def pair_of(source: str, target: str, instruction: str = "edit it", kind: str = "recolour", **more) -> PromptPair:
    return PromptPair(source=source, target=target, instruction=instruction, kind=kind, **more)


def test_other_wordings_of_a_caption_have_the_same_content():
    same = (
        "A red cube and a blue ball on the grass, at noon",
        "at noon, a photo of the blue ball and a red cube on grass",
        "a red  cube with blue balls on grass at noon.",
    )
    assert len({content_of_caption(caption) for caption in same}) == 1


@pytest.mark.parametrize(
    "other",
    [
        "a blue cube and a red ball on grass at noon",
        "a red cube and a blue ball on snow at noon",
        "a red cone and a blue ball on grass at noon",
        "a big red cube and a blue ball on grass at noon",
    ],
)
def test_another_colour_thing_size_or_binding_is_other_content(other):
    assert content_of_caption(other) != content_of_caption("a red cube and a blue ball on grass at noon")


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


def test_each_pair_that_is_kept_differs_in_content_from_all_others():
    pairs = list(write_pairs(PromptsConfig(num_prompts=120, kinds=("time",)), 0))
    contents = {(content_of_caption(pair.source), content_of_caption(pair.target)) for pair in pairs}
    assert len(contents) == len(pairs) == 120


def test_no_noun_gets_more_than_its_quota():
    config = PromptsConfig(num_prompts=64, kinds=("recolour",), max_noun_share=0.125)
    answers = list(write_answers(config, 0))
    nouns = [answer.pair.words[0] for answer in answers if answer.pair and not answer.reason]
    assert len(nouns) == 64 and max(nouns.count(noun) for noun in set(nouns)) == 8
    assert any("enough pairs about" in answer.reason for answer in answers)


def test_a_quota_leaves_grounds_and_times_and_small_sets_alone():
    quota = NounQuota(0.1, 10)
    for _ in range(20):
        quota.count(pair_of("a", "b", kind="ground", words=("grass",)))
    assert quota.find(pair_of("a", "b", kind="ground", words=("grass",))) == "" and quota.limit == 4


@pytest.mark.parametrize("near", [0.0, 1.1])
def test_a_share_out_of_range_is_refused(near):
    with pytest.raises(InputError):
        Duplicates(near=near)
