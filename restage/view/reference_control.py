"""The picture that an edit in the viewer refers to: uploaded by the user, or that of an example."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from restage.records import InputError, Reference
from restage.scenes.references import GivenPicture
from restage.view.session import ViewSession

__all__ = ["ReferenceControl"]

MAX_BYTES = 50_000_000


class ReferenceControl:
    """Buttons that take a picture, a mask of its subject, or drop both, and a line that says what is taken."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.references: tuple[Reference, ...] = ()
        self._given: GivenPicture | None = None
        gui = page.server.gui
        hint = "For instructions such as: make the cube look like the picture. Not every editor looks at one."
        self.upload = gui.add_upload_button("Reference picture", icon="photo", mime_type="image/*", hint=hint)
        self.upload.on_upload(page.handler(lambda _: self._take()))
        self.said = gui.add_markdown("", visible=False)
        hint = "White where what is meant stands in the reference picture; of the same size."
        self.upload_mask = gui.add_upload_button(
            "Mask of it", icon="mask", mime_type="image/*", hint=hint, visible=False
        )
        self.upload_mask.on_upload(page.handler(lambda _: self._take_mask()))
        self.drop = gui.add_button("Without picture", icon="photo-off", visible=False)
        self.drop.on_click(page.handler(lambda _: self.show(())))

    def _take(self) -> None:
        file = self.upload.value
        self._keep(GivenPicture(file.content, name=file.name), file.name)

    def _take_mask(self) -> None:
        file = self.upload_mask.value
        if self._given is None:
            raise InputError("choose the reference picture before its mask")
        self._keep(replace(self._given, mask=file.content), f"{self._given.name} with the mask {file.name}")

    def _keep(self, given: GivenPicture, name: str) -> None:
        references = (keep_upload(self.page.session, given),)
        self.show(references, name)
        self._given, self.upload_mask.visible = given, True

    def show(self, references: tuple[Reference, ...], name: str = "of the example") -> None:
        """Choose the pictures of the next edit; none for an edit by words."""
        self.references, self._given = references, None
        # A file's name is shown as it is, without what viser would take for markdown or HTML.
        plain = re.sub(r"[^\w. -]", " ", name)
        self.said.content = f"Reference: {plain}" if references else ""
        self.said.visible = self.drop.visible = bool(references)
        self.upload_mask.visible = False


def keep_upload(session: ViewSession, given: GivenPicture) -> Reference:
    """Keep an uploaded picture, and the mask of its subject, with the scene that is shown.

    Raises:
        InputError: one is no picture or too large, their sizes differ, or the scene has no run yet.
    """
    if session.scene.folder is None:
        raise InputError("this scene has no run to keep a picture in yet; make an edit by words or a region first")
    for content in (given.picture, given.mask):
        if len(content) > MAX_BYTES:
            size, most = f"{len(content) / 1e6:.0f} MB", f"{MAX_BYTES / 1e6:.0f} MB"
            raise InputError(f"{given.name} has {size}; expected pictures of at most {most}")
    return given.keep(session.scene.folder)
