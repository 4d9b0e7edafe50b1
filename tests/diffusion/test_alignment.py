import pytest
import torch

from restage.diffusion.alignment import align_phrases, align_swaps, find_tokens, token_mask
from restage.records import InputError
from tests.diffusion.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def tokens_of(tokenizer, prompt):
    return tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("a red cube on the grass", "cube", [["cu", "be</w>"]]),
        ("A Red, CUBE!", "cube", [["cu", "be</w>"]]),
        ("a red cube, a red ball", "Red", [["red</w>"], ["red</w>"]]),
        ("a red   cube on sand", "red cube", [["red</w>", "cu", "be</w>"]]),
        ("a redder ball", "red", []),
        ("", "red", []),
    ],
)
def test_words_are_found_as_people_write_them(tokenizer, prompt, words, expected):
    tokens = tokens_of(tokenizer, prompt)
    assert [[tokens[i] for i in found] for found in find_tokens(tokenizer, prompt, words)] == expected


def test_words_of_several_tokens_are_found_whole(tokenizer):
    (found,) = find_tokens(tokenizer, "an orange-ish zebra.", "zebra")
    assert len(found) > 1 and "".join(tokens_of(tokenizer, "an orange-ish zebra.")[i] for i in found) == "zebra</w>"


def test_mask_marks_every_occurrence_and_is_padded(tokenizer):
    mask = token_mask(tokenizer, "a red ball and a red tree", ["red", "castle"])
    assert mask.shape == (tokenizer.model_max_length,) and mask.sum() == 2


def test_swap_of_words_of_as_many_tokens_is_the_identity(tokenizer):
    found = align_swaps(tokenizer, "a red ball on sand", "a red ball at sand", [("on", "at")])
    torch.testing.assert_close(found.word_map, torch.eye(tokenizer.model_max_length))
    assert found.gate.eq(1).all()


@pytest.mark.parametrize(
    ("source", "target", "swaps"),
    [
        ("a red ball on sand", "an orange ball on sand", [("red", "orange")]),
        ("a red ball and a red cube", "a red ball and a blue zebra", [("red", "blue"), ("cube", "zebra")]),
        ("a red ball at noon", "a big old castle ball at noon", [("red", "big old castle")]),
    ],
)
def test_swapped_words_pass_all_their_attention_on(tokenizer, source, target, swaps):
    found = align_swaps(tokenizer, source, target, swaps)
    torch.testing.assert_close(found.word_map.sum(1), torch.ones(tokenizer.model_max_length))
    for old, new in swaps:
        before = token_mask(tokenizer, source, [old]) if source.count(old) == 1 else None
        after = token_mask(tokenizer, target, [new])
        if before is not None:
            assert bool((found.word_map[before.bool()].sum(0) > 0).eq(after.bool()).all())


def test_swap_of_a_repeated_word_takes_the_occurrence_that_changed(tokenizer):
    found = align_swaps(tokenizer, "a red ball, a red cone", "a red ball, a orange cone", [("red", "orange")])
    (first,), (second,) = find_tokens(tokenizer, "a red ball, a red cone", "red")
    (new,) = find_tokens(tokenizer, "a red ball, a orange cone", "orange")
    assert found.word_map[first, first] == 1
    torch.testing.assert_close(found.word_map[second, list(new)], torch.full((len(new),), 1 / len(new)))


def test_added_phrase_is_new_and_the_rest_keeps_its_attention(tokenizer):
    source, target = "a red ball on sand", "a big red ball on sand at night"
    found = align_phrases(tokenizer, source, target)
    new = token_mask(tokenizer, target, ["big", "at night"])
    torch.testing.assert_close(found.gate, 1 - new)
    for word in ("red", "ball", "sand"):
        (before,), (after,) = find_tokens(tokenizer, source, word), find_tokens(tokenizer, target, word)
        assert all(found.word_map[i, j] == 1 for i, j in zip(before, after, strict=True))
    assert found.word_map[:, new.bool()].eq(0).all()


def test_removed_phrase_leaves_the_rest_aligned(tokenizer):
    found = align_phrases(tokenizer, "a big red ball on sand", "a red ball on sand")
    assert found.gate.eq(1).all() and found.word_map.sum(1).max() == 1
    assert found.word_map.sum(1).eq(0).sum() == len(find_tokens(tokenizer, "a big red ball on sand", "big")[0])


def test_global_alignment_gains_what_exhaustive_search_gains(tokenizer):
    source, target = "a b a c b a", "b a a b c a"
    ids = [tokenizer(text)["input_ids"][1:-1] for text in (source, target)]

    def longest(a, b):
        if not a or not b:
            return 0
        skip = max(longest(a[1:], b), longest(a, b[1:]))
        return max(skip, 1 + longest(a[1:], b[1:])) if a[0] == b[0] else skip

    found = align_phrases(tokenizer, source, target)
    inner = slice(1, len(ids[1]) + 1)
    assert found.gate[inner].sum() == longest(*ids)


@pytest.mark.parametrize(
    ("source", "target", "swaps", "message"),
    [
        ("a red ball", "a blue ball", [("green", "blue")], "green"),
        ("a red ball", "a blue ball", [("red", "pink")], "pink"),
        ("a red ball", "a blue cone on sand", [("red", "blue")], "more than the swaps"),
        ("a red ball", "a blue ball", [], "more than the swaps"),
        ("a red ball", "a blue ball", [("", "blue")], "empty"),
        ("a red ball " * 20, "a blue ball", [("red", "blue")], "tokens"),
    ],
)
def test_swaps_that_do_not_fit_are_refused(tokenizer, source, target, swaps, message):
    with pytest.raises(InputError, match=message):
        align_swaps(tokenizer, source, target, swaps)
