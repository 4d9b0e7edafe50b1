"""Whatever an endpoint answers, an edit goes on with the views that came, or ends with one clear line."""

import base64
import dataclasses
import json
import struct
import time
import zlib

import numpy as np
import pytest
import torch

from restage.edit.pictures import quantize
from restage.records import InputError
from tests.edit.endpoint.fake_images import Asked, answer_bytes, answer_with, encode, invert
from tests.fake_server import KEY, Plain, fail

BAD = 1
"""Place of the view that is answered badly."""


def number_of(asked: Asked) -> int:
    return int(asked.picture[0, 0, 0])


def raw(data: bytes):
    return lambda asked: Plain(data=data)


def as_json(value):
    return raw(json.dumps(value).encode())


def cut(asked):
    plain = invert(asked)
    plain.cut_after = 60
    return plain


def writing(*parts: bytes, times: int = 1, pause_s: float = 0.0):
    def write(wfile):
        wfile.write(parts[0])
        for _ in range(times):
            for part in parts[1:]:
                wfile.write(part)
                wfile.flush()
                time.sleep(pause_s)

    return lambda asked: Plain(write=write)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(side: int) -> bytes:
    """A PNG whose header promises more pixels than it has."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def broken_png(asked):
    content = bytearray(encode(255 - asked.picture))
    content[60] ^= 0xFF
    return answer_bytes(bytes(content))


def picture(change, kind="PNG", **options):
    return lambda asked: answer_bytes(encode(change(255 - asked.picture), kind, **options))


def with_alpha(pixels):
    return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)


def doubled(pixels):
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def text_answer(text: str):
    return lambda asked: answer_with(b64_json=text)


def at(url: str):
    return lambda asked: answer_with(url=url)


ONCE = {
    "busy, with a pause": lambda asked: fail(429, "slow down", Retry_After="0.01"),
    "busy, until a date": lambda asked: fail(429, "slow down", Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
    "busy, without a pause": lambda asked: fail(429, "slow down"),
    "busy, a pause in words": lambda asked: fail(429, "slow down", Retry_After="soon"),
    "busy, a pause below zero": lambda asked: fail(429, "slow down", Retry_After="-5"),
    "busy, a pause without end": lambda asked: fail(429, "slow down", Retry_After="inf"),
    "an error of the server": lambda asked: fail(500, f"no, {KEY}"),
    "a bad gateway with a page": lambda asked: Plain(502, {}, b"<html>oops</html>"),
    "not available, empty": lambda asked: Plain(503),
    "a gateway's timeout": lambda asked: fail(504),
    "a status that nobody knows": lambda asked: Plain(599, {}, b"\xff\xfe"),
    "a request's timeout": lambda asked: fail(408),
    "a conflict": lambda asked: fail(409),
    "a cut connection": cut,
    "a closed connection": writing(b""),
    "no HTTP": writing(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "half a header": writing(b"HTTP/1.1 200 OK\r\nContent-"),
    "a body that drips": writing(HEAD, b" ", times=60, pause_s=0.05),
    "headers that drip": writing(b"HTTP/1.1 200 OK\r\nX: ", b"x", times=60, pause_s=0.05),
    "a body without end": writing(HEAD, b" " * 4_000_000, times=40),
    "an empty answer": raw(b""),
    "a page to log in": raw(b"<html>log in</html>"),
    "half JSON": raw(b'{"data": [{"b64_json": "iVBOR'),
    "deep JSON": raw(b"[" * 100_000),
    "a long number": raw(b'{"data": ' + b"9" * 5000 + b"}"),
    "no text": raw(b"\xff\xfe\x00"),
    "a list": as_json([1]),
    "no data": as_json({"created": 1}),
    "data that is null": as_json({"data": None}),
    "no picture": as_json({"data": []}),
    "a picture that is null": as_json({"data": [None]}),
    "an error with status 200": as_json({"error": {"message": f"no {KEY}"}}),
    "neither base64 nor address": as_json({"data": [{"revised_prompt": "a cat"}]}),
    "base64 that is null": as_json({"data": [{"b64_json": None}]}),
    "base64 that is a number": as_json({"data": [{"b64_json": 7}]}),
    "base64 that is none": text_answer("%%%"),
    "an empty picture": text_answer(""),
    "a text": lambda asked: answer_bytes(b"I cannot do that"),
    "a page as a picture": lambda asked: answer_bytes(b"<!doctype html><html></html>"),
    "SVG": lambda asked: answer_bytes(b'<svg xmlns="http://www.w3.org/2000/svg" width="24" height="16"/>'),
    "PostScript": lambda asked: answer_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\nshowpage\n"),
    "half a PNG": lambda asked: answer_bytes(encode(255 - asked.picture)[:200]),
    "a spoilt PNG": broken_png,
    "a bomb": lambda asked: answer_bytes(huge_png(19_000)),
    "a bomb of a side too long": lambda asked: answer_bytes(huge_png(60_000)),
    "another shape": picture(lambda pixels: pixels[:, :16]),
    "one color": picture(lambda pixels: np.zeros_like(pixels)),
    "an address of this machine": at("http://127.0.0.1:9/x.png"),
    "an address of a private network": at("https://10.0.0.1/x.png"),
    "an address of a cloud's secrets": at("http://169.254.169.254/latest/meta-data/"),
    "a file": at("file:///etc/passwd"),
    "an address that is none": at("http://[::1/x.png"),
    "an address without a picture": lambda asked: answer_with(url="OWN/missing.png"),
    "a data address without a picture": at("data:image/png;base64,AAAA"),
    "a mask of another size": lambda asked: answer_with(
        b64_json=base64.b64encode(encode(255 - asked.picture)).decode(),
        mask_b64_json=base64.b64encode(encode(asked.picture[:8, :, 0])).decode(),
    ),
    "a mask that is none": lambda asked: answer_with(
        b64_json=base64.b64encode(encode(255 - asked.picture)).decode(), mask_b64_json=[1]
    ),
}
"""Bad once: the view is asked for again, and is there in the end."""

ALWAYS = {
    "a filter of content": (lambda asked: fail(400, "flagged", code="moderation_blocked"), "400 flagged"),
    "too large": (lambda asked: fail(413, "too large"), "413 too large"),
    "cannot be processed": (lambda asked: fail(422, "cannot"), "422 cannot"),
    "for legal reasons": (lambda asked: fail(451, f"no {KEY}"), r"451 no \(key\)"),
    "down for good": (lambda asked: fail(503, "down"), "no answer in 3 tries .*503 down"),
    "a page for good": (raw(b"<html>log in</html>"), "holds no picture: <html>log in"),
    "one color for good": (picture(lambda pixels: np.zeros_like(pixels)), "of one color"),
    "another shape for good": (picture(lambda pixels: pixels[:, :16]), "16x16 pixels where 24x16"),
    "a bomb for good": (lambda asked: answer_bytes(huge_png(5_000)), "5000x5000 pixels, expected at most"),
    "text for good": (lambda asked: answer_bytes(KEY.encode()), "not readable as an image"),
}
"""Bad always: the view is left out with its reason, and the others are edited."""

FATAL = {
    "a wrong key": (
        lambda asked: fail(401, f"Incorrect API key provided: {KEY}"),
        "does not accept the key of OPENAI_",
    ),
    "a forbidden model": (lambda asked: fail(403, "not yours"), "does not accept the key .*403 not yours"),
    "no such model": (lambda asked: fail(404, "no such model"), "refuses the request: 404 no such model"),
    "nothing paid": (lambda asked: fail(402, "add credits"), "402 add credits"),
    "an empty account": (lambda asked: fail(429, "pay", code="insufficient_quota"), "no quota left: 429 pay"),
    "a very long pause": (lambda asked: fail(429, "busy", Retry_After="99999"), "asks to wait 99999 s"),
    "sent elsewhere": (lambda asked: Plain(302, {"Location": "http://evil.example/"}), "another address"),
    "sent elsewhere with the body": (lambda asked: Plain(307, {"Location": "//evil.example/"}), "another address"),
    "sent to a file": (lambda asked: Plain(301, {"Location": "file:///etc/passwd"}), "another address"),
}
"""Answers that no view can get past: one line, at once."""

GOOD = {
    "JPEG": (picture(lambda pixels: pixels, "JPEG", quality=95), 0.5),
    "WebP": (picture(lambda pixels: pixels, "WEBP", lossless=True), 0.0),
    "with transparency": (picture(with_alpha), 0.0),
    "gray": (picture(lambda pixels: pixels[..., 0]), None),
    "larger": (picture(doubled), 0.2),
    "a data address": (
        lambda asked: answer_with(
            url=f"data:image/png;base64,{base64.b64encode(encode(255 - asked.picture)).decode()}"
        ),
        0.0,
    ),
    "base64 in lines": (
        lambda asked: answer_with(b64_json=base64.encodebytes(encode(255 - asked.picture)).decode()),
        0.0,
    ),
    "an address of the server": (lambda asked: answer_with(url="OWN/made.png"), None),
    "several pictures": (lambda asked: Plain(data=invert(asked).data.replace(b"}]", b'}, {"b64_json": "x"}]')), 0.0),
}
"""Odd, and yet a picture: how far it may be off in the mean; None where it is another one."""


def bad_for_one_view(server, answer, times):
    """Answer the second view badly so many times, and all else well."""
    left = [times]

    def answer_it(asked):
        with server.lock:
            is_bad = number_of(asked) == BAD and left[0] > 0
            left[0] -= is_bad
        if not is_bad:
            return invert(asked)
        plain = answer(asked)
        plain.data = plain.data.replace(b"OWN", server.url.encode())
        return plain

    server.answer = answer_it


def assert_key_is_nowhere(folder, *texts):
    assert not [text for text in texts if KEY in str(text)]
    assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_sixty_bad_answers_are_listed():
    assert len(ONCE) + len(ALWAYS) + len(FATAL) >= 60


@pytest.mark.parametrize("name", ONCE)
def test_a_view_that_is_answered_badly_once_is_there_in_the_end(server, batch, open_editor, tmp_path, name):
    bad_for_one_view(server, ONCE[name], 1)
    editor = open_editor(timeout_s=1.5 if "drip" in name else 30.0)
    edited = editor.edit(batch)
    assert not edited.left_out and torch.equal(edited.images, quantize(1 - batch.originals))
    assert len(server.asked) == 5 and edited.masks.min() == 1
    assert_key_is_nowhere(tmp_path, editor.remarks)


@pytest.mark.parametrize("name", ALWAYS)
def test_a_view_that_is_always_answered_badly_is_left_out_with_its_reason(server, batch, open_editor, tmp_path, name):
    answer, reason = ALWAYS[name]
    bad_for_one_view(server, answer, 100)
    editor = open_editor()
    edited = editor.edit(batch)
    assert list(edited.left_out) == [BAD] and edited.answered == [0, 2, 3]
    assert torch.equal(edited.images[BAD], batch.originals[BAD]) and edited.masks[BAD].max() == 0
    assert torch.equal(edited.images[[0, 2, 3]], quantize(1 - batch.originals[[0, 2, 3]]))
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(edited.left_out[BAD])
    assert any("view 5 was left out" in remark for remark in editor.remarks)
    assert_key_is_nowhere(tmp_path, editor.remarks, edited.left_out)


@pytest.mark.parametrize("name", FATAL)
def test_what_no_view_can_get_past_is_one_line(server, batch, open_editor, tmp_path, name):
    answer, message = FATAL[name]
    server.answer = answer
    editor = open_editor(num_parallel=1)
    with pytest.raises(InputError, match=message) as error:
        editor.edit(batch)
    assert len(server.asked) == 1
    assert_key_is_nowhere(tmp_path, error.value)


@pytest.mark.parametrize("name", GOOD)
def test_pictures_in_other_forms_are_taken(server, batch, open_editor, name):
    answer, tolerance = GOOD[name]
    server.pages["/v1/made.png"] = Plain(data=encode(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)))
    bad_for_one_view(server, answer, 1)
    edited = open_editor().edit(batch)
    assert not edited.left_out and len(server.asked) == 4
    if tolerance is not None:
        difference = (edited.images[BAD] - quantize(1 - batch.originals[BAD])).abs().mean()
        assert float(difference) <= tolerance


def test_a_picture_is_fetched_without_the_key(server, batch, open_editor):
    server.pages["/v1/made.png"] = Plain(data=encode(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)))
    bad_for_one_view(server, lambda asked: answer_with(url="OWN/made.png"), 1)
    open_editor().edit(batch)
    assert server.fetched[-1][0] == "/v1/made.png" and "authorization" not in server.fetched[-1][1]


def test_too_few_views_end_the_edit_without_asking_for_the_rest(server, batch, open_editor):
    server.answer = lambda asked: fail(400, "flagged") if number_of(asked) < 3 else invert(asked)
    with pytest.raises(InputError, match="at most 1, where 2 are needed .*400 flagged"):
        open_editor(num_parallel=1).edit(batch)
    assert len(server.asked) == 3


def test_a_method_that_needs_every_view_gets_every_view_or_an_error(server, batch, open_editor):
    bad_for_one_view(server, ALWAYS["a filter of content"][0], 100)
    with pytest.raises(InputError, match="at most 3, where 4 are needed"):
        open_editor().edit(dataclasses.replace(batch, may_leave_out=False))


def test_a_server_that_is_not_there_is_one_line(server, batch, open_editor):
    with pytest.raises(InputError, match="gave no answer in 2 tries"):
        open_editor(base_url="http://127.0.0.1:9/v1", max_tries=2)
