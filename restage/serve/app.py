"""The server: requests of the image protocol in, batches to one model, pictures out.

It speaks `/v1/images/edits`, `/v1/images/generations` and `/v1/models` as vLLM-Omni, SGLang and hosts do, and takes
more (docs/editors.md). Requests are not trusted: their sizes and numbers are bounded before they are read.

FastAPI looks annotations up as they are: hence no `from __future__ import annotations` here.
"""

import asyncio
import base64
import contextlib
import hashlib
import importlib.util
import io
import os
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restage.edit.editors.picture_client import OWNER, decode_picture, encode_picture
from restage.records import EditRequest, InputError, MissingExtra, derive_seed, parse_json
from restage.run.doors import Door, find_port, is_loopback
from restage.run.progress import say
from restage.scenes.io.images import UNREADABLE, open_picture
from restage.scenes.references import ShownPicture
from restage.serve.batching import BatchingQueue, QueueFull
from restage.serve.config import ServeConfig
from restage.serve.guard import ApiError, Guard
from restage.serve.served import EditItem, Painting, PaintItem, ServedEditor, open_served

__all__ = ["TOKEN_VARIABLE", "build_app", "running_server", "serve"]

TOKEN_VARIABLE = "RESTAGE_SERVE_TOKEN"
MAX_PROMPT = 4_000
MAX_NUMBER = 4
"""Pictures that one request may ask for."""
MAX_FIELDS, MAX_FILES = 32, 8
MAX_REMEMBERED = 256
"""Answers that are kept for those who ask again with the same Idempotency-Key."""
IGNORED = {"user", "quality", "background", "input_fidelity", "moderation", "output_compression", "stream"}
"""Fields of the protocol that mean nothing here."""
EDIT_FIELDS = {"model", "prompt", "n", "size", "seed", "response_format", "output_format"}
OUR_FIELDS = {"noise_level", "source_caption", "target_caption"}


class _Service:
    """What the pages do."""

    def __init__(self, served: ServedEditor, config: ServeConfig) -> None:
        self.served, self.config = served, config
        self.queue = BatchingQueue(
            served.work, max_batch=config.max_batch, max_waiting=config.max_waiting, window_s=config.window
        )
        self.counts: Counter[tuple[str, int]] = Counter()
        self.started_s = int(time.time())
        self._answers: OrderedDict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = OrderedDict()

    def models(self) -> list[dict[str, Any]]:
        """The page of models."""
        served = self.served
        said = {"takes": served.takes, "fingerprint": served.fingerprint, "editor": served.editor_name}
        return [{"id": served.name, "object": "model", "created": self.started_s, "owned_by": OWNER, "restage": said}]

    def metrics(self) -> str:
        """The page of metrics, in Prometheus' text format."""
        rows = [
            ("restage_pictures_total", "counter", "Pictures that were made.", self.queue.num_done),
            ("restage_batches_total", "counter", "Batches that they were made in.", self.queue.num_batches),
            ("restage_work_seconds_total", "counter", "Seconds that batches took.", f"{self.queue.work_s:.3f}"),
            ("restage_waiting", "gauge", "Pictures that wait.", len(self.queue)),
        ]
        lines = [f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value}" for name, kind, text, value in rows]
        name = "restage_requests_total"
        lines.append(f"# HELP {name} Requests by page and status.\n# TYPE {name} counter")
        lines += [f'{name}{{page="{page}",status="{status}"}} {n}' for (page, status), n in sorted(self.counts.items())]
        return "\n".join(lines) + "\n"

    async def once(self, key: str, digest: str, make: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Make an answer, or give the one that was made for the same key: whoever lost it gets it again."""
        if not key:
            return await make()
        if key in self._answers:
            known, future = self._answers[key]
            if known != digest:
                raise ApiError(422, "this Idempotency-Key was used for another request")
            return await asyncio.shield(future)
        # A task of its own, since the client may go away while it is made, and come back for it.
        future = asyncio.ensure_future(make())
        self._answers[key] = (digest, future)
        try:
            return await asyncio.shield(future)
        finally:
            if future.done() and (future.cancelled() or future.exception() is not None):
                self._answers.pop(key, None)
            done = [one for one, (_, made) in self._answers.items() if made.done()]
            for one in done[: max(0, len(self._answers) - MAX_REMEMBERED)]:
                del self._answers[one]

    async def make(self, items: Sequence[Any]) -> dict[str, Any]:
        """Have pictures made, and answer with them."""
        try:
            futures = self.queue.submit(items[0].kind, *items)
        except QueueFull:
            raise ApiError(429, "too many pictures are waiting; come again", headers={"Retry-After": "1"}) from None
        try:
            made: list[Painting] = [await asyncio.wrap_future(future) for future in futures]
        except InputError as error:
            raise ApiError(400, str(error)) from None
        except (CancelledError, asyncio.CancelledError):
            raise ApiError(503, "the server is closing") from None
        return {"created": int(time.time()), "data": [_row(painting) for painting in made], "output_format": "png"}

    def check_model(self, name: str) -> None:
        """Refuse a model that is not served; none stands for the one that is."""
        if name and name != self.served.name:
            raise ApiError(
                404, f"the model {name[:100]!r} is not served here, but {self.served.name!r}", "model_not_found"
            )

    def read_edit(self, fields: Mapping[str, str], files: Mapping[str, Sequence[bytes]]) -> list[EditItem]:
        """Read the parts of a form."""
        _refuse_unknown({*fields}, EDIT_FIELDS | OUR_FIELDS)
        _refuse_unknown({*files}, {"image", "image[]", "mask", "start"})
        self.check_model(fields.get("model", ""))
        contents = [*files.get("image", ()), *files.get("image[]", ())]
        if not contents:
            raise ApiError(400, "expected a picture in 'image'")
        if len(contents) > 1 and not self.served.takes_references:
            raise ApiError(400, f"{self.served.editor_name} takes one picture, got {len(contents)}")
        picture, *references = (self._picture(content, "the picture") for content in contents)
        size = (int(picture.shape[2]), int(picture.shape[1]))
        if fields.get("size", "auto") not in ("auto", "{}x{}".format(*size)):
            raise ApiError(400, f"'size' is refused: answers are as large as the picture, {size[0]}x{size[1]}")
        start = self._picture(files["start"][0], "the start") if "start" in files else None
        region = self._region(files["mask"][0]) if "mask" in files else None
        for other, name in ((start, "start"), (region, "mask")):
            if other is not None and other.shape[-2:] != picture.shape[1:]:
                raise ApiError(400, f"'{name}' has another size than the picture")
        request = EditRequest(
            instruction=_prompt(fields.get("prompt", "")),
            source_caption=fields.get("source_caption", "")[:MAX_PROMPT],
            target_caption=fields.get("target_caption", "")[:MAX_PROMPT],
        )
        noise_level = _number(fields, "noise_level", 1.0, lowest=0.001, highest=1.0)
        return [
            EditItem(picture, request, seed, noise_level, start, region, tuple(map(ShownPicture, references)))
            for seed in _seeds(fields)
        ]

    def read_paint(self, fields: Mapping[str, str]) -> list[PaintItem]:
        """Read the fields of a request for pictures from a caption."""
        if not self.served.paints:
            raise ApiError(400, f"{self.served.editor_name} edits pictures, and makes none from captions alone")
        _refuse_unknown({*fields}, EDIT_FIELDS)
        self.check_model(fields.get("model", ""))
        if fields.get("size", "auto") != "auto":
            raise ApiError(400, "'size' is refused: pictures have the model's own size")
        caption = _prompt(fields.get("prompt", ""))
        return [PaintItem(caption, seed) for seed in _seeds(fields)]

    def _picture(self, content: bytes, name: str) -> Tensor:
        try:
            image = decode_picture(content, name, max_pixels=self.config.max_side**2)
        except InputError as error:
            raise ApiError(400, str(error)) from None
        if max(image.shape[1:]) > self.config.max_side:
            raise ApiError(400, f"{name} has a side of {max(image.shape[1:])} pixels, at most {self.config.max_side}")
        return image

    def _region(self, content: bytes) -> Tensor:
        """Where a mask says that the picture may change: where it is transparent, or, without transparency, white."""
        self._picture(content, "the mask")  # bounds its size
        try:
            with open_picture(content, "the mask") as image:
                has_alpha = "A" in image.getbands() or "transparency" in image.info
                layer = image.convert("RGBA").getchannel("A") if has_alpha else image.convert("L")
                values = torch.from_numpy(np.asarray(layer, dtype=np.float32) / 255)
        except UNREADABLE as error:
            raise ApiError(400, f"the mask is not readable: {error}") from None
        return 1 - values if has_alpha else values


def _refuse_unknown(names: set[str], known: set[str]) -> None:
    unknown = sorted(names - known - IGNORED)
    if unknown:
        raise ApiError(400, f"Unknown parameter: '{unknown[0][:80]}'", "unknown_parameter")


def _prompt(text: str) -> str:
    if not text.strip() or len(text) > MAX_PROMPT:
        raise ApiError(400, f"expected a 'prompt' of 1 to {MAX_PROMPT} characters")
    return text


def _number(fields: Mapping[str, str], name: str, default: float, *, lowest: float, highest: float) -> float:
    try:
        value = float(fields.get(name, default))
    except ValueError:
        value = float("nan")
    if not lowest <= value <= highest:
        raise ApiError(400, f"expected '{name}' from {lowest:g} to {highest:g}")
    return value


def _seeds(fields: Mapping[str, str]) -> list[int]:
    """The seed of each picture that a request asks for: its own, and for more those drawn from it."""
    if fields.get("response_format", "b64_json") != "b64_json":
        raise ApiError(400, "'response_format' is b64_json here, since pictures are not kept")
    if fields.get("output_format", "png") != "png":
        raise ApiError(400, "'output_format' is png here, since nothing is to be lost")
    count = _number(fields, "n", 1.0, lowest=1.0, highest=float(MAX_NUMBER))
    text = fields.get("seed", "0")
    if count != int(count) or not text.isdecimal() or len(text) > 19 or int(text) >= 2**63:
        raise ApiError(400, "expected whole numbers for 'n' and 'seed', the seed below 2^63")
    return [int(text), *(derive_seed(int(text), "more", number) for number in range(1, int(count)))]


def _row(painting: Painting) -> dict[str, str]:
    row = {"b64_json": base64.b64encode(encode_picture(painting.image)).decode()}
    if painting.mask is not None:
        file = io.BytesIO()
        Image.fromarray((painting.mask.clamp(0, 1) * 255).round().byte().numpy()).save(file, format="PNG")
        row["mask_b64_json"] = base64.b64encode(file.getvalue()).decode()
    return row


def build_app(served: ServedEditor, config: ServeConfig, *, door: Door, needs_token: bool) -> Any:
    """Make the application; its state holds the queue, which ends with it."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, PlainTextResponse
    from starlette.exceptions import HTTPException

    service = _Service(served, config)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.queue.close)

    app = FastAPI(title="restage serve", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service

    @app.exception_handler(ApiError)
    async def tell(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def tell_http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body(), error.status_code)

    @app.exception_handler(Exception)
    async def tell_fault(request: Request, error: Exception) -> JSONResponse:
        say(f"serve: {type(error).__name__}: {error}", file=sys.stderr)
        return JSONResponse(ApiError(500, f"the model failed: {type(error).__name__}").body(), 500)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": served.name, "waiting": len(service.queue)}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return service.models()[0]

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> dict[str, Any]:
        fields, files = await _read_form(request)
        digest = hashlib.sha256(repr(sorted(fields.items())).encode())
        for name, contents in sorted(files.items()):
            digest.update(name.encode() + b"".join(hashlib.sha256(content).digest() for content in contents))

        async def make() -> dict[str, Any]:
            # Large pictures take a while to decode, during which others are to be heard.
            return await service.make(await asyncio.to_thread(service.read_edit, fields, files))

        return await service.once(request.headers.get("idempotency-key", "")[:200], digest.hexdigest(), make)

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> dict[str, Any]:
        body = await request.body()
        try:
            found = parse_json(body, dict[str, Any], where="the request")
        except InputError as error:
            raise ApiError(400, str(error)) from None
        fields = {name: str(value) for name, value in found.items() if value is not None}
        key = request.headers.get("idempotency-key", "")[:200]
        return await service.once(
            key, hashlib.sha256(body).hexdigest(), lambda: service.make(service.read_paint(fields))
        )

    max_bytes = int(config.max_megabytes * 1e6)
    return Guard(app, door=door, needs_token=needs_token, max_bytes=max_bytes, counts=service.counts)


async def _read_form(request: Any) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """Read a form into its fields and files."""
    from starlette.exceptions import HTTPException

    try:
        form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=4 * MAX_PROMPT)
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read: {error.detail}") from None
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = value
            else:
                files.setdefault(name, []).append(await value.read())
    finally:
        await form.close()
    return fields, files


@contextlib.contextmanager
def running_server(served: ServedEditor, config: ServeConfig) -> Any:
    """Give the server that `serve` runs, with its address and its token, which is empty where none is needed."""
    for package in ("fastapi", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "serve")
    import uvicorn

    given = os.environ.get(TOKEN_VARIABLE, "")
    door = Door(config.host, given) if given else Door(config.host)
    needs_token = bool(given) or not is_loopback(config.host)
    port = find_port(config.host, config.port)
    app = build_app(served, config, door=door, needs_token=needs_token)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=port,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=4 * config.max_waiting,
        timeout_graceful_shutdown=10,
    )
    name = f"[{config.host}]" if ":" in config.host else config.host
    yield uvicorn.Server(settings), f"http://{name}:{port}/v1", door.token if needs_token else ""


def serve(config: ServeConfig) -> None:
    """Serve a model until Ctrl-C."""
    served = open_served(config.editor, config.model, device=config.device, options=config.model_options)
    with running_server(served, config) as (server, address, token):
        lines = [f"serve: {served.name} ({served.editor_name}) at {address}; Ctrl-C ends it"]
        if token and not os.environ.get(TOKEN_VARIABLE):
            lines.append(f"serve: others need the token, as OPENAI_API_KEY: {token}")
        say("\n".join(lines))
        with contextlib.suppress(KeyboardInterrupt):  # the server raises the signal anew once it has ended
            server.run()
