"""The editor behind an endpoint: views go out as pictures with an instruction, and come back edited.

Any server of `/v1/images/edits` will do (docs/editors.md): a host, vLLM-Omni, SGLang, or `restage serve`. Only the last
takes all that an edit method may ask for; the others get a picture, an instruction, a seed, and a mask and references
where there are any.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.edit.editors.interface import AnchorForm, AskedPictures, Edited, EditorSource, ViewBatch
from restage.edit.editors.picture_client import BrokenAnswer, Painted, PictureClient, PictureRequest
from restage.edit.families import IN_GRID, SECOND_PICTURE
from restage.records import InputError
from restage.run.endpoint_config import EndpointConfig
from restage.run.http import Rejected, Unanswered
from restage.run.paid import AskingStopped, Usage

__all__ = ["EndpointEditor", "Frame", "open_endpoint"]

Picture = Float[Tensor, "channels h w"]

KNOWN_SIZES = (
    (r"\bgpt-image|\bchatgpt-image", ((1024, 1024), (1536, 1024), (1024, 1536))),
    (r"\bdall-e-2", ((1024, 1024),)),
)
"""Sizes by what the name of a model holds."""
ONE_PICTURE = re.compile(r"\bdall-e-2")
"""Models that take no reference."""
WITHOUT_FORMAT = re.compile(r"\bgpt-image|\bchatgpt-image")
"""Models that always answer with base64, and refuse to be asked for it."""
FROM_RENDERS = (
    "this method edits renders again from partial noise, which this endpoint cannot be told; choose the method restage "
    "or replace_once, or serve the model by: restage serve"
)
MEGAPIXEL, MULTIPLE = 1024 * 1024, 16
FATAL = (402, 404, 405, 410)
"""Statuses that say that nothing is paid or that there is no such page or model, so that no view has a chance."""


class Frame(NamedTuple):
    """Where a view lies in the picture that a server gets: scaled as a whole, its borders repeated around it."""

    width: int  # of the picture
    height: int
    left: int  # of the scaled view in it
    top: int
    scaled_width: int
    scaled_height: int

    @classmethod
    def of(cls, width: int, height: int, sizes: Sequence[tuple[int, int]]) -> Frame:
        """Choose the size that leaves the least room around a view of this size."""

        def filled(size: tuple[int, int]) -> float:
            scale = min(size[0] / width, size[1] / height)
            return scale * width * scale * height / (size[0] * size[1])

        across, down = max(sizes, key=filled)
        scale = min(across / width, down / height)
        scaled = (max(1, min(across, round(scale * width))), max(1, min(down, round(scale * height))))
        return cls(across, down, (across - scaled[0]) // 2, (down - scaled[1]) // 2, *scaled)

    def put(self, picture: Picture) -> Tensor:
        """Scale a view and put it in its place."""
        scaled = _resize(picture, self.scaled_width, self.scaled_height)
        right, below = self.width - self.left - self.scaled_width, self.height - self.top - self.scaled_height
        return functional.pad(scaled[None], (self.left, right, self.top, below), mode="replicate")[0]

    def take(self, picture: Picture, width: int, height: int) -> Tensor:
        """Take the view out of a picture that may have another resolution, at this size."""
        picture = _resize(picture, self.width, self.height)
        inside = picture[:, self.top : self.top + self.scaled_height, self.left : self.left + self.scaled_width]
        return _resize(inside, width, height)


def _resize(picture: Picture, width: int, height: int) -> Tensor:
    if tuple(picture.shape[1:]) == (height, width):
        return picture
    return functional.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


@dataclass(frozen=True)
class EndpointEditor:
    """Edits each view by a request of its own; the mask is the server's, or 1 everywhere where it sends none."""

    asker: PictureClient
    config: EndpointConfig
    fields: tuple[tuple[str, str], ...] = ()  # what the user adds to each request

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views, several at a time; see `Editor.edit`.

        Raises:
            InputError: too few views could be edited, or the server cannot be told what the method asks for.
        """
        frame = self._frame(batch)
        requests = [self._request(batch, place, frame) for place in range(len(batch.views))]
        needed = min(self.config.min_views, len(requests)) if batch.may_leave_out else len(requests)
        painted, left_out = self._ask_all(requests, batch, frame, needed)
        images = batch.originals.cpu().clone()
        masks = torch.zeros_like(images[:, 0])
        for place, (image, mask) in painted.items():
            images[place], masks[place] = image, 1.0 if mask is None else mask
        return Edited(images, masks, left_out).to(batch.originals.device)

    @property
    def moves_pixels(self) -> bool:
        """Whether views may come back shifted, and without masks: from all servers but our own editors.

        A pipeline behind `restage serve` has its views put back there, but each request knows one view alone, and masks
        are joined over all.
        """
        return not self.asker.model.is_ours or self.asker.model.editor == "pipeline"

    @property
    def anchor_form(self) -> AnchorForm:
        """How the model is shown an edited view: as a second picture, unless it is known to take one alone."""
        model = self.asker.model
        is_alone = "references" not in model.takes if model.is_ours else ONE_PICTURE.search(model.id) is not None
        return AnchorForm(is_alone, IN_GRID if is_alone else SECOND_PICTURE)

    @property
    def takes_references(self) -> bool:
        """Whether the model looks at more pictures than the view."""
        return not self.anchor_form.is_grid

    def prepare(self, asked: AskedPictures | None) -> None:
        """Refuse a method before anything is paid that the endpoint cannot be told about."""
        if asked is not None and asked.from_renders and "noise_level" not in self.asker.model.takes:
            raise InputError(FROM_RENDERS)

    @property
    def remarks(self) -> list[str]:
        """What is to be said of an edit: what was found out about the server, and what was paid."""
        asker, config = self.asker, self.config
        new = asker.budget.spent.num_requests - asker.answers.past.num_requests
        cost = f" at a cost of {config.cost(Usage(new)):.4g}" if config.price_per_picture else ""
        lost = f"; {asker.answers.num_lost} earlier ones were lost on the way" if asker.answers.num_lost else ""
        return [*asker.client.said, f"{new} pictures were asked for{cost}, {asker.num_kept} were kept before{lost}"]

    def _frame(self, batch: ViewBatch) -> Frame | None:
        """The frame that views are sent in; None to send them as they are."""
        height, width = batch.originals.shape[2:]
        sizes = self.config.sizes
        if self.config.picture_size == "own" or (not sizes and self.asker.model.is_ours):
            return None
        if not sizes:
            sizes = next((known for name, known in KNOWN_SIZES if re.search(name, self.asker.model.id)), ())
        if not sizes:
            scale = math.sqrt(MEGAPIXEL / (width * height))
            across, down = (max(MULTIPLE, round(scale * side / MULTIPLE) * MULTIPLE) for side in (width, height))
            sizes = ((across, down),)
        return Frame.of(width, height, sizes)

    def _request(self, batch: ViewBatch, place: int, frame: Frame | None) -> PictureRequest:
        takes = self.asker.model.takes
        original, view = batch.originals[place].cpu(), batch.views[place].cpu()
        height, width = original.shape[1:]
        seed = batch.noise_seeds()[place]
        fields = {"n": "1", "seed": str(seed if "seed" in takes else seed % 2**31), **dict(self.fields)}
        fields["size"] = f"{width}x{height}" if frame is None else f"{frame.width}x{frame.height}"
        if not WITHOUT_FORMAT.search(self.asker.model.id):
            fields["response_format"] = "b64_json"
        start = None
        if batch.noise_level < 1:
            if "noise_level" not in takes:
                raise InputError(FROM_RENDERS)
            fields["noise_level"] = repr(batch.noise_level)
            start = view
        if "captions" in takes and batch.request.source_caption and batch.request.target_caption:
            fields["source_caption"] = batch.request.source_caption
            fields["target_caption"] = batch.request.target_caption
        region = None if batch.regions is None else batch.regions[place].cpu()
        pictures = (original, *(reference.picture.cpu() for reference in batch.references))
        if frame is not None:
            # A reference of the view's shape is another view, which is to lie in its picture as the view does.
            pictures = tuple(frame.put(one) if one.shape == original.shape else one for one in pictures)
            region = None if region is None else frame.put(region[None])[0]
            start = None if start is None else frame.put(start)
        return PictureRequest(batch.request.instruction, pictures, region, start, fields)

    def _ask_all(
        self, requests: Sequence[PictureRequest], batch: ViewBatch, frame: Frame | None, needed: int
    ) -> tuple[dict[int, Painted], dict[int, str]]:
        """Ask for all pictures; returns those that came and the reasons why others did not, by their places."""
        height, width = batch.originals.shape[2:]
        whole = frame or Frame.of(width, height, [(width, height)])
        painted: dict[int, Painted] = {}
        left_out: dict[int, str] = {}
        stopped, lock = threading.Event(), threading.Lock()

        def ask(place: int) -> None:
            if stopped.is_set():
                return
            try:
                found = self.asker.ask(requests[place])
                mask = None if found.mask is None else whole.take(found.mask[None], width, height)[0]
                painted[place] = Painted(whole.take(found.image, width, height), mask)
            except (BrokenAnswer, Rejected, Unanswered) as error:
                with lock:
                    left_out[place] = str(error)
                    num_possible = len(requests) - len(left_out)
                if reason := self._reason_to_end(error, num_possible, needed, has_any=bool(painted)):
                    stopped.set()
                    raise InputError(reason) from None
            except BaseException:
                stopped.set()
                raise

        pool = ThreadPoolExecutor(self.config.num_parallel, thread_name_prefix="endpoint")
        try:
            for future in [pool.submit(ask, place) for place in range(len(requests))]:
                future.result()
        except AskingStopped as error:
            raise InputError(str(error)) from None
        finally:
            # Requests under way are waited for: they are paid, so their answers are to be kept.
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
        for place, reason in sorted(left_out.items()):
            self.asker.client.said.append(f"view {batch.view_indices[place]} was left out: {reason}")
        return painted, left_out

    @staticmethod
    def _reason_to_end(error: Exception, num_possible: int, needed: int, *, has_any: bool) -> str:
        """Why no more views are to be asked for: too few can still be edited, or the server answers nothing at all."""
        is_fatal = isinstance(error, Rejected) and error.status in FATAL
        if is_fatal or (isinstance(error, Unanswered) and not has_any):
            return str(error)
        if num_possible >= needed:
            return ""
        return (
            f"too few views could be edited: at most {num_possible}, where {needed} are needed (--min-views); the last "
            f"reason: {error}"
        )


def open_endpoint(source: EditorSource) -> EndpointEditor:
    """Open the endpoint that flags or the environment name; `source.model` is the model's name and no folder."""
    config = source.endpoint
    answers = config.cache or source.answers
    if answers is None:
        raise InputError("answers that cost something need a folder to be kept in; name one with --cache")
    model = source.model.as_posix() if source.model else os.environ.get("RESTAGE_EDITOR_MODEL", "")
    fields = []
    for option in source.options:
        name, _, value = option.partition("=")
        if not re.fullmatch(r"[\w.-]+(\[\])?", name) or not value or name in ("prompt", "model", "image", "mask"):
            raise InputError(f"expected --model-options as field=value for the endpoint, got {option!r}")
        fields.append((name, value))
    return EndpointEditor(PictureClient(config, model, answers), config, tuple(fields))
