"""The viewer's page: a `ViewSession` shown with viser, splats and cameras on the left, controls on the right.

viser calls back in threads of its own; whatever goes wrong in one is shown in the page.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from restage.edit.job import EditStep
from restage.edit.single import EditChoice
from restage.records import EditRequest, InputError
from restage.view import controls
from restage.view.layers import Backgrounds, SceneNodes
from restage.view.session import ViewSession
from restage.view.versions import EditStopped

__all__ = ["ViewerPage"]

BYTES_PER_SPLAT = 32
BYTES_PER_SECOND = 8e6
"""Of splats sent while an edit runs, so that a slow connection is not flooded."""
SHORTEST_UPDATE_S = 0.4


class ViewerPage:
    """Everything that one server shows; all browsers that open it see the same version and layer."""

    def __init__(self, server: Any, session: ViewSession) -> None:
        """Build the page on a viser server; `server` is a `viser.ViserServer`."""
        self.server, self.session = server, session
        self.layer = "edited"
        self._edit_thread: threading.Thread | None = None
        self._keep_thread: threading.Thread | None = None
        self.drawing = threading.RLock()  # of what is shown: an edit, writing and each browser have their own threads
        server.gui.configure_theme(
            control_width="medium", dark_mode=True, show_logo=False, show_share_button=False, brand_color=(38, 166, 142)
        )
        server.gui.set_panel_label("Restage")
        self.nodes = SceneNodes(self)
        self.backgrounds = Backgrounds(self)
        self.controls = controls.Controls(self)
        self.load_scene()
        server.on_client_connect(self.backgrounds.follow)

    def load_scene(self) -> None:
        """Show the scene that the session has chosen."""
        with self.drawing:
            self.nodes.load()
            self.controls.load()
            self.refresh()

    def refresh(self) -> None:
        """Show the session's version and the chosen layer."""
        with self.drawing:
            self.nodes.show_splats(self.session.shown.splats, self.session.selected)
            self.show_layer(self.layer)
            self.controls.refresh()

    def show_layer(self, layer: str) -> None:
        """Switch to a layer: splats are shown as such, all else as a picture behind an empty scene."""
        self.layer = layer
        self.nodes.show_layer(layer)
        self.backgrounds.request()

    def go_to_view(self, index: int, client: Any | None = None) -> None:
        """Bring a browser's camera, or all of them, to a view of the capture, and show its photograph in the panel."""
        clients = [client] if client is not None else list(self.server.get_clients().values())
        for one in clients:
            self.nodes.move_camera(one, index)
        self.nodes.stand_at(index)
        self.controls.show_view(index)
        self.backgrounds.request()

    @contextmanager
    def errors_shown(self, client: Any | None = None) -> Iterator[None]:
        """Show what goes wrong inside as a message in the page; what is not the user's doing goes to stderr too."""
        try:
            yield
        except InputError as error:
            self.notify("This cannot be done", str(error), client=client)
        except Exception as error:  # a thread of the server has no caller who could handle it
            traceback.print_exc()
            self.notify("Something went wrong", f"{type(error).__name__}: {error}", client=client)

    def notify(self, title: str, body: str, *, color: str = "red", client: Any | None = None) -> None:
        """Show a message in one browser, or in all."""
        for one in [client] if client is not None else self.server.get_clients().values():
            one.add_notification(title, body, color=color, auto_close_seconds=12.0)

    def handler(self, act: Callable[[Any], None]) -> Callable[[Any], None]:
        """A callback of viser that shows its errors to whoever caused it."""

        def call(event: Any) -> None:
            with self.errors_shown(event.client):
                act(event)

        return call

    def start_edit(self, request: EditRequest, choice: EditChoice, *, is_chained: bool) -> None:
        """Begin an edit in a thread of its own."""
        self.start(self.session.edit(request, choice, is_chained=is_chained))

    def start(self, steps: Iterator[EditStep]) -> None:
        """Go through the steps of an edit in a thread of its own."""
        if self.session.is_running or (self._edit_thread is not None and self._edit_thread.is_alive()):
            raise InputError("an edit is running; wait for its end or stop it")
        self.controls.begin_edit()
        if self.layer == "before":
            self.controls.choose_layer("edited")
        self._edit_thread = threading.Thread(target=self._work, args=(steps,), name="edit", daemon=True)
        self._edit_thread.start()

    @contextmanager
    def following_scene(self) -> Iterator[None]:
        """Load the scene anew if it changes inside: a file of splats gets its run, with views to go to."""
        scene = self.session.scene
        yield
        if self.session.scene is not scene:
            self.load_scene()

    def start_keeping(self) -> None:
        """Write direct edits into the run in a thread of its own, unless one is at it."""
        if self._keep_thread is None or not self._keep_thread.is_alive():
            self._keep_thread = threading.Thread(target=self._keep, name="keep", daemon=True)
            self._keep_thread.start()

    def _keep(self) -> None:
        with self.errors_shown(), self.following_scene():
            while self.session.has_unkept:
                for step in self.session.keep():
                    self.controls.say_kept(f"Writing into the run: {step.note}")
            self.controls.say_kept("All changes are in the run folder.")
            with self.drawing:
                self.controls.refresh()

    def _work(self, steps: Iterator[EditStep]) -> None:
        """Go through an edit, showing it as it goes; whatever its end is, the page says so."""
        started_s, scene = time.monotonic(), self.session.scene
        try:
            num_steps = self._show_steps(steps)
            end = f"Done in {time.monotonic() - started_s:.0f} s and kept in the run folder."
            if not num_steps:
                end = "Made before, and opened from the run folder."
        except EditStopped as stopped:
            end = str(stopped)
        except InputError as error:
            end = f"This cannot be done: {error}"
            self.notify("This cannot be done", str(error))
        except Exception as error:  # shown in the page, and the viewer goes on
            traceback.print_exc()
            end = f"The edit failed. {type(error).__name__}: {error}"
            self.notify("The edit failed", f"{type(error).__name__}: {error}")
        with self.errors_shown():
            self.controls.end_edit(end)
            if self.session.scene is not scene:
                self.load_scene()  # a run was made, with views to go to
            self.refresh()

    def _show_steps(self, steps: Iterator[EditStep]) -> int:
        """Show the steps, not faster than a browser can follow; gives their number."""
        shown_s, num_steps = -1e9, 0
        for step in steps:
            num_steps += 1
            pause_s = max(SHORTEST_UPDATE_S, len(step.splats) * BYTES_PER_SPLAT / BYTES_PER_SECOND)
            if time.monotonic() - shown_s >= pause_s or step.step == step.num_steps:
                shown_s = time.monotonic()
                self.controls.show_step(step)
                self.nodes.show_splats(step.splats)
                self.backgrounds.request()
        return num_steps

    def close(self) -> None:
        """Stop a running edit, wait for it and for direct edits to be written, and end the page's own threads."""
        self.session.stop()
        if self._edit_thread is not None:
            self._edit_thread.join(timeout=10)
        if self._keep_thread is not None:
            self._keep_thread.join(timeout=60)
        self.backgrounds.close()
