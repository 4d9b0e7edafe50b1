"""Forms that learn, with known rates of acceptance in place of a model of pictures."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from restage.prompts.config import PromptsConfig, RoundsConfig
from restage.prompts.forms import (
    GRAMMAR_SPACE,
    Choice,
    Form,
    FormChooser,
    FormsConfig,
    Trial,
    make_arms,
    read_form,
    write_form,
)
from restage.prompts.grammar import features_of_captions, features_of_edit, write_form_pair
from restage.prompts.rounds import round_folders, run_rounds, yields_of_rounds
from restage.prompts.stage import run_prompts
from restage.prompts.store import read_prompts
from restage.prompts.trials import measure_yield, read_trials
from restage.prompts.writers import WRITERS
from restage.records import InputError, PromptPair, derive_seed
from restage.run.folder import RunFolder
from restage.world.grammar import EDIT_KINDS, prompt_pair_of, sample_description, sample_edit

KINDS = ("recolour", "add", "resize", "time")
SIZES, SIZE_SHARES = ("small", "normal", "big"), (0.2, 0.6, 0.2)
NOUNS = ("house", "cube", "ball", "cone")


def features_of_pair(pair):
    return features_of_captions(pair.kind, pair.source, pair.target)


def rate_of(features) -> float:
    """A made-up model: resizing works for small objects alone on the ground, and houses keep their colour."""
    shown = dict(features)
    if shown["kind"] == "time":
        return 0.95
    if shown["kind"] == "recolour":
        return 0.2 if shown["noun"] == "house" else 0.9
    if shown["kind"] == "add":
        return {"small": 0.2, "normal": 0.5, "big": 0.8}[shown["size"]]
    return 0.7 if shown["size"] == "small" and shown["objects"] == "1" else 0.1


def draw_features(form: Form, rng: np.random.Generator) -> frozenset:
    """Fill in at random what a form leaves open."""
    fixed = form.as_dict
    shown = {**dict(fixed), "time": fixed.get("time", str(rng.choice(("noon", "night", "fog", "sunset"))))}
    if form.kind != "time":
        shown["noun"] = fixed.get("noun", str(rng.choice(NOUNS)))
        shown["size"] = fixed.get("size", str(rng.choice(SIZES, p=SIZE_SHARES)))
    return frozenset(shown.items())


def play(seed: int, num_rounds: int, num_pairs: int = 96) -> list[list[Trial]]:
    config = FormsConfig()
    trials: list[Trial] = []
    rounds = []
    rng = np.random.default_rng(seed)
    for index in range(num_rounds):
        round_seed = derive_seed(seed, index)
        arms = make_arms(GRAMMAR_SPACE, KINDS, trials, config=config, seed=round_seed)
        chooser = FormChooser(arms, config, round_seed)
        new = []
        for form, is_control in (chooser.choose() for _ in range(num_pairs)):
            shown = draw_features(form, rng)
            new.append(Trial(form, shown, bool(rng.uniform() < rate_of(shown)), is_control))
        trials += new
        rounds.append(new)
    return rounds


def share(trials) -> float:
    return sum(trial.is_accepted for trial in trials) / len(trials)


@pytest.fixture(scope="module")
def games() -> list[list[list[Trial]]]:
    return [play(seed, 6) for seed in range(4)]


def original_rate() -> float:
    """The true acceptance of the original forms."""
    rates = []
    for form in GRAMMAR_SPACE.originals(KINDS):
        drawn = [
            rate_of({**form.as_dict, "noun": noun, "size": size})
            for noun in NOUNS
            for size, share in zip(SIZES, SIZE_SHARES, strict=True)
            for _ in range(round(10 * share))
        ]
        rates.append(sum(drawn) / len(drawn))
    return sum(rates) / len(rates)


def test_regret_falls_over_rounds(games):
    by_round = [share([t for game in games for t in game[index] if not t.is_control]) for index in range(6)]
    assert by_round[-1] > by_round[0] + 0.1 and by_round[-1] > original_rate() + 0.12
    assert min(by_round[3:]) > by_round[0]


def test_each_hard_kind_of_edit_is_written_in_its_better_forms(games):
    for kind, least in (("resize", 0.1), ("add", 0.05)):
        first, last = (
            share(
                [t for game in games for part in game[when] for t in part if t.form.kind == kind and not t.is_control]
            )
            for when in (slice(0, 1), slice(3, 6))
        )
        assert last > first + least, (kind, first, last)


def test_the_control_slice_is_unbiased_whatever_was_learned(games):
    control = [t for game in games for trials in game[1:] for t in trials if t.is_control]
    error = (original_rate() * (1 - original_rate()) / len(control)) ** 0.5
    assert abs(share(control) - original_rate()) < 3 * error
    counts = [sum(t.form == form for t in control) for form in GRAMMAR_SPACE.originals(KINDS)]
    assert min(counts) > 0.7 * max(counts)


def test_quotas_of_kinds_hold(games):
    for game in games:
        for trials in game:
            learned = [t for t in trials if not t.is_control]
            shares = [sum(t.form.kind == kind for t in learned) / len(learned) for kind in KINDS]
            assert min(shares) >= 0.5 / 4 - 0.03 and max(shares) <= 2 / 4 + 0.03
            assert len(trials) - len(learned) == int(0.2 * len(trials) + 1e-9)


def test_state_follows_from_the_trials_alone_in_any_order():
    trials = [trial for part in play(3, 3) for trial in part]
    arms = make_arms(GRAMMAR_SPACE, KINDS, trials, config=FormsConfig(), seed=5)
    again = make_arms(GRAMMAR_SPACE, KINDS, trials[::-1], config=FormsConfig(), seed=5)
    assert arms == again and len(arms) > len(GRAMMAR_SPACE.originals(KINDS))
    one, two = (FormChooser(arms, FormsConfig(), 7) for _ in range(2))
    assert [one.choose() for _ in range(50)] == [two.choose() for _ in range(50)]


def test_new_forms_are_children_of_forms_that_are_known():
    trials = [trial for part in play(1, 4) for trial in part]
    arms = make_arms(GRAMMAR_SPACE, KINDS, trials, config=FormsConfig(), seed=5)
    known = {arm.form for arm in arms}
    children = [arm for arm in arms if not arm.is_original]
    assert children and all(arm.form.parent in known for arm in children)
    assert len({frozenset(arm.form.features) for arm in arms}) == len(arms)
    assert all(0 <= arm.lower <= arm.mean <= 1 for arm in arms if arm.mean > 0.5)


def test_wide_pairs_count_for_narrow_forms_and_never_the_other_way_round():
    wide = Form((("kind", "resize"), ("objects", "1")))
    narrow = wide.refine("size", "small")
    shown = frozenset({"kind": "resize", "objects": "1", "size": "small", "noun": "cube", "time": "fog"}.items())
    from_wide = [Trial(wide, shown, True, False)] * 10
    from_narrow = [Trial(narrow, shown, True, False)] * 5
    arms = make_arms(GRAMMAR_SPACE, ("resize",), from_wide + from_narrow, config=FormsConfig(), seed=0)
    counts = {arm.form: arm.num_trials for arm in arms}
    assert counts[wide] == 10 and counts[narrow] == 15


def test_an_exhausted_form_is_replaced_and_does_not_come_back():
    arms = make_arms(GRAMMAR_SPACE, ("time",), [], config=FormsConfig(control_share=0.0), seed=0)
    chooser = FormChooser(arms, FormsConfig(control_share=0.0), 0)
    gone = chooser.choose()
    assert all(choice.form != gone.form for choice in [chooser.exhaust(gone)] + [chooser.choose() for _ in range(50)])
    with pytest.raises(InputError, match="no form has new pairs left"):
        for arm in arms:
            chooser.exhaust(Choice(arm.form, False))


@pytest.mark.parametrize("space", [writer.form_space for writer in WRITERS.values() if writer.form_space])
def test_forms_are_read_back_as_they_were_written(space):
    for form in space.originals(EDIT_KINDS):
        for child in (form, *space.children(form)):
            assert read_form(write_form(child, is_control=True)) == (child, True)
            assert read_form(str(child)) == (child, False)
            assert space.has(child) and child.features[0][0] == "kind"
    assert read_form("grammar") is None and read_form("kind=") is None and read_form("") is None
    assert not GRAMMAR_SPACE.has(Form((("kind", "time"), ("subject", "animal"))))


def test_features_of_an_edit_are_read_back_from_its_captions():
    for seed in range(60):
        edit = sample_edit(sample_description(seed), seed)
        assert features_of_pair(prompt_pair_of(edit, seed)) == features_of_edit(edit)
    free = PromptPair(source="a cat", target="a dog", instruction="make it a dog", kind="reshape")
    assert features_of_pair(free) == {"kind": "reshape"}


def test_a_pair_has_the_features_of_its_form_or_is_none():
    base = Form((("kind", "resize"), ("objects", "1")))
    for form in (base.refine("noun", "cone").refine("time", "fog"), base.refine("size", "small"),
                 Form((("kind", "add"), ("objects", "2"), ("size", "big")))):  # fmt: skip
        pair = write_form_pair(form, 1)
        assert pair is not None and form.fits(features_of_pair(pair)) and pair.form == str(form)


def test_a_form_that_hardly_exists_has_no_pair(monkeypatch):
    monkeypatch.setattr("restage.prompts.grammar.MAX_SCENES", 20)
    # A small object that has room to grow beside two others.
    assert write_form_pair(Form((("kind", "resize"), ("objects", "3"), ("size", "small"))), 0) is None


@pytest.mark.parametrize(
    "settings",
    [{"control_share": 1.5}, {"min_kind_share": 1.5}, {"max_kind_share": 0.5}, {"lower_quantile": 0.0}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError):
        FormsConfig(**settings)


def make_pairs(run: RunFolder):
    """A stand-in for the pairs stage: the manifest alone, acceptance by the made-up rates."""
    rows = []
    for pair in read_prompts(run.path / "prompts" / "prompts.jsonl"):
        rng = np.random.default_rng(derive_seed(run.seed, pair.id))
        rows.append(
            {
                "kind": pair.kind,
                "form": pair.form,
                "instruction": pair.instruction,
                "source_caption": pair.source,
                "target_caption": pair.target,
                "direction_similarity": float(rng.uniform()),
                "accepted": bool(rng.uniform() < rate_of(features_of_pair(pair).items())),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), run.folder("pairs") / "manifest.parquet")
    run.mark_done("pairs", {})
    yield from ()


def rounds_in(path: Path, num_rounds: int) -> list[Path]:
    prompts = PromptsConfig(num_prompts=20, kinds=KINDS, use_forms=True)
    run = RunFolder.open(path, {}, seed=3)
    list(run_rounds(run, RoundsConfig(num_rounds=num_rounds, prompts=prompts), make_pairs))
    return round_folders(path, num_rounds)


def test_rounds_go_on_from_files_alone_and_are_the_same_after_a_stop(tmp_path):
    folders = rounds_in(tmp_path / "a", 3)
    rounds_in(tmp_path / "b", 1)
    again = rounds_in(tmp_path / "b", 3)
    for one, two in zip(folders, again, strict=True):
        for name in ("prompts.jsonl", "forms.jsonl"):
            assert (one / "prompts" / name).read_bytes() == (two / "prompts" / name).read_bytes()
    yields = yields_of_rounds(folders)
    assert [found.control.num_pairs for found in yields] == [4, 4, 4]
    assert all(found.learned.low <= found.learned.share <= found.learned.high for found in yields)


def test_runs_without_forms_teach_too(tmp_path):
    run = RunFolder.open(tmp_path / "plain", {}, seed=0)
    list(run_prompts(run, PromptsConfig(num_prompts=40, kinds=KINDS)))
    list(make_pairs(run))
    learned = read_trials([run.path])
    assert {trial.form.features for trial in learned.trials} == {(("kind", kind),) for kind in KINDS}
    arms = make_arms(GRAMMAR_SPACE, KINDS, learned.trials, config=FormsConfig(), seed=0)
    assert sum(arm.num_trials for arm in arms if arm.is_original) == 40
    assert learned.examples["kind=time"][0].source


def test_a_run_without_pairs_cannot_be_learned_from(tmp_path):
    run = RunFolder.open(tmp_path / "run", {}, seed=0)
    with pytest.raises(InputError, match="learn_from takes runs with finished pairs"):
        list(run_prompts(run, PromptsConfig(learn_from=(tmp_path / "none",))))


def test_a_yield_has_its_interval():
    trials = [Trial(Form((("kind", "time"),)), frozenset(), number < 30, True) for number in range(40)]
    found = measure_yield(trials)
    assert found.share == 0.75 and abs(found.low - 0.598) < 1e-3 and abs(found.high - 0.858) < 1e-3  # Wilson
    assert measure_yield([]).num_pairs == 0


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("form", 3, r"manifest.parquet: \[0\].form: expected str, got int"),
        ("accepted", "yes", r"\[0\].accepted: expected bool, got str"),
        ("kind", None, "has no column 'kind'"),
        (None, None, "not readable as the manifest of a pairs stage"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(tmp_path, column, value, message):
    row = {"kind": "add", "form": "grammar", "instruction": "i", "source_caption": "s", "target_caption": "t"}
    row |= {"direction_similarity": 0.5, "accepted": True, column or "x": value}
    path = tmp_path / "pairs" / "manifest.parquet"
    path.parent.mkdir()
    names = [name for name in row if (name, value) != (column, None)]
    pq.write_table(pa.Table.from_pylist([row]).select(names), path)
    if column is None:
        path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=message):
        read_trials([tmp_path])
