"""What an endpoint is told, what it costs, and what is kept of its answers."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from restage.edit.editors import MenuEditor
from restage.edit.editors.endpoint import Frame, open_endpoint
from restage.edit.editors.interface import AskedPictures, EditorSource
from restage.edit.job import Dialed, asked_pictures
from restage.edit.methods import METHODS
from restage.edit.methods.restage import Restage
from restage.edit.pictures import quantize
from restage.edit.sharing import AnchoredNoise
from restage.edit.single import EditChoice, estimate_edit, open_edit
from restage.records import EditRequest, InputError, derive_seed, read_json
from restage.run.endpoint_config import EndpointConfig
from restage.run.folder import RunFolder
from restage.run.paid import PaidAnswers
from restage.run.reading import EditRecord
from restage.scenes.references import ShownPicture
from tests.edit.endpoint.fake_images import answer_bytes, answer_with, encode, invert, pixels_of
from tests.fake_server import Plain, fail


def models(*names: str, **said) -> Plain:
    """A page of models; with `said`, as `restage serve` writes it."""
    ours = {"owned_by": "restage", "restage": said} if said else {}
    return Plain(data=json.dumps({"object": "list", "data": [{"id": name, **ours} for name in names]}).encode())


OURS = {"fingerprint": "abc", "takes": ["seed", "noise_level", "captions"]}


def test_a_host_gets_the_picture_the_instruction_and_a_seed_that_all_take(server, batch, open_editor):
    open_editor(num_parallel=1).edit(batch)
    for place, asked in enumerate(server.asked):
        assert np.array_equal(asked.picture, (batch.originals[place] * 255).round().byte().permute(1, 2, 0).numpy())
        assert asked.fields.pop("seed") == str(derive_seed(7, "view noise", batch.view_indices[place]) % 2**31)
        assert asked.fields == {
            "prompt": "make it negative",
            "model": "fake",
            "n": "1",
            "size": "24x16",
            "response_format": "b64_json",
        }
        assert list(asked.files) == ["image"] and server.paths[place] == "/v1/images/edits"
        assert server.headers[place]["idempotency-key"].startswith("picture-")


def test_views_with_one_noise_get_one_seed(server, batch, open_editor):
    open_editor(num_parallel=1).edit(dataclasses.replace(batch, noise_keys=(0, 1, 0, 1)))
    first, second, third, fourth = (asked.fields["seed"] for asked in server.asked)
    assert first == third != second == fourth


def test_noise_that_is_no_seed_is_refused_by_name(server, batch, open_editor):
    noise = AnchoredNoise.__new__(AnchoredNoise)
    with pytest.raises(InputError, match="belongs to the surfaces of a scene"):
        open_editor().edit(dataclasses.replace(batch, noise_keys=noise))
    assert not server.asked


def test_partial_noise_is_refused_before_anything_is_asked(server, batch, open_editor):
    editor = open_editor()
    editor.prepare(asked_pictures(METHODS["restage"](), 40))
    editor.prepare(None)
    for method in ("idu", "igs2gs", "depth_fusion", "joint"):
        with pytest.raises(InputError, match="cannot be told; choose the method restage or replace_once"):
            editor.prepare(asked_pictures(METHODS[method](), 40))
    with pytest.raises(InputError, match="cannot be told"):
        editor.edit(dataclasses.replace(batch, noise_level=0.5))
    assert not server.asked


def test_our_own_server_gets_all_that_it_takes(server, batch, open_editor):
    server.models = lambda: models("edit_model", **OURS)
    editor = open_editor(model="", picture_size="")
    editor.prepare(asked_pictures(METHODS["idu"](), 40))
    request = dataclasses.replace(batch.request, source_caption="a", target_caption="b")
    editor.edit(dataclasses.replace(batch, views=1 - batch.views, noise_level=0.3, request=request))
    for asked in server.asked:
        assert asked.fields["model"] == "edit_model" and asked.fields["size"] == "24x16"
        assert float(asked.fields["noise_level"]) == 0.3 and asked.fields["target_caption"] == "b"
        start = pixels_of(*asked.files["start"])
        assert np.array_equal(start, 255 - asked.picture)
    seeds = {int(asked.fields["seed"]) for asked in server.asked}
    assert seeds == {derive_seed(7, "view noise", index) for index in batch.view_indices}


def test_masks_of_the_server_come_back(server, batch, open_editor):
    server.answer = lambda asked: answer_with(
        b64_json=json.loads(invert(asked).data)["data"][0]["b64_json"],
        mask_b64_json=json.loads(answer_bytes(encode(asked.picture[..., 0])).data)["data"][0]["b64_json"],
    )
    for _ in range(2):  # the second time from disk
        edited = open_editor().edit(batch)
        assert torch.equal(edited.masks, batch.originals[:, 0])
        assert torch.equal(edited.images, quantize(1 - batch.originals))
    assert len(server.asked) == 4


def test_regions_and_references_are_sent_as_the_protocol_has_them(server, batch, open_editor):
    regions = torch.zeros(4, 16, 24)
    regions[:, :, :10] = 1
    told = dataclasses.replace(batch, regions=regions, references=(ShownPicture(torch.rand(3, 8, 8)),))
    open_editor().edit(told)
    for asked in server.asked:
        image, reference = asked.files["image[]"]
        mask = pixels_of(*asked.files["mask"])
        assert reference != image and np.array_equal(mask[..., :3], pixels_of(image))
        assert (mask[:, :10, 3] == 0).all() and (mask[:, 10:, 3] == 255).all()


@pytest.mark.parametrize("says", ["Unknown parameter: '{}'.", "unexpected field", '{{"loc": ["body", "{}"]}} extra'])
@pytest.mark.parametrize("name", ["response_format", "seed", "n", "size", "guidance", "mask"])
def test_what_a_server_refuses_is_left_out_and_said_once(server, batch, open_editor, name, says):
    def picky(asked):
        return fail(400, says.format(name)) if {name} & {*asked.fields, *asked.files} else invert(asked)

    server.answer = picky
    editor = open_editor(options=("guidance=4",), num_parallel=1)
    edited = editor.edit(dataclasses.replace(batch, regions=torch.ones(4, 16, 24)))
    assert not edited.left_out
    assert sum(f"refuses {name!r}, which is left out" in remark for remark in editor.remarks) == 1
    assert len(server.asked) <= 4 + 6 and all(name not in asked.fields for asked in server.asked[-3:])


def test_a_server_that_wants_lists_of_pictures_gets_them(server, batch, open_editor):
    def picky(asked):
        says = '[{"loc": ["body", "image[]"], "msg": "Field required"}]'
        return fail(422, says) if "image" in asked.files else invert(asked)

    server.answer = picky
    assert not open_editor(num_parallel=1).edit(batch).left_out and len(server.asked) == 5


def test_an_address_without_its_version_is_tried_with_it(server, batch, open_editor):
    server.answer = lambda asked: invert(asked) if server.paths[-1].startswith("/v1/") else fail(404, "no such page")
    editor = open_editor(base_url=server.url.removesuffix("/v1"), num_parallel=1)
    assert not editor.edit(batch).left_out
    assert any("/v1 is asked" in remark for remark in editor.remarks)


def test_without_a_name_the_only_model_is_asked_and_of_several_none(server, batch, open_editor, monkeypatch):
    server.models = lambda: models("grade")
    open_editor(model="").edit(batch)
    assert {asked.fields["model"] for asked in server.asked} == {"grade"}
    server.models = lambda: models("one", "two")
    with pytest.raises(InputError, match="no model is named; .*the server lists one, two"):
        open_editor(model="")
    monkeypatch.setenv("RESTAGE_EDITOR_MODEL", "two")
    assert open_editor(model="").asker.model.id == "two"


@pytest.mark.parametrize("data", [b"<html>", b'{"data": 3}', b'{"data": [3, {"id": 7}, {"id": "x", "restage": []}]}'])
def test_a_page_of_models_that_is_none_says_nothing(server, batch, open_editor, data):
    server.models = lambda: Plain(data=data)
    editor = open_editor()
    assert not editor.asker.model.is_ours and not editor.edit(batch).left_out


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("gpt-image-1", "", (1536, 1024)),
        ("openai/gpt-image-1.5", "", (1536, 1024)),
        ("dall-e-2", "", (1024, 1024)),
        ("qwen-image-edit", "", (1248, 832)),
        ("qwen-image-edit", "512x512,768x512", (768, 512)),
        ("qwen-image-edit", "own", (24, 16)),
    ],
)
def test_views_are_scaled_and_padded_to_what_a_model_takes_and_come_back(
    server, batch, open_editor, model, size, expected
):
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 24), indexing="ij")
    view = torch.stack([rows, columns, rows * columns])[None]
    one = dataclasses.replace(batch, views=view, originals=view, view_indices=(3,))
    edited = open_editor(model=model, picture_size=size, min_views=1).edit(one)
    (asked,) = server.asked
    assert asked.picture.shape[:2] == expected[::-1] and asked.fields["size"] == "{}x{}".format(*expected)
    assert ("response_format" in asked.fields) == ("gpt-image" not in model)
    assert float((edited.images - (1 - view)).abs().mean()) < 0.01


@pytest.mark.parametrize(("width", "height"), [(128, 128), (160, 90), (90, 160), (33, 100)])
def test_what_is_put_into_a_frame_comes_out_of_it_at_any_resolution(width, height):
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    view = torch.stack([rows, columns, rows * columns])
    frame = Frame.of(width, height, [(1024, 1024), (1536, 1024), (1024, 1536)])
    sent = frame.put(view)
    assert sent.shape == (3, frame.height, frame.width)
    smaller = torch.nn.functional.interpolate(sent[None], scale_factor=0.5, mode="area")[0]
    for answered in (sent, smaller):
        assert float((frame.take(answered, width, height) - view).abs().max()) < 0.01


def test_nothing_is_paid_twice(server, batch, open_editor):
    first = open_editor().edit(batch)
    again = open_editor()
    second = again.edit(batch)
    assert torch.equal(first.images, second.images) and server.num_paid == 4
    assert again.remarks[-1].startswith("0 pictures were asked for, 4 were kept before")
    for changed in (
        dataclasses.replace(batch, seed=8),
        dataclasses.replace(batch, originals=batch.originals.flip(0), views=batch.views.flip(0)),
        dataclasses.replace(batch, request=dataclasses.replace(batch.request, instruction="make it blue")),
    ):
        paid = server.num_paid
        open_editor().edit(changed)
        assert server.num_paid == paid + 4
    paid = server.num_paid
    open_editor(model="other").edit(batch)
    open_editor(options=("guidance=4",)).edit(batch)
    assert server.num_paid == paid + 8


def test_a_new_training_of_the_served_model_is_another_model(server, batch, open_editor):
    for fingerprint in ("a", "b", "a"):
        server.models = lambda fingerprint=fingerprint: models("m", **{**OURS, "fingerprint": fingerprint})
        open_editor(model="m").edit(batch)
    assert server.num_paid == 8


def test_a_spoilt_answer_on_disk_is_asked_for_again(server, batch, open_editor, tmp_path):
    open_editor().edit(batch)
    path = sorted((tmp_path / "answers").glob("*/*.png"))[0]
    path.write_bytes(path.read_bytes()[:50])
    assert not open_editor().edit(batch).left_out and server.num_paid == 5


def test_the_cost_limit_is_never_passed_and_a_higher_one_goes_on(server, batch, open_editor):
    cost = {"price_per_picture": 0.1, "max_cost": 0.3, "num_parallel": 4}
    with pytest.raises(InputError, match="cost limit of 0.3 is reached: 0.3 is spent"):
        open_editor(**cost).edit(batch)
    assert server.num_paid == 3
    assert not open_editor(**{**cost, "max_cost": 0.4}).edit(batch).left_out
    assert server.num_paid == 4


def test_answers_of_no_use_count_as_paid(server, batch, open_editor):
    server.answer = lambda asked: Plain(data=b"<html>")
    cost = {"price_per_picture": 1.0, "max_cost": 6.0, "num_parallel": 1}
    with pytest.raises(InputError, match="too few views"):
        open_editor(**cost).edit(batch)
    assert len(server.asked) == 6  # three views, twice each
    server.answer = invert
    with pytest.raises(InputError, match="cost limit of 6 is reached"):
        open_editor(**cost).edit(batch)
    assert len(server.asked) == 6 == open_editor().asker.budget.spent.num_requests


def test_a_price_is_needed_for_a_limit_and_odd_settings_are_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_cost": 1.0}, "needs a price"),
        ({"price_per_picture": -1.0}, "must not be negative"),
        ({"min_views": 0}, "at least 1"),
        ({"picture_size": "big"}, "picture_size like 1024x1024"),
        ({"picture_size": "9999x9999"}, "picture_size like 1024x1024"),
        ({"base_url": "https://me:pass@host/v1"}, "it is recorded"),
        ({"base_url": "ftp://host"}, "no address of a server"),
    ]
    for settings, message in cases:
        with pytest.raises(InputError, match=message):
            EndpointConfig(**settings)


def test_what_the_environment_lacks_is_said(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set; .*--base-url"):
        open_endpoint(EditorSource(answers=tmp_path))
    with pytest.raises(InputError, match="field=value"):
        open_endpoint(EditorSource(answers=tmp_path, options=("prompt=x",)))
    with pytest.raises(InputError, match="--cache"):
        open_endpoint(EditorSource())


def test_the_menu_opens_it_with_its_settings(server, tmp_path, batch):
    server.models = lambda: models("fake", **OURS)  # what it sends is taken as it is
    config = EndpointConfig(base_url=server.url, picture_size="own")
    menu_editor = MenuEditor(name="endpoint", model=Path("fake"), endpoint=config)
    editor = menu_editor.open(EditorSource(answers=tmp_path))
    assert not editor.edit(batch).left_out and server.asked[0].fields["model"] == "fake"


@pytest.mark.parametrize(
    ("method", "count", "from_renders"),
    [("restage", 24, False), ("replace_once", 40, False), ("idu", 90, True), ("igs2gs", 120, True)],
)
def test_methods_say_how_many_pictures_they_ask_for(method, count, from_renders):
    chosen = METHODS[method]()
    assert asked_pictures(chosen, 40) == AskedPictures(count, from_renders)
    assert asked_pictures(Dialed(settings=chosen, strength=0.5), 40) == AskedPictures(count, from_renders)
    assert asked_pictures(METHODS["sds"](), 40) is None


def test_an_estimate_counts_views_and_money_and_asks_nothing(server, tiny_scene, tmp_path):
    tiny_scene.write(tmp_path / "scene")
    endpoint = EndpointConfig(base_url=server.url, price_per_picture=0.04)
    text = estimate_edit(tmp_path / "scene", EditChoice(editor="endpoint", endpoint=endpoint), num_edits=2)
    assert text == "12 pictures at most, 0.48 at 0.04 each"  # of six training views, twice
    assert "--price-per-picture" in estimate_edit(tmp_path / "scene", EditChoice(editor="endpoint"))
    with pytest.raises(InputError, match="does not say how many"):
        estimate_edit(tmp_path / "scene", EditChoice(editor="endpoint", method="sds"))
    assert not server.asked and not server.fetched


def test_a_result_says_what_was_asked_for_and_left_out(server, tiny_scene, tmp_path, monkeypatch):
    run = RunFolder.open(tmp_path / "run", {}, seed=1)
    tiny_scene.write(run.path / "scenes" / "tiny")
    monkeypatch.setattr("restage.edit.methods.restage.choose_key_views", lambda cameras, count: [0, 1, 2, 3])
    refused = []

    def refuse_one(asked):
        with server.lock:
            refused.extend([] if refused else [asked.fields["seed"]])
        return fail(400, "flagged") if asked.fields["seed"] in refused else invert(asked)

    server.answer, server.models = refuse_one, lambda: models("fake", **OURS)
    endpoint = EndpointConfig(base_url=server.url, picture_size="own", min_views=3, num_parallel=1)
    method = Restage(num_key_views=4, num_noises=4, color_steps=3, shape_steps=2)
    choice = EditChoice(editor="endpoint", model=Path("fake"), endpoint=endpoint, settings=method)
    request = EditRequest(instruction="make it negative", source_caption="", target_caption="")
    opened = open_edit(run, run.path / "scenes" / "tiny", request=request, choice=choice)
    list(opened.steps)
    record = read_json(opened.folder / "record.json", EditRecord)
    assert record.status == "done" and "view 0 was left out: the endpoint refuses" in record.reason
    assert "3 pictures were asked for, 0 were kept before" in record.reason
    assert len(list((run.path / "endpoint").glob("*/*.png"))) == 3


def test_kills_at_any_moment_cost_at_most_what_was_under_way(server, batch, open_editor, tmp_path):
    many = {name: getattr(batch, name).repeat(4, 1, 1, 1) for name in ("views", "originals")}
    many = dataclasses.replace(batch, **many, view_indices=tuple(range(16)))

    def dawdle(asked):
        time.sleep(0.03)
        return invert(asked)

    server.answer, num_kills, kept = dawdle, 4, 0
    for moment in range(num_kills):
        child = os.fork()
        if not child:
            try:
                open_editor(num_parallel=2).edit(many)
            finally:
                os._exit(0)
        time.sleep(0.08 + 0.02 * moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert (now := len(list((tmp_path / "answers").glob("*/[!.]*.png")))) >= kept
        kept = now
    asked = len(server.asked)
    editor = open_editor()
    assert not editor.edit(many).left_out
    assert len(server.asked) - asked == 16 - kept  # only what is missing
    lost = PaidAnswers(tmp_path / "answers", suffix=".png").num_lost
    assert server.num_paid - 16 <= lost <= 2 * num_kills
