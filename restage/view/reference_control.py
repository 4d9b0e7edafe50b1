"""The picture that an edit in the viewer refers to: uploaded by the user, or that of an example."""

from __future__ import annotations

import re
from typing import Any

from restage.records import InputError, Reference
from restage.scenes.references import GivenPicture
from restage.view.session import ViewSession

__all__ = ["ReferenceControl"]

MAX_BYTES = 50_000_000


class ReferenceControl:
    """A button that takes a picture, one that drops it, and a line that says which is taken."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.references: tuple[Reference, ...] = ()
        gui = page.server.gui
        hint = "For instructions such as: make the cube look like the picture. Not every editor looks at one."
        self.upload = gui.add_upload_button("Reference picture", icon="photo", mime_type="image/*", hint=hint)
        self.upload.on_upload(page.handler(lambda _: self._take()))
        self.said = gui.add_markdown("", visible=False)
        self.drop = gui.add_button("Without picture", icon="photo-off", visible=False)
        self.drop.on_click(page.handler(lambda _: self.show(())))

    def _take(self) -> None:
        file = self.upload.value
        self.show((keep_upload(self.page.session, file.name, file.content),), file.name)

    def show(self, references: tuple[Reference, ...], name: str = "of the example") -> None:
        """Choose the pictures of the next edit; none for an edit by words."""
        self.references = references
        # A file's name is shown as it is, without what viser would take for markdown or HTML.
        plain = re.sub(r"[^\w. -]", " ", name)
        self.said.content = f"Reference: {plain}" if references else ""
        self.said.visible = self.drop.visible = bool(references)


def keep_upload(session: ViewSession, name: str, content: bytes) -> Reference:
    """Keep an uploaded picture with the scene that is shown.

    Raises:
        InputError: it is no picture or too large, or the scene has no run yet.
    """
    if session.scene.folder is None:
        raise InputError("this scene has no run to keep a picture in yet; make an edit by words or a region first")
    if len(content) > MAX_BYTES:
        raise InputError(f"{name} has {len(content) / 1e6:.0f} MB; expected a picture of at most {MAX_BYTES / 1e6:.0f}")
    return GivenPicture(content, name=name).keep(session.scene.folder)
