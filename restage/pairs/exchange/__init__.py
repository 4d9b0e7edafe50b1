"""Image pairs in the forms that others use, both ways.

`EXPORTERS` writes the accepted pairs of a run, with a data card (`card`); `READERS` yields what a folder of that form
holds, which `bring_in` checks and stores as a run that `restage train` takes.
"""

from __future__ import annotations

from restage.pairs.exchange.huggingface import export_huggingface, read_huggingface
from restage.pairs.exchange.instruct_pix2pix import export_instruct_pix2pix, read_instruct_pix2pix
from restage.pairs.exchange.webdataset import export_webdataset, read_webdataset

__all__ = ["EXPORTERS", "READERS"]

EXPORTERS = {
    "hf": export_huggingface,
    "webdataset": export_webdataset,
    "instruct-pix2pix": export_instruct_pix2pix,
}
"""Forms by name: (what to export, folder) -> progress."""

READERS = {
    "hf": read_huggingface,
    "webdataset": read_webdataset,
    "instruct-pix2pix": read_instruct_pix2pix,
}
"""Forms by name: (folder) -> foreign pairs."""
