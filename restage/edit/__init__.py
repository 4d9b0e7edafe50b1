"""Edits a splat scene by text: methods, editors of single views, masks, and the stage that runs them.

`restage.edit(scene, "make it bronze")` is `restage.api.edit`: see there.
"""

from restage.run.packages import make_callable

__all__ = []  # pyright: ignore[reportUnknownVariableType]

make_callable(__name__)
