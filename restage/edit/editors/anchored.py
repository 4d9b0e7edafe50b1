"""One view is edited first, the anchor, and the editor is shown it with every other view, so that all come out alike.

Editors that take several pictures get the edited anchor as a reference; those that take one get a grid: the anchor
before and after its edit above the view, and the view twice. The anchor may also be a picture that the user edited.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from restage.edit.editors.change import change_masks
from restage.edit.editors.drift import agreement, find_drift, undo_drift
from restage.edit.editors.interface import AnchorForm, Edited, Editor, ViewBatch, hold_outside
from restage.edit.editors.settled import SettledEditor
from restage.edit.families import IN_GRID
from restage.edit.pictures import read_image
from restage.records import InputError, file_sha256
from restage.scenes.capture import Capture
from restage.scenes.references import ShownPicture

__all__ = ["Anchor", "AnchoredEditor", "anchor_mark", "find_anchor", "follow_anchor"]

GRID = "grid:"
"""Before an anchor: show it in a grid, also to an editor that is taken for one of several pictures."""
SAME_ASPECT = 0.03
"""Share by which the shape of an edited picture may differ from that of the views."""
NUM_LIKELY, COARSE_SIDE = 6, 64
"""The views that are most like a picture at this size are compared with it at their own."""
MIN_AGREEMENT = 0.35
"""Correlation of edges above which a picture shows a view."""
MIN_LEAD = 0.01
"""A picture that shows a second view as well, but for this correlation, has to say which it is."""


@dataclass(frozen=True)
class Anchor:
    """The view that is edited first."""

    index: int  # in the whole capture
    original: Float[Tensor, "3 h w"]
    region: Float[Tensor, "h w"] | None = None
    """Where it may change; None for everywhere."""
    edited: Float[Tensor, "3 h w"] | None = None
    """The view as the user edited it; None to have it edited."""
    drift: float = 0.0  # how far the user's picture had moved, as a share of the width


@dataclass(frozen=True)
class AnchoredEditor:
    """Another editor, which sees an edited view beside each view that it edits. Serves one edit of one scene."""

    editor: Editor
    anchor: Anchor
    form: AnchorForm
    max_drift: float | None = None
    """Share of the width that the edited anchor may have moved; None for editors that keep pixels in their places."""
    _done: list[Edited] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.editor, name)  # what else some editors offer

    def edit(self, batch: ViewBatch) -> Edited:
        """Edit a batch of views; see `Editor.edit`. The anchor's own view is always the anchor's edit."""
        if not self._done:
            self._done.append(self._edit_anchor(batch))
        first = self._done[0].to(batch.originals.device)
        images, masks = batch.originals.clone(), torch.zeros_like(batch.originals[:, 0])
        drifts: dict[int, float] = {}
        left_out: dict[int, str] = {}
        others = []
        for place, index in enumerate(batch.view_indices):
            if index == self.anchor.index:
                images[place], masks[place] = first.images[0], first.masks[0]
                if first.drifts:
                    drifts[place] = first.drifts[0]
            else:
                others.append(place)
        if others:
            instruction = batch.request.instruction
            if self.form.words:
                instruction = f"{instruction.rstrip('. ')}. {self.form.words}"
            part = replace(batch.select(others), request=replace(batch.request, instruction=instruction))
            if self.form.is_grid:
                edited = self._edit_in_grid(part, first.images[0])
            else:
                # Where the edit changed nothing that a mask could mark, the whole view is shown.
                mask = first.masks[0] if bool((first.masks[0] > 0.5).any()) else None
                anchor = ShownPicture(first.images[0], mask)
                edited = self.editor.edit(replace(part, references=(anchor, *batch.references)))
            images[others], masks[others] = edited.images, edited.masks
            left_out = {others[place]: reason for place, reason in edited.left_out.items()}
        return Edited(images, masks, left_out, drifts)

    def _edit_anchor(self, batch: ViewBatch) -> Edited:
        """Edit the anchor, or take the user's edit of it, and put it back where its original is."""
        anchor, original = self.anchor, self.anchor.original[None].to(batch.originals.device)
        alone = ViewBatch(
            original,
            original,
            request=batch.request,
            view_indices=(anchor.index,),
            noise_level=1.0,
            seed=batch.seed,
            references=batch.references,
            regions=None if anchor.region is None else anchor.region[None].to(original.device),
        )
        if anchor.edited is not None:
            edited = Edited(anchor.edited[None], change_masks(anchor.edited[None], anchor.original[None]))
            return hold_outside(alone, edited.to(original.device))._replace(drifts={0: anchor.drift})
        edited = hold_outside(alone, self.editor.edit(alone))
        if self.max_drift is None:
            return edited
        image, share = _put_back(
            edited.images[0].cpu(), anchor.original, self.max_drift, f"view {anchor.index}, which was edited first,"
        )
        return edited._replace(images=image[None].to(original.device), drifts={0: share})

    def _edit_in_grid(self, part: ViewBatch, edited_anchor: Tensor) -> Edited:
        """Show the editor the anchor's pair above each view, and take the lower right of what it returns."""
        height, width = part.originals.shape[2:]
        above = torch.cat([self.anchor.original.to(edited_anchor), edited_anchor], dim=2)

        def in_grid(views: Tensor) -> Tensor:
            below = torch.cat([part.originals, views], dim=3)
            return torch.cat([above.expand(len(views), *above.shape), below], dim=2)

        regions = part.regions
        if regions is None and self.form.takes_mask:
            regions = torch.ones_like(part.originals[:, 0])
        grid = replace(
            part,
            views=in_grid(part.views),
            originals=in_grid(part.originals),
            regions=None if regions is None else functional.pad(regions, (width, 0, height, 0)),
        )
        edited = self.editor.edit(grid)
        return edited._replace(images=edited.images[:, :, height:, width:], masks=edited.masks[:, height:, width:])


def follow_anchor(editor: Editor, anchor: Anchor, how: str) -> AnchoredEditor | SettledEditor:
    """Have an editor follow an anchor, which was named by `how`; what puts views back goes around it."""
    form, inner = None, editor
    while form is None and inner is not None:
        form, inner = getattr(inner, "anchor_form", None), getattr(inner, "editor", None)
    if form is None:
        raise InputError(
            "this editor can be shown no edited view beside the one that it edits; omit --anchor, or choose pipeline, "
            "endpoint, or an edit model that was trained with references"
        )
    if how.startswith(GRID):
        form = form._replace(is_grid=True, words=IN_GRID)
    if isinstance(editor, SettledEditor):
        return replace(editor, editor=AnchoredEditor(editor.editor, anchor, form, editor.max_drift))
    return AnchoredEditor(editor, anchor, form)


def anchor_mark(how: str) -> str:
    """What tells results with an anchor apart: its number or `auto`, or the hash of the user's picture."""
    plain = how.removeprefix(GRID)
    named = plain if plain == "auto" or plain.isdecimal() else file_sha256(_existing(plain))[:8]
    return f"anchor-{named}" + "-grid" * how.startswith(GRID)


def find_anchor(
    how: str, capture: Capture, regions: Float[Tensor, "n h w"] | None = None, *, max_drift: float
) -> Anchor:
    """Find the view that is edited first, or the view that the user's picture of it shows.

    Args:
        how: `auto` for the training view nearest to all others (with regions: the one that shows most of its region),
            the number of a view, or the path of a picture: an edited view, of any size. Which one it shows is known by
            its name, or else by its edges. `grid:` may stand before all of them.
        capture: The views.
        regions: Where each view of the capture may change.
        max_drift: Share of the width that what the picture shows may have moved.

    Raises:
        InputError: there is no such training view, or the picture shows none of them, or more than one.
    """
    plain, train = how.removeprefix(GRID), list(capture.train_indices)
    edited, drift = None, 0.0
    if plain == "auto":
        index = _central_view(capture) if regions is None else max(train, key=lambda one: float(regions[one].sum()))
    elif plain.isdecimal():
        index = int(plain)
        if index not in train:
            raise InputError(f"expected the number of a training view as --anchor, one of {train}, got {index}")
    else:
        path = _existing(plain)
        picture = _at_size(read_image(path), capture, plain)
        named = [one for one in train if Path(capture.file_names[one]).stem == path.stem]
        index = named[0] if named else _shown_view(picture, capture, plain)
        edited, drift = _put_back(picture, capture.images[index].cpu(), max_drift, plain)
    region = None if regions is None else regions[index].cpu()
    return Anchor(index, capture.images[index].cpu(), region, edited, drift)


def _existing(name: str) -> Path:
    if not Path(name).is_file():
        raise InputError(f"expected --anchor auto, the number of a view, or a picture's file, got {name!r}")
    return Path(name)


def _central_view(capture: Capture) -> int:
    """The training view whose camera is nearest to those of all others, in place and direction."""
    cameras = capture.cameras[list(capture.train_indices)]
    places = cameras.positions - cameras.positions.mean(dim=0)
    apart = torch.cdist(places, places) / places.norm(dim=1).mean().clamp_min(1e-9)
    forward = cameras.camera_to_world[:, :3, 2]
    return capture.train_indices[int((apart + torch.cdist(forward, forward)).sum(dim=1).argmin())]


def _at_size(picture: Tensor, capture: Capture, name: str) -> Tensor:
    size = (capture.cameras.height, capture.cameras.width)
    if abs(picture.shape[2] / picture.shape[1] / (size[1] / size[0]) - 1) > SAME_ASPECT:
        raise InputError(
            f"{name} has {picture.shape[2]}x{picture.shape[1]} pixels; expected a whole view, {size[1]}x{size[0]} or "
            "of the same shape"
        )
    if tuple(picture.shape[1:]) == size:
        return picture
    return functional.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _shown_view(picture: Tensor, capture: Capture, name: str) -> int:
    """The training view whose edges a picture has."""

    def small(image: Tensor) -> Tensor:
        scale = COARSE_SIDE / max(image.shape[1:])
        return functional.interpolate(image[None], scale_factor=scale, mode="area")[0] if scale < 1 else image

    shown, views = small(picture), {index: capture.images[index].cpu() for index in capture.train_indices}
    coarse = {index: agreement(shown, small(view)) for index, view in views.items()}
    likely = sorted(coarse, key=lambda index: -coarse[index])[:NUM_LIKELY]
    found = {index: agreement(picture, views[index], find_drift(picture, views[index])) for index in likely}
    best, *others = sorted(found, key=lambda index: -found[index])
    if found[best] < MIN_AGREEMENT:
        raise InputError(f"{name} shows none of the training views; if it does, call it by the view's name")
    if others and found[best] - found[others[0]] < MIN_LEAD:
        pair = " or ".join(capture.file_names[index] for index in (best, others[0]))
        raise InputError(f"{name} may show {pair}; call it by the view's name")
    return best


def _put_back(edited: Tensor, original: Tensor, max_drift: float, name: str) -> tuple[Tensor, float]:
    """Undo the drift of an edited view; returns how far it was, too, as a share of the width."""
    drift = find_drift(edited, original)
    share = drift.share(*original.shape[1:])
    if share > max_drift:
        raise InputError(
            f"{name} drifted by {share:.1%} of its width, more than {max_drift:.1%}; allow it with --max-drift"
        )
    return (undo_drift(edited, original, drift) if share else edited), share
