"""Image pairs in the forms that others use, both ways.

`FORMATS` is the menu. `export` writes the accepted pairs of a run, with a data card; `bring_in` checks what a
folder holds and stores it as a run that `restage train` takes.
"""

from __future__ import annotations

from restage.pairs.config import FORMAT_NAMES
from restage.pairs.exchange.foreign import PairFormat
from restage.pairs.exchange.huggingface import HUGGINGFACE
from restage.pairs.exchange.image_folder import IMAGE_FOLDER
from restage.pairs.exchange.instruct_pix2pix import INSTRUCT_PIX2PIX
from restage.pairs.exchange.tryon import TRYON
from restage.pairs.exchange.webdataset import WEBDATASET

__all__ = ["FORMATS"]

FORMATS: dict[str, PairFormat] = dict(
    zip(FORMAT_NAMES, (HUGGINGFACE, WEBDATASET, INSTRUCT_PIX2PIX, IMAGE_FOLDER, TRYON), strict=True)
)
"""Forms of data sets by name."""
