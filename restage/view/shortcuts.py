"""Keys of the viewer's page, which its command palette (Ctrl K) lists too, and the help that explains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from restage.edit.direct.operations import Delete

__all__ = ["Shortcut", "add_shortcuts", "show_help"]


class Shortcut(NamedTuple):
    """A key and what it does."""

    title: str
    key: Any  # one of viser's `HotkeyKey`
    act: Callable[[], Any]
    modifier: Any = None  # one of viser's `KeyModifier`

    @property
    def keys(self) -> str:
        """The key as people write it."""
        parts = [part.capitalize() for part in (self.modifier or "").replace("cmd/", "").split("+") if part]
        return " ".join([*parts, self.key if len(self.key) == 1 else self.key.capitalize()])


def shortcuts_of(controls: Any) -> list[Shortcut]:
    """All keys; those that viser moves the camera with (W A S D Q E and arrows) are left to it."""
    page, region = controls.page, controls.region
    return [
        Shortcut("Before or edited", "B", lambda: controls.toggle_layer("before")),
        Shortcut("Both, split", "V", lambda: controls.toggle_layer("split")),
        Shortcut("Undo", "Z", lambda: controls.travel(page.session.undo), "cmd/ctrl"),
        Shortcut("Redo", "Z", lambda: controls.travel(page.session.redo), "cmd/ctrl+shift"),
        Shortcut("Choose an object", "O", lambda: region.use("object")),
        Shortcut("Choose with a brush", "P", lambda: region.use("brush")),
        Shortcut("Choose in a box", "X", lambda: region.use("box")),
        Shortcut("Choose with a lasso", "L", lambda: region.use("lasso")),
        Shortcut("Put the tool away", "escape", lambda: region.use("off")),
        Shortcut("Choose nothing", "N", lambda: region.choose(None)),
        Shortcut("Recolor what is chosen", "C", region.recolor),
        Shortcut("Delete what is chosen", "delete", lambda: region.change(Delete())),
        Shortcut("Duplicate what is chosen", "U", region.duplicate),
        Shortcut("Handles to move, turn and scale", "M", region.toggle_gizmo),
        Shortcut("Help", "H", lambda: show_help(controls)),
    ]


def add_shortcuts(controls: Any) -> None:
    """Let the keys work; viser passes over them while text is typed."""
    for shortcut in shortcuts_of(controls):
        command = controls.page.server.gui.add_command(shortcut.title, hotkey=shortcut.key, modifier=shortcut.modifier)
        command.on_trigger(controls.page.handler(lambda _, act=shortcut.act: act()))


HELP = """\
**Look**: drag to turn, right drag to move, wheel to come closer; a click at a camera goes there. *Show* has the scene
before and edited, both split, photographs, truth, mask and difference.

**Choose splats** under *Region*: take a tool and click, drag or draw on what you see. Shift adds, Alt takes away.

**Change** what is chosen at once, or let an editor change it by words under *Edit*. Changes are written into the run
folder as they are made; *History* takes them back.

| key | |
| --- | --- |
"""


def show_help(controls: Any) -> None:
    """Show an overlay with what the mouse and the keys do."""
    gui = controls.page.server.gui
    with gui.add_modal("How to use this") as modal:
        gui.add_markdown(HELP + "\n".join(f"| {one.keys} | {one.title} |" for one in shortcuts_of(controls)))
        gui.add_button("Close").on_click(controls.page.handler(lambda _: modal.close()))
