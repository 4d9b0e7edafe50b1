"""Arguments that several sub-commands have."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

__all__ = ["ModelsArgument", "RunArgument", "RunSeedArgument"]

RunArgument = Annotated[Path, arg(metavar="RUN", help="Folder of the run; made if it is missing.")]
ModelsArgument = Annotated[
    Path | None, arg(metavar="FOLDER", help="Models to start from; default: those that come with the package.")
]
RunSeedArgument = Annotated[int, arg(help="Of the run, if this makes it; a run keeps the seed it has.")]
