"""The tab that makes a scene from words; it can be seen to grow."""

from __future__ import annotations

from typing import Any

from restage.generate.generators import GENERATORS
from restage.generate.scene import SceneOrder

__all__ = ["NewSceneControls"]

AUTO = "auto"


class NewSceneControls:
    """The tab; what it starts is told, and stopped, under Edit."""

    def __init__(self, page: Any) -> None:
        self.page = page
        gui = page.server.gui
        self.caption = gui.add_text("Caption", "", hint="Such as: a red cone on the grass at noon")
        self.generator = gui.add_dropdown(
            "Generator", (AUTO, *GENERATORS), hint="How the scene grows; restage generate --help explains each."
        )
        self.seed = gui.add_number("Seed", 0, min=0, step=1)
        make = gui.add_button("Make a scene", icon="sparkles")
        make.on_click(page.handler(lambda _: self._start()))
        gui.add_markdown("It grows in the window, and becomes a scene of this run. Stop and progress are under Edit.")

    def _start(self) -> None:
        order = SceneOrder(
            captions=(self.caption.value.strip(),), seeds=(int(self.seed.value),), generator=self.generator.value
        )
        self.page.start(self.page.session.generate(order))
