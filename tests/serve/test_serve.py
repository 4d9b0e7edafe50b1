"""What the server takes, refuses and counts; that it answers as an editor in this process does."""

import base64
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from restage.edit.editors.endpoint import open_endpoint
from restage.edit.editors.grade import grade_views
from restage.edit.editors.interface import Edited, EditorSource, ViewBatch
from restage.edit.editors.picture_client import OWNER, Part, decode_picture, encode_mask, encode_picture
from restage.edit.pictures import quantize
from restage.records import EditRequest, InputError
from restage.run.endpoint_config import EndpointConfig
from restage.serve import app
from restage.serve.batching import BatchingQueue, QueueFull
from restage.serve.config import ServeConfig
from restage.serve.served import ServedEditor, editor_of_folder, open_served

VIEW = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255
PICTURE = Part("image", encode_picture(VIEW), "a.png")
PROMPT = Part("prompt", b"make it golden")


def picture_of(answer, number=0):
    return decode_picture(base64.b64decode(answer.json["data"][number]["b64_json"]), "the answer")


def test_an_edit_is_what_the_editor_makes_of_the_picture_without_loss(grade):
    answer = grade.edit(PICTURE, PROMPT)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert torch.equal(picture_of(answer), quantize(grade_views(VIEW[None], "make it golden").images[0]))


def test_a_mask_holds_the_edit_inside_where_it_is_transparent_or_white(grade):
    region = torch.zeros(20, 30)
    region[:, :12] = 1
    expected = torch.where(region.bool(), quantize(grade_views(VIEW[None], "make it golden").images[0]), VIEW)
    white = encode_picture(region.expand(3, 20, 30))
    for content in (encode_mask(VIEW, region), white):
        answer = grade.edit(PICTURE, Part("prompt", b"turn the bear into gold"), Part("mask", content, "m.png"))
        assert torch.equal(picture_of(answer), expected)
        mask = decode_picture(base64.b64decode(answer.json["data"][0]["mask_b64_json"]), "the mask")
        assert torch.equal(mask[0], region)


def test_the_pages_around_it(grade):
    assert grade.ask("/health").json["status"] == "ok"
    (model,) = grade.ask("/v1/models").json["data"]
    assert model["id"] == "grade" and model["owned_by"] == OWNER and model["restage"]["fingerprint"]
    assert grade.ask("/v1/models/grade").json == model
    assert grade.ask("/v1/models/other").status == 404
    grade.edit(PICTURE, PROMPT)
    text = grade.ask("/metrics").content.decode()
    assert 'restage_requests_total{page="/v1/images/edits",status="200"}' in text
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
    assert grade.ask("/docs").status == grade.ask("/").status == 404
    assert grade.ask("/v1/images/edits").json["error"]["message"]


BAD = {
    "no picture": ((PROMPT,), 400, "expected a picture"),
    "no prompt": ((PICTURE,), 400, "'prompt'"),
    "a prompt too long": ((PICTURE, Part("prompt", b"x" * 5000)), 400, "'prompt' of 1 to 4000"),
    "a prompt far too long": ((PICTURE, Part("prompt", b"x" * 50_000)), 400, "form cannot be read"),
    "a text as a picture": ((Part("image", b"hello", "a.png"), PROMPT), 400, "not readable as an image"),
    "SVG": ((Part("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg"), PROMPT), 400, "not readable"),
    "a picture as a field": ((Part("image", b"hello"), PROMPT), 400, "Unknown parameter: 'image'"),
    "too many pixels": ((Part("image", encode_picture(torch.zeros(3, 80, 60)), "a.png"), PROMPT), 400, "at most 4096"),
    "too long a side": ((Part("image", encode_picture(torch.zeros(3, 4, 200)), "a.png"), PROMPT), 400, "at most 64"),
    "two pictures": ((PICTURE, PICTURE, PROMPT), 400, "takes one picture, got 2"),
    "many files": ((*[PICTURE] * 12, PROMPT), 400, "form cannot be read"),
    "many fields": ((PICTURE, PROMPT, *[Part(f"x{i}", b"1") for i in range(60)]), 400, "form cannot be read"),
    "another model": ((PICTURE, PROMPT, Part("model", b"gpt-image-1")), 404, "is not served here"),
    "an unknown field": ((PICTURE, PROMPT, Part("magic", b"1")), 400, "Unknown parameter: 'magic'"),
    "another size": ((PICTURE, PROMPT, Part("size", b"1024x1024")), 400, "'size' is refused"),
    "an address as an answer": ((PICTURE, PROMPT, Part("response_format", b"url")), 400, "'response_format'"),
    "a seed below zero": ((PICTURE, PROMPT, Part("seed", b"-1")), 400, "'seed'"),
    "a seed too large": ((PICTURE, PROMPT, Part("seed", b"9" * 19)), 400, "'seed'"),
    "half a picture": ((PICTURE, PROMPT, Part("n", b"0.5")), 400, "'n'"),
    "too many pictures": ((PICTURE, PROMPT, Part("n", b"1000")), 400, "'n'"),
    "no noise": ((PICTURE, PROMPT, Part("noise_level", b"0")), 400, "'noise_level'"),
    "noise that is no number": ((PICTURE, PROMPT, Part("noise_level", b"nan")), 400, "'noise_level'"),
    "a mask of another size": (
        (PICTURE, PROMPT, Part("mask", encode_picture(torch.zeros(3, 4, 4)), "m.png")),
        400,
        "another size",
    ),
    "a thing that it cannot find": ((PICTURE, Part("prompt", b"make the bear golden")), 400, "where 'bear' is"),
    "an instruction that it cannot read": ((PICTURE, Part("prompt", b"add a hat")), 400, "finds no color"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_served_is_refused_by_name_and_the_server_goes_on(grade, name):
    parts, status, message = BAD[name]
    answer = grade.edit(*parts)
    assert answer.status == status and message in answer.json["error"]["message"]
    assert grade.edit(PICTURE, PROMPT).status == 200


def test_bodies_are_bounded_whatever_their_length_says(grade):
    large = b"x" * 300_000
    answer = grade.ask("/v1/images/edits", large, Content_Type="multipart/form-data; boundary=a")
    assert answer.status == 413 and "larger than 200000 bytes" in answer.json["error"]["message"]
    head = b'--a\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    chunked = iter([head, *[b"x" * 10_000] * 30])
    answer = grade.ask("/v1/images/edits", chunked, Content_Type="multipart/form-data; boundary=a")  # pyright: ignore
    assert answer.status == 413
    assert grade.ask("/v1/images/edits", b"", Content_Type="text/plain").status == 400
    assert grade.ask("/v1/images/generations", b"[1").status == 400
    assert (
        grade.ask("/v1/images/generations", b'{"prompt": "a cube"}').json["error"]["message"].startswith("grade edits")
    )


def test_other_names_and_other_pages_are_refused(grade):
    assert grade.ask("/health", Host="evil.example").status == 403
    assert grade.edit(PICTURE, PROMPT, Origin="https://evil.example").status == 403
    assert grade.edit(PICTURE, PROMPT, Origin=grade.url.removesuffix("/v1")).status == 200


def test_on_loopback_no_token_is_needed_and_elsewhere_always(grade, serve_it, monkeypatch, tmp_path):
    assert grade.token == ""
    served = open_served("grade", None, device="cpu")
    with serve_it(served, host="0.0.0.0") as everywhere:
        local = everywhere._replace(url=everywhere.url.replace("0.0.0.0", "127.0.0.1"))
        assert len(everywhere.token) > 20 and local.ask("/health").status == 200
        for page in ("/v1/models", "/metrics", "/v1/images/edits"):
            assert local.ask(page).status == local.ask(page, Authorization="Bearer guessed").status == 401
        good = f"Bearer {everywhere.token}"
        assert local.edit(PICTURE, PROMPT, Authorization=good).status == 200
        assert local.edit(PICTURE, PROMPT, Authorization=good, Host="evil.example").status == 403
        monkeypatch.setenv("OPENAI_API_KEY", "guessed-key")
        config = EndpointConfig(base_url=local.url, max_tries=1)
        with pytest.raises(InputError, match="no model is named"):
            open_endpoint(EditorSource(endpoint=config, answers=tmp_path))
    monkeypatch.setenv("RESTAGE_SERVE_TOKEN", "chosen-token")
    with serve_it(served) as chosen:
        assert chosen.token == "chosen-token" and chosen.ask("/v1/models").status == 401


@dataclasses.dataclass
class Counting:
    """An editor that notes what it is asked for, and waits until it may answer."""

    batches: list[ViewBatch] = dataclasses.field(default_factory=list)
    may_answer: threading.Event = dataclasses.field(default_factory=threading.Event)

    def edit(self, batch: ViewBatch) -> Edited:
        self.batches.append(batch)
        self.may_answer.wait(20)
        if batch.request.instruction == "fail":
            raise RuntimeError("a secret of the server")
        seeds = torch.tensor([seed % 251 for seed in batch.noise_seeds()]) / 255
        return Edited(batch.originals * 0 + seeds[:, None, None, None], torch.ones_like(batch.originals[:, 0]))


@pytest.fixture
def counting():
    return ServedEditor("counting", Counting(), "edit_model", "abc")


def test_what_arrives_together_is_edited_together_and_each_gets_its_own(counting, serve_it):
    with serve_it(counting, max_batch=4, window=0.3) as running, ThreadPoolExecutor(8) as pool:
        counting.editor.may_answer.set()

        def ask(seed, prompt=PROMPT):
            return running.edit(PICTURE, prompt, Part("seed", str(seed).encode()))

        other = pool.submit(ask, 50, Part("prompt", b"another"))
        answers = list(pool.map(ask, range(6)))
        for seed, answer in enumerate(answers):
            assert float(picture_of(answer).max()) == pytest.approx(seed / 255)
        assert float(picture_of(other.result()).max()) == pytest.approx(50 / 255)
        sizes = [(batch.request.instruction, len(batch.views)) for batch in counting.editor.batches]
        assert sum(size for _, size in sizes) == 7 and max(size for _, size in sizes) > 1
        assert ("another", 1) in sizes and all(size <= 4 for _, size in sizes)
        answer = running.edit(PICTURE, PROMPT, Part("n", b"2"), Part("seed", b"9"))
        assert not torch.equal(picture_of(answer, 0), picture_of(answer, 1))


def test_who_lost_an_answer_gets_it_again_and_not_another_one(counting, serve_it):
    counting.editor.may_answer.set()
    with serve_it(counting) as running:
        first, second = (running.edit(PICTURE, PROMPT, Idempotency_Key="k1") for _ in range(2))
        assert first.content == second.content and len(counting.editor.batches) == 1
        other = running.edit(PICTURE, Part("prompt", b"else"), Idempotency_Key="k1")
        assert other.status == 422 and "another request" in other.json["error"]["message"]
        failed = [running.edit(PICTURE, Part("prompt", b"fail"), Idempotency_Key="k2") for _ in range(2)]
        assert [one.status for one in failed] == [500, 500] and len(counting.editor.batches) == 3
        assert "secret" not in failed[0].content.decode()
        assert running.edit(PICTURE, PROMPT).status == 200


def test_more_than_may_wait_are_told_to_come_again(counting, serve_it):
    with serve_it(counting, max_batch=1, max_waiting=2) as running, ThreadPoolExecutor(3) as pool:

        def wait_for(condition):
            deadline_s = time.monotonic() + 20
            while not condition() and time.monotonic() < deadline_s:
                time.sleep(0.01)

        asked = [pool.submit(running.edit, PICTURE, PROMPT)]
        wait_for(lambda: counting.editor.batches)
        asked += [pool.submit(running.edit, PICTURE, PROMPT) for _ in range(2)]
        wait_for(lambda: running.ask("/health").json["waiting"] == 2)
        refused = running.edit(PICTURE, PROMPT)
        counting.editor.may_answer.set()
        assert refused.status == 429 and refused.headers["retry-after"] == "1"
        assert [one.result().status for one in asked] == [200, 200, 200]


def test_a_queue_that_is_closed_drops_what_waits():
    entered, release = threading.Event(), threading.Event()

    def work(items):
        entered.set()
        release.wait(20)
        return items

    queue = BatchingQueue(work, max_batch=1, max_waiting=3, window_s=0.0)
    (first,) = queue.submit("a", 1)
    entered.wait(20)
    second, third = queue.submit("a", 2, 3)
    with pytest.raises(QueueFull):
        queue.submit("a", 4, 5)
    threading.Timer(0.05, release.set).start()
    queue.close()
    assert first.result() == 1 and second.cancelled() and third.cancelled()
    with pytest.raises(QueueFull):
        queue.submit("a", 6)


def test_what_cannot_be_served_is_said_at_the_start(tmp_path):
    for name in ("exact", "noisy-0.5-grade", "endpoint", "other"):
        with pytest.raises(InputError, match="expected one of edit_model, grade"):
            open_served(name, None, device="cpu")
    with pytest.raises(InputError, match="does not exist"):
        open_served("", tmp_path / "none", device="cpu")
    wrong: list[dict[str, Any]] = [{"max_batch": 0}, {"max_batch": 8, "max_waiting": 4}, {"window": 100.0}]
    for settings in [*wrong, {"max_megabytes": 0.0}]:
        with pytest.raises(InputError):
            ServeConfig(**settings)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert editor_of_folder(tmp_path) == "text_to_image"


def test_an_editor_behind_the_server_edits_as_in_one_process(grade, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", grade.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    editor = open_endpoint(EditorSource(answers=tmp_path))
    assert editor.asker.model.id == "grade" and editor.asker.model.is_ours
    views = torch.rand(5, 3, 20, 30, generator=torch.Generator().manual_seed(2)).mul(255).round() / 255
    request = EditRequest(instruction="turn it to night", source_caption="", target_caption="")
    batch = ViewBatch(views, views, request=request, view_indices=tuple(range(5)), noise_level=1.0, seed=3)
    edited = editor.edit(batch)
    assert torch.equal(edited.images, quantize(grade_views(views, "turn it to night").images))
    regions = torch.zeros(5, 20, 30)
    regions[:, :10] = 1
    inside = editor.edit(dataclasses.replace(batch, regions=regions))
    assert torch.equal(inside.images[:, :, 10:], views[:, :, 10:]) and np.array_equal(inside.masks, regions)
    assert torch.equal(inside.images[:, :, :10], edited.images[:, :, :10])


def test_ctrl_c_ends_it_and_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def run(self) -> None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def running(*_: object) -> Iterator[tuple[Interrupted, str, str]]:
        yield Interrupted(), "http://127.0.0.1:8000/v1", ""

    monkeypatch.setattr(app, "running_server", running)
    app.serve(ServeConfig(editor="grade"))
    assert "Ctrl-C ends it" in capsys.readouterr().out
