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


def public_swap_map(length, swaps):
    """Where the public code of Prompt-to-Prompt sends attention, from the token indices of old and new words.

    Before and between the words token goes to token; after the last of them each position goes to itself.
    """
    word_map, i, j = torch.zeros(length, length), 0, 0
    for old, new in swaps:
        for step in range(old[0] - i):
            word_map[i + step, j + step] = 1
        for place, token in enumerate(new):
            is_even = len(old) == len(new)
            word_map[[old[place]] if is_even else list(old), token] = 1 if is_even else 1 / len(new)
        i, j = old[-1] + 1, new[-1] + 1
    for step in range(length - max(i, j)):
        word_map[j + step, j + step] = 1
    return word_map


@pytest.mark.parametrize(
    ("source", "target", "swaps"),
    [
        ("a red ball on sand", "an orange ball on sand", [("red", "orange")]),
        ("a castle on sand", "a ball on sand", [("castle", "ball")]),
        ("a big ball and a red cube", "a big ball and a blue zebra", [("red", "blue"), ("cube", "zebra")]),
        ("a ball and a zebra at noon", "a zebra and a ball at noon", [("ball", "zebra"), ("zebra", "ball")]),
        ("a red ball", "a red ball", []),
    ],
)
def test_public_padding_of_swaps_goes_by_position_after_the_last_word(tokenizer, source, target, swaps):
    found = align_swaps(tokenizer, source, target, swaps, padding="public")
    tokens = [(find_tokens(tokenizer, source, old)[0], find_tokens(tokenizer, target, new)[0]) for old, new in swaps]
    torch.testing.assert_close(found.word_map, public_swap_map(tokenizer.model_max_length, tokens))
    assert found.gate.eq(1).all()


@pytest.mark.parametrize("padding", ["own", "public"])
@pytest.mark.parametrize(
    ("source", "target"),
    [("a red ball", "a big red ball at night"), ("a big red castle at night", "a red ball"), ("a ball", "a cube")],
)
def test_padding_is_counted_from_the_end_tokens_or_from_the_start(tokenizer, source, target, padding):
    length = tokenizer.model_max_length
    before, after = (len(tokenizer(text)["input_ids"]) for text in (source, target))
    found = align_phrases(tokenizer, source, target, padding=padding)
    assert found.word_map[before - 1, after - 1] == 1 and found.gate[after - 1 :].eq(1).all()
    expected = torch.zeros(length - before, length - after)
    if padding == "own":
        for place in range(length - before):
            expected[place, min(place, length - after - 1)] = 1
    else:
        for place in range(max(before, after), length):
            expected[place - before, place - after] = 1
    torch.testing.assert_close(found.word_map[before:, after:], expected)
    by_position = {j: j for j in range(after, before)} if padding == "public" else {}
    words = found.word_map[:before, after:].nonzero().tolist()
    assert {after + j: i for i, j in words} == by_position  # where the source is longer, its words
    assert padding == "public" or found.word_map.sum(1).max() == 1


def test_captions_of_equal_length_are_aligned_alike_with_either_padding(tokenizer):
    source, target, swaps = "a red ball on sand", "a red ball at sand", [("on", "at")]
    own, public = (align_swaps(tokenizer, source, target, swaps, padding=padding) for padding in ("own", "public"))
    counts = [len(tokenizer(text)["input_ids"]) for text in (source, target)]
    assert counts[0] == counts[1]
    torch.testing.assert_close(own.word_map, public.word_map)
    first, second = (align_phrases(tokenizer, source, target, padding=padding) for padding in ("own", "public"))
    torch.testing.assert_close(first.word_map, second.word_map)
