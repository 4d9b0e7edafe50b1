from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.miniature.__main__ import WANTED, Benchmark, Figures, Settings, _rounded
from benchmarks.miniature.held_out import (
    CASE_KINDS,
    Captioned,
    captions,
    edit_cases,
    is_in_training,
    render_captioned,
)
from benchmarks.miniature.page import WRONG, Card, card_of, draw_cards, write_page, wrong_words
from benchmarks.miniature.parts import fits, judge_places, measure_sampling, roc_auc
from benchmarks.miniature.text_to_image import (
    Sample,
    Sampling,
    WordMask,
    load_training_state,
    local_blend_mask,
    mask_iou_of,
    sample,
    word_iou,
)
from benchmarks.miniature.verdicts import (
    JUDGED_PLACES,
    Seen,
    accuracies,
    accuracies_by_count,
    judge,
    place_accuracies,
    place_is_right,
    seen_in,
    shares_by_word,
)
from miniature.probe import Probe, Readings
from miniature.probe_pictures import FIRST_KIND_CLASS
from restage.diffusion.backbone import load_backbone
from restage.diffusion.sampling import sample_images
from restage.records import InputError
from restage.world.capture import sample_camera
from restage.world.description import COLORS, KINDS, PATTERNS, Description, Place, SceneObject
from restage.world.grammar import HELD_OUT_COMBINATIONS
from restage.world.places import holds, read_place
from tests.tiny_models import write_tiny_models

SCENE = Description(
    objects=(SceneObject(kind="cube", color="red"), SceneObject(kind="ball", color="blue", x=1.5)),
    ground="sand",
    time="night",
)
RIGHT = Seen({"cube": "red", "ball": "blue"}, 2, "sand", "night")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def backbone(models: Path):
    return load_backbone(models / "text_to_image")


def test_captions_of_the_first_edition_say_no_places_and_know_no_patterns() -> None:
    first, second = (captions(0, 60, edition=edition) for edition in (1, 2))
    assert all(item.place is None and not any(o.pattern for o in item.description.objects) for item in first)
    assert any(item.place is not None for item in second)
    assert any(o.pattern for item in second for o in item.description.objects)


def test_a_picture_that_follows_its_caption_is_all_right() -> None:
    assert judge(RIGHT, SCENE).is_all_right


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (RIGHT._replace(colors={"cube": "blue", "ball": "red"}), {"color"}),
        (RIGHT._replace(colors={"cube": "red", "cone": "blue"}), {"kind"}),
        (RIGHT._replace(colors={"cube": "red", "ball": "blue", "tree": "green"}), {"kind"}),
        (RIGHT._replace(count=3), {"count"}),
        (RIGHT._replace(ground="snow"), {"ground"}),
        (RIGHT._replace(time="fog"), {"time"}),
    ],
)
def test_each_way_to_be_wrong_is_counted_where_it_belongs(seen: Seen, wrong: set[str]) -> None:
    shares = accuracies([judge(seen, SCENE)])
    assert {name.removesuffix("_accuracy") for name, share in shares.items() if share < 1} == wrong | {"all"}


def test_what_is_not_there_has_no_colour_to_be_wrong() -> None:
    verdicts = [judge(RIGHT._replace(colors={"cube": "green"}), SCENE), judge(RIGHT, SCENE)]
    assert accuracies(verdicts)["color_accuracy"] == pytest.approx(2 / 3)
    assert np.isnan(accuracies([judge(RIGHT._replace(colors={}), SCENE)])["color_accuracy"])


def test_verdicts_are_told_apart_by_number_of_objects_and_by_word() -> None:
    single = Description(objects=SCENE.objects[:1], ground="snow", time="fog")
    verdicts = [judge(RIGHT, SCENE), judge(RIGHT, single)]
    table = accuracies_by_count(verdicts)
    assert (table["1"]["all_accuracy"], table["2"]["all_accuracy"], table["1"]["captions"]) == (0.0, 1.0, 1.0)
    words = shares_by_word(verdicts, [SCENE, single])
    assert words["ground"] == {"sand": 1.0, "snow": 0.0} and words["kind"] == {"ball": 1.0, "cube": 1.0}


def test_readings_are_named_in_the_words_of_the_world() -> None:
    present, colors = torch.zeros(1, len(KINDS)).long(), torch.zeros(1, len(KINDS)).long()
    present[0, KINDS.index("tree")], colors[0, KINDS.index("tree")] = 1, COLORS.index("pink")
    one, classes, patterns = torch.tensor([1]), torch.zeros(1, 16, 16).long(), torch.full_like(present, -1)
    plain = Seen({"tree": "pink"}, 1, "sand", "sunset")
    assert seen_in(Readings(present, colors, one, one, one, classes, patterns)) == [plain]
    patterns[0, KINDS.index("tree")] = 1 + PATTERNS.index("dotted")
    readings = Readings(present, colors, one, one, one, classes, patterns)
    assert seen_in(readings) == [plain._replace(patterns={"tree": "dotted"})]


def test_colors_without_a_name_are_not_judged_and_of_a_pattern_either_color_is_right() -> None:
    striped = SceneObject(kind="ball", color="blue", pattern="striped", second_color="white", x=1.5)
    scene = replace(SCENE, objects=(replace(SCENE.objects[0], color="#123456"), striped))
    for color, is_right in (("blue", True), ("white", True), ("red", False)):
        seen = RIGHT._replace(colors={"cube": "green", "ball": color}, patterns={"cube": "", "ball": "dotted"})
        verdict = judge(seen, scene)
        assert verdict.colors == {"ball": is_right} and verdict.is_all_right == is_right
        assert verdict.patterns == {"cube": True, "ball": False}
        assert accuracies([verdict])["pattern_accuracy"] == 0.5
    assert np.isnan(accuracies([judge(RIGHT, SCENE)])["pattern_accuracy"])


def test_a_place_is_read_off_cells() -> None:
    cells = torch.ones(16, 16).long()
    cells[6:10, 2:6], cells[6:10, 10:14] = (FIRST_KIND_CLASS + KINDS.index(kind) for kind in ("cube", "ball"))
    for relation, is_right in (("left", True), ("right", False), ("on", False), ("near", None)):
        place = Place(subject="red cube", relation=relation, anchors=("ball",))
        assert place_is_right(place, cells) == is_right
    assert not place_is_right(Place(subject="cone", relation="left", anchors=("ball",)), cells)
    found = place_accuracies([(Place(subject="a", relation=r, anchors=("b",)), r != "on") for r in ("on", "left")])
    assert found == {"all": 0.5, "on": 0.0, "left": 1.0}


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    assert roc_auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert roc_auc([1.0], [1.0]) == 0.5
    assert roc_auc([0.0, 3.0], [1.0, 2.0]) == 0.5


def test_mask_iou_is_that_of_sets() -> None:
    mask, truth = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    assert np.isnan(mask_iou_of(mask, truth))
    mask[:2], truth[1:3] = True, True
    assert mask_iou_of(mask, truth) == pytest.approx(4 / 12)


def test_word_iou_takes_only_objects_that_are_there() -> None:
    truth = torch.zeros(16, 16, dtype=torch.bool)
    truth[4:10, 4:10] = True
    attention = truth.float()
    words = (
        WordMask("cube", attention, local_blend_mask(attention[None])[0], truth),
        WordMask("ball", attention, local_blend_mask(attention[None])[0], None),
    )
    item = Captioned(SCENE, "a red cube and a blue ball", 0)
    found = word_iou([Sample(item, torch.zeros(3, 128, 128), RIGHT, judge(RIGHT, SCENE), words)])
    # Local blend's max-pool widens the mask by one cell all around.
    assert found["word_iou_blend"] == found["word_iou_blend_limit"] == pytest.approx(36 / 64)
    assert found["word_iou"] == 1.0 and found["words_scored"] == 0.5


def test_held_out_scenes_are_in_no_training_set_and_move_with_the_seed() -> None:
    items = captions(0, 40)
    assert not any(is_in_training(items, num_pictures=400))
    assert captions(0, 10) == items[:10]
    assert not {item.description for item in captions(1, 40)} & {item.description for item in items}
    pairs = {(o.kind, o.color) for item in captions(0, 40, split="unseen") for o in item.description.objects}
    assert pairs <= HELD_OUT_COMBINATIONS
    assert not {(o.kind, o.color) for item in items for o in item.description.objects} & HELD_OUT_COMBINATIONS


def test_a_training_scene_is_recognised() -> None:
    from miniature.pictures import picture_scene

    known = Captioned(picture_scene(5).shown, "", 0)
    assert is_in_training([known], num_pictures=6) == [True]
    assert is_in_training([known], num_pictures=5) == [False]


def test_renders_of_captions_have_the_labels_of_their_scenes() -> None:
    rendered = render_captioned(captions(0, 3))
    for index, item in enumerate(rendered.items):
        there = {KINDS[i] for i in range(len(KINDS)) if rendered.labels.present[index, i] == 1}
        assert there == {o.kind for o in item.description.objects}


def test_edit_cases_go_through_the_kinds_and_their_masks_hold_the_change() -> None:
    cases = list(edit_cases(0, 7))
    assert [case.edit.kind for case in cases] == list(CASE_KINDS[:7])
    for case in cases:
        difference = (case.after - case.before).abs().amax(0)
        assert bool(((difference > 3 / 255) == (case.mask == 1)).all()) and bool(case.mask.any())


def test_edit_cases_are_those_of_their_world_seed_and_say_where_things_go() -> None:
    cases = list(edit_cases(1, 2 * len(CASE_KINDS)))
    assert [case.edit.kind for case in cases] == [*CASE_KINDS, *CASE_KINDS]
    assert cases[0].edit != next(edit_cases(0, 1)).edit
    placed = [case.edit.place for case in cases if case.edit.kind in ("add", "move")]
    assert all(place is not None for place in placed)


def test_places_of_captions_hold_in_their_renders() -> None:
    items = captions(0, 60)
    placed = [item for item in items if item.place is not None]
    assert len(placed) > 10 and all(read_place(item.caption) for item in placed)
    for item in placed:
        assert item.place and holds(item.place, item.description, sample_camera(item.description, item.seed))
    short = captions(0, 10, fits=lambda item: len(item.caption.split()) < 10)
    assert all(len(item.caption.split()) < 10 for item in short) and len(short) == 10


def test_texts_that_a_tokenizer_cannot_take_whole_do_not_fit(backbone) -> None:
    assert fits(backbone.tokenizer, "a cube", "a ball")
    assert not fits(backbone.tokenizer, "a cube", 60 * "a ball ")


def test_places_of_renders_are_judged_where_cells_can_tell() -> None:
    rendered = render_captioned(captions(0, 6, fits=lambda item: item.place is not None))
    judged = judge_places(Probe().eval(), rendered)
    assert [place for place, _ in judged] == [
        item.place for item in rendered.items if item.place and item.place.relation in JUDGED_PLACES
    ]


def test_samples_are_those_of_the_plain_sampler(backbone) -> None:
    items = captions(0, 3)
    samples = sample(backbone, items, Probe().eval(), Sampling(steps=3, guidance=2.0, batch_size=3))
    plain = sample_images(
        backbone, [item.caption for item in items], seeds=[item.seed for item in items], steps=3, guidance=2.0
    )
    torch.testing.assert_close(torch.stack([item.image for item in samples]), plain, atol=0.02, rtol=0.02)
    for item, drawn in zip(items, samples, strict=True):
        assert [word.kind for word in drawn.words] == [o.kind for o in item.description.objects]
        assert all(word.attention.shape == (16, 16) and float(word.attention.min()) >= 0 for word in drawn.words)


def test_the_time_is_that_of_the_sampling_asked_for(backbone, monkeypatch) -> None:
    calls = []
    predict = backbone.predict_noise
    monkeypatch.setattr(type(backbone), "predict_noise", lambda self, *args: calls.append(1) or predict(*args))
    for steps in (2, 5):
        calls.clear()
        assert measure_sampling(backbone, captions(0, 2), Sampling(steps=steps))["sample16_s"] > 0
        assert len(calls) == 2 * steps  # it is timed twice


def test_benchmark_samples_as_the_sampler_does_by_itself() -> None:
    defaults = inspect.signature(sample_images).parameters
    for name in ("steps", "guidance", "solver"):
        assert getattr(Sampling(), name) == defaults[name].default


def test_averaged_weights_of_a_training_take_the_place_of_the_models(backbone, tmp_path: Path) -> None:
    average = {f"unet.{k}": v + 1 for k, v in backbone.unet.state_dict().items()}
    average |= {f"text_encoder.{k}": v for k, v in backbone.text_encoder.state_dict().items()}
    torch.save({"step": 7, "average": average}, tmp_path / "state.pt")
    before = backbone.unet.conv_in.bias.clone()
    parts = {"unet": backbone.unet, "text_encoder": backbone.text_encoder}
    assert load_training_state(parts, tmp_path / "state.pt") == 7
    assert torch.allclose(backbone.unet.conv_in.bias, before + 1)
    torch.save({"step": 7, "average": {"unet.other": torch.zeros(1)}}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="does not fit"):
        load_training_state(parts, tmp_path / "state.pt")
    with pytest.raises(InputError, match="does not exist"):
        load_training_state(parts, tmp_path / "none.pt")


def test_words_that_a_picture_does_not_follow_are_marked() -> None:
    seen = Seen({"cube": "green"}, 1, "sand", "fog")
    assert {"red", "ball", "night"} <= wrong_words(judge(seen, SCENE), SCENE)
    assert not {"cube", "blue", "sand"} & wrong_words(judge(seen, SCENE), SCENE)
    item = Captioned(SCENE, "at night, a red cube and a blue ball on sand", 0)
    card = card_of(Sample(item, torch.zeros(3, 128, 128), seen, judge(seen, SCENE), ()))
    assert [word for word, is_wrong in card.words if is_wrong] == ["night,", "red", "ball"]
    assert card.note == "reads: green cube; sand, fog; 1 objects"
    assert card_of(Sample(item, torch.zeros(3, 128, 128), RIGHT, judge(RIGHT, SCENE), ())).note == ""


def test_only_cards_with_something_wrong_have_a_red_edge() -> None:
    red = tuple(int(WRONG[i : i + 2], 16) for i in (1, 3, 5))
    picture = Image.new("RGB", (128, 128), "blue")
    for note, has_edge in (("reads: nothing", True), ("", False)):
        sheet = np.asarray(draw_cards([Card(picture, (("a", False), ("cube", False)), note)], columns=1))
        assert bool((sheet == red).all(2).any()) == has_edge


def test_page_names_what_falls_short(tmp_path: Path) -> None:
    figures = Figures()
    figures.add({"kind_accuracy": 0.9, "edit_spill": 0.001, "word_iou": float("nan"), "extra": 1.0})
    assert figures.falls_short("kind_accuracy") and not figures.falls_short("edit_spill")
    assert figures.falls_short("word_iou") and figures.details == {"extra": 1.0}
    table = {"kind_accuracy": (0.9, ">= 0.95", True), "edit_spill": (0.001, "<= 0.01", False)}
    write_page(tmp_path, table, {"two words": Image.new("RGB", (4, 4))}, what="a <test>")
    text = (tmp_path / "index.html").read_text()
    assert text.count("class=short") == 1 and "a &lt;test&gt;" in text and "&gt;= 0.95" in text
    assert (tmp_path / "two_words.png").exists()


def test_the_ratio_of_a_training_step_is_read_from_the_output_that_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "step.txt").write_text('compiling\n{"samples_per_s": {}, "train_step_ratio": 2.5}\n')
    for path, expected in ((tmp_path / "step.txt", 2.5), (None, None)):
        benchmark = Benchmark(Settings(train_step=path, parts=("train_step",), models=models))
        assert _rounded(benchmark.run().values) == {"train_step_ratio": expected}


def test_wanted_figures_are_those_of_the_issue() -> None:
    assert list(WANTED) == [
        "vae_psnr_db", "color_accuracy", "kind_accuracy", "ground_accuracy", "time_accuracy", "count_accuracy",
        "all_accuracy", "unseen_accuracy", "place_accuracy", "word_iou", "clip_top1_of_256", "clip_direction_auc",
        "edit_progress_appearance", "edit_progress_shape",
        *(f"edit_progress_{kind}" for kind in ("recolour", "ground", "time", "reshape", "remove", "add", "move")),
        "edit_spill", "edit_mask_iou", "train_step_ratio", "sample16_s", "assets_mb",
    ]  # fmt: skip
