"""Arguments that several sub-commands have."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

__all__ = ["ModelsArgument", "RunArgument", "RunSeedArgument", "StoreArgument"]

RunArgument = Annotated[Path, arg(metavar="RUN", help="Folder of the run; it is made if it does not exist.")]
ModelsArgument = Annotated[
    Path | None,
    arg(metavar="FOLDER", help="Folder of the models to start from; default: the package's own."),
]
StoreArgument = Annotated[str, arg(metavar="URL")]
RunSeedArgument = Annotated[int, arg(help="Seed for a new run; ignored if the run exists.")]
