"""Pictures, clips and scenes from text; `restage generate` says by what is asked which of them is made.

`restage.generate("a red cone on grass")` is `restage.api.generate`: see there.
"""

from restage.run.packages import make_callable

__all__ = []  # pyright: ignore[reportUnknownVariableType]

make_callable(__name__)
