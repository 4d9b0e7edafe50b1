"""The protocol of image endpoints, `/v1/images/edits`, from the side that asks: one picture a request, paid once.

Servers that speak it differ in what they take and in how they refuse; `restage serve` takes more than the protocol
has, which it says on its page of models. What comes back is not trusted: neither its size, its form nor its addresses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import ipaddress
import json
import re
import socket
import threading
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from jaxtyping import Float
from PIL import Image, PngImagePlugin
from torch import Tensor

from restage.records import InputError, content_id, write_atomically
from restage.run.access import resolve_access
from restage.run.endpoint_config import EndpointConfig
from restage.run.http import Client, HttpAnswer, Refused, ServerError, parse, send_request
from restage.run.paid import Budget, PaidAnswers, Usage
from restage.scenes.io.images import UNREADABLE, open_picture, read_image, to_uint8

__all__ = ["BrokenAnswer", "OWNER", "Painted", "Part", "PictureClient", "PictureRequest", "ServedModel"]
__all__ += ["decode_picture", "encode_form", "encode_mask", "encode_picture"]

OWNER = "restage"
"""What `owned_by` says on the page of models of `restage serve`."""
MAX_PICTURE_BYTES = 64_000_000
MAX_PIXELS = 20_000_000
MODELS_TIMEOUT_S = 20.0
SAME_ASPECT = 0.03
"""Share by which the shape of an answer may differ from that of the picture that was sent."""
BROKEN_TRIES = 2
"""Times that a picture is asked for whose answer is of no use; such answers are paid as well."""
OPTIONAL = ("response_format", "seed", "n", "size", "mask")
"""Parts that some servers refuse, in the order in which they are given up if nothing says which is meant; before the
last three of them, what the user added."""
UNNAMED = re.compile(r"param|field|argument|unsupported|unrecogni[sz]ed|unexpected|unknown|extra", re.IGNORECASE)
"""Words by which a server refuses a part without naming it."""
ONE = Usage(1)


class BrokenAnswer(Exception):
    """The server answered as if all were well, but not with a picture that can be used; the message says why."""


class Part(NamedTuple):
    """One part of a form; a file if it has a file name."""

    name: str
    content: bytes
    file_name: str = ""


def encode_form(parts: Sequence[Part]) -> tuple[bytes, str]:
    """Write a form as `multipart/form-data`; returns it with its content type."""
    boundary = f"restage-{hashlib.sha256(b''.join(part.content for part in parts)).hexdigest()[:32]}"
    lines = []
    for name, content, file_name in parts:
        file = f'; filename="{file_name}"\r\nContent-Type: image/png' if file_name else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines += [head.encode(), content, b"\r\n"]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def encode_picture(image: Float[Tensor, "3 h w"]) -> bytes:
    """Write RGB in [0, 1] as PNG."""
    return _png(Image.fromarray(to_uint8(image)))


def encode_mask(image: Float[Tensor, "3 h w"], region: Float[Tensor, "h w"]) -> bytes:
    """Write a mask as the protocol has it: the picture, transparent where it is to be edited."""
    return _png(Image.fromarray(to_uint8(torch.cat([image, 1 - region[None]]))))


def _png(image: Image.Image, facts: PngImagePlugin.PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=facts)
    return file.getvalue()


def decode_picture(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Float[Tensor, "3 h w"]:
    """Read a picture from outside, as RGB in [0, 1]; what is transparent is black. InputError if it is none."""
    with open_picture(content, name) as image:  # reads the header alone
        if image.width * image.height > max_pixels:
            raise InputError(f"{name} has {image.width}x{image.height} pixels, expected at most {max_pixels}")
    return torch.from_numpy(read_image(content, name)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class PictureRequest:
    """What is asked for."""

    prompt: str
    pictures: tuple[Float[Tensor, "3 _ _"], ...]  # the view to edit, then references
    region: Float[Tensor, "h w"] | None = None
    """Where the view may change, 1 inside; None for everywhere."""
    start: Float[Tensor, "3 h w"] | None = None
    """What the edit starts from if not from the view; only for servers that take it."""
    fields: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> list[Part]:
        """The parts of the form, in a fixed order."""
        name = "image" if len(self.pictures) == 1 else "image[]"
        parts = [Part("prompt", self.prompt.encode())]
        parts += [Part(name, encode_picture(image), f"image{i}.png") for i, image in enumerate(self.pictures)]
        if self.region is not None:
            parts.append(Part("mask", encode_mask(self.pictures[0], self.region), "mask.png"))
        if self.start is not None:
            parts.append(Part("start", encode_picture(self.start), "start.png"))
        return parts + [Part(name, value.encode()) for name, value in sorted(self.fields.items())]


class Painted(NamedTuple):
    """A picture that a server made."""

    image: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "h w"] | None  # where it was meant to change, from servers that say it


class ServedModel(NamedTuple):
    """What a server says of a model."""

    id: str
    takes: frozenset[str] = frozenset()
    """What it takes beyond the protocol; only `restage serve` says it."""
    fingerprint: str = ""
    """Hash of its weights, which tells apart what was answered before and after a training."""
    editor: str = ""  # name of the editor behind `restage serve`

    @property
    def is_ours(self) -> bool:
        """Whether it is served by `restage serve`, which takes views of any size."""
        return bool(self.fingerprint)


class PictureClient:
    """Asks one model of an endpoint for pictures. Safe to use from several threads."""

    def __init__(self, config: EndpointConfig, model: str, answers: Path) -> None:
        """Open the folder of answers, and ask the server what it is."""
        access = resolve_access(config, model=model, pages=("/images/edits", "/images/generations"), flags="--")
        self.client = Client(
            access, key_variable=config.key_variable, patience=config, max_bytes=MAX_PICTURE_BYTES * 4 // 3
        )
        self.model = self._find_model(model)
        self.answers = PaidAnswers(answers, suffix=".png")
        self.budget = Budget(config, self.answers.past)
        self.num_kept = 0
        """Pictures that were on disk already."""
        self._lock = threading.Lock()
        self._left_out: set[str] = set()
        self._is_array = False

    def ask(self, request: PictureRequest) -> Painted:
        """The picture that a request leads to: the kept one, else the server's.

        Raises:
            BrokenAnswer: the server sends nothing that can be used.
            Rejected, Unanswered: it refuses this request, or does not answer it.
            AskingStopped: the cost limit does not allow it, or the client was closed.
            InputError: it answers no request at all.
        """
        parts = [*request.parts(), Part("model", self.model.id.encode())]
        asked = [self.model.fingerprint, *([name, hashlib.sha256(content).hexdigest()] for name, content, _ in parts)]
        request_id = content_id("picture", asked)
        found = self._find(request_id)
        if found is not None:
            with self._lock:
                self.num_kept += 1
            return found
        for tries_left in range(BROKEN_TRIES - 1, -1, -1):
            try:
                return self.client.persist(request_id, lambda: self._pay(request_id, parts, request.pictures[0]))
            except BrokenAnswer:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def _find_model(self, model: str) -> ServedModel:
        listed = self._list_models()
        if not model:
            if len(listed) == 1:
                return listed[0]
            names = ", ".join(self.client.clean(one.id)[:80] for one in listed[:8])
            there = f"; the server lists {names}" if listed else ""
            raise InputError(f"no model is named; set RESTAGE_EDITOR_MODEL or --model{there}")
        return next((one for one in listed if one.id == model), ServedModel(model))

    def _list_models(self) -> list[ServedModel]:
        """Return the models that the server lists; none if it has no such page, or none for this key."""

        def send() -> HttpAnswer | None:
            try:
                return self.client.send("/models", timeout_s=MODELS_TIMEOUT_S)
            except ServerError:
                return None

        answer = self.client.persist("models", send)
        found = None if answer is None else parse(answer)
        rows = found.get("data") if isinstance(found, dict) else None
        models = [_read_model(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return [model for model in models if model.id]

    def _pay(self, request_id: str, parts: Sequence[Part], sent: Tensor) -> Painted:
        """Send a request once, and keep its answer."""
        self.budget.reserve(ONE)
        spent = Usage()
        try:
            self.answers.mark_asked(request_id, ONE)
            answer = self._send(request_id, parts)
            spent = ONE
            painted = self._read(answer, sent)
            self._keep(request_id, painted)
            return painted
        except (ServerError, Refused, urllib.error.URLError):  # refused, or never sent
            self.answers.unmark(request_id)
            raise
        except (BrokenAnswer, OSError, ValueError):
            # It may have been worked on, whatever became of the answer.
            spent = ONE
            self.answers.lose(request_id)
            raise
        finally:
            self.budget.settle(ONE, spent)

    def _send(self, request_id: str, parts: Sequence[Part]) -> HttpAnswer:
        is_array = self._is_array
        sent = [part for part in parts if part.name not in self._left_out]
        names = {"image": "image[]"} if is_array else {}
        content, kind = encode_form([part._replace(name=names.get(part.name, part.name)) for part in sent])
        # Servers that know the header give a repeated request the answer that was paid for.
        headers = {"Content-Type": kind, "Idempotency-Key": request_id}
        try:
            return self.client.send("/images/edits", content, headers=headers)
        except ServerError as error:
            if error.status in (400, 422):
                self._adapt({part.name for part in sent}, str(error), is_array=is_array)
            raise

    def _adapt(self, sent: set[str], message: str, *, is_array: bool) -> None:
        """Give up what the server may have refused, and remember it: Refused. Returns if that is nothing."""
        added = sorted(sent - {"prompt", "model", "image", "image[]", "start", *OPTIONAL})
        optional = [name for name in (*OPTIONAL[:2], *added, *OPTIONAL[2:]) if name in sent]
        with self._lock:
            named = [name for name in optional if _is_named(name, message)]
            if "image[]" in message and "image" in sent and not is_array:
                self._is_array = True
            elif named or (UNNAMED.search(message) and optional):
                name = (named or optional)[0]
                if name not in self._left_out:
                    self._left_out.add(name)
                    self.client.said.append(f"the server refuses {name!r}, which is left out")
            else:
                return
        raise Refused

    def _read(self, answer: HttpAnswer, sent: Tensor) -> Painted:
        """Take the picture out of an answer."""
        found = parse(answer)
        listed = found.get("data") if isinstance(found, dict) else None
        row = listed[0] if isinstance(listed, list) and listed else None
        if not isinstance(row, dict):
            self.client.check_page(404)
            raise BrokenAnswer(f"the answer holds no picture: {self.client.describe(answer)[0]}")
        try:
            image = decode_picture(self._content_of(row), "the answer")
            mask = row.get("mask_b64_json")
            region = decode_picture(_decode(mask), "the mask of the answer")[0] if mask is not None else None
        except InputError as error:
            raise BrokenAnswer(self.client.clean(str(error))) from None
        (rows, columns), (height, width) = image.shape[1:], sent.shape[1:]
        if abs(columns / rows / (width / height) - 1) > SAME_ASPECT:
            raise BrokenAnswer(f"the answer has {columns}x{rows} pixels where {width}x{height} was asked for")
        if region is not None and region.shape != image.shape[1:]:
            raise BrokenAnswer("the answer's mask has another size than its picture")
        if float(image.amax(dim=(1, 2)).sub(image.amin(dim=(1, 2))).max()) == 0:
            raise BrokenAnswer("the answer is of one color, as filters of content send it")
        return Painted(image, region)

    def _content_of(self, row: Mapping[str, Any]) -> bytes:
        coded, url = row.get("b64_json"), row.get("url")
        if isinstance(coded, str) and coded:
            return _decode(coded)
        if isinstance(url, str) and url.startswith("data:"):
            return _decode(url)
        if not isinstance(url, str) or not url:
            raise InputError("the answer holds neither b64_json nor url")
        return self._fetch(url)

    def _fetch(self, url: str) -> bytes:
        """Get a picture from the address that an answer names, without the key, and from no private place."""
        try:
            parts, own = urlsplit(url), urlsplit(self.client.access.base_url)
            is_own = (parts.scheme, parts.hostname, parts.port) == (own.scheme, own.hostname, own.port)
        except ValueError:
            raise InputError("the answer names an address that is none") from None
        if not is_own and not (parts.scheme == "https" and _is_public(parts.hostname or "")):
            raise InputError("the answer names an address that is neither the server's own nor a public one")
        try:
            answer = send_request(url, headers={}, timeout_s=MODELS_TIMEOUT_S * 3, max_bytes=MAX_PICTURE_BYTES)
        except (OSError, ValueError) as error:
            raise InputError(f"the picture cannot be fetched from where the answer says: {error}") from None
        if answer.status != 200:
            raise InputError(f"the picture cannot be fetched from where the answer says: {answer.status}")
        return answer.content

    def _find(self, request_id: str) -> Painted | None:
        path = self.answers.path(request_id)
        if not path.exists():
            return None
        try:
            with open_picture(path) as image:
                has_mask = image.mode == "RGBA"
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
                layers = pixels.view(image.height, image.width, 4 if has_mask else 3).permute(2, 0, 1) / 255
        except (InputError, *UNREADABLE):
            return None  # a file that a failing disk spoilt is asked for again
        return Painted(layers[:3].contiguous(), layers[3].contiguous() if has_mask else None)

    def _keep(self, request_id: str, painted: Painted) -> None:
        """Write an answer, its mask as transparency, then take the mark away."""
        layers = painted.image if painted.mask is None else torch.cat([painted.image, painted.mask[None]])
        facts = PngImagePlugin.PngInfo()
        facts.add_text("restage", json.dumps({"model": self.client.clean(self.model.id), "id": request_id}))
        with write_atomically(self.answers.path(request_id)) as temporary:
            temporary.write_bytes(_png(Image.fromarray(to_uint8(layers)), facts))
        self.answers.unmark(request_id)


def _read_model(row: Mapping[str, Any]) -> ServedModel:
    name, said = row.get("id"), row.get(OWNER)
    if not isinstance(name, str):
        return ServedModel("")
    if row.get("owned_by") != OWNER or not isinstance(said, dict):
        return ServedModel(name)
    takes, fingerprint = said.get("takes"), said.get("fingerprint")
    known = frozenset(one for one in takes if isinstance(one, str)) if isinstance(takes, list) else frozenset()
    editor = said.get("editor")
    texts = (one if isinstance(one, str) else "" for one in (fingerprint, editor))
    return ServedModel(name, known, *texts)


def _is_named(name: str, message: str) -> bool:
    """Whether a message is about a part of the form; a short name has to stand in quotes."""
    if len(name) < 3:
        return re.search(rf"['\"`]{re.escape(name)}['\"`]", message) is not None
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) is not None


def _decode(coded: Any) -> bytes:
    """Read base64, also as a data URL."""
    if not isinstance(coded, str):
        raise InputError("the answer's picture is no text")
    try:
        return base64.b64decode(re.sub(r"\s+", "", coded.partition(",")[2] or coded), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the answer's picture is not in base64") from None


def _is_public(host: str) -> bool:
    """Whether all addresses of a host are on the internet, and not in this machine's or a private network."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
        return bool(found) and all(ipaddress.ip_address(str(one).partition("%")[0]).is_global for one in found)
    except (OSError, ValueError):
        return False
