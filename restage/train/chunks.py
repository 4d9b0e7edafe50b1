"""Files of tensors that are written once, and rows read from many of them as if they were one tensor.

Called by `restage.train.examples`, whose latents need not fit in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from restage.records import InputError, write_atomically

__all__ = ["ChunkFile", "FileRows", "StoredRows", "check_or_make", "hash_tensors"]


class _Place(NamedTuple):
    """Where a tensor lies in a file."""

    start: int  # bytes before it
    row_shape: tuple[int, ...]
    dtype: torch.dtype


class ChunkFile(NamedTuple):
    """A safetensors file that was found whole."""

    path: Path
    tensors: dict[str, _Place]


class FileRows(NamedTuple):
    """Neighboring rows of a file's tensor."""

    file: int
    first: int
    count: int


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, as hex."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_or_make(path: Path, make: Callable[[], dict[str, Tensor]]) -> ChunkFile:
    """Write tensors to a file unless it exists; either way the file itself says whether it is as it was written.

    Raises:
        InputError: it is not.
    """
    if not path.exists():
        tensors = {name: value.cpu().contiguous() for name, value in make().items()}
        with write_atomically(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": hash_tensors(tensors)})
    try:
        with safe_open(path, "pt") as file:
            names, metadata = file.offset_keys(), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # noqa: BLE001 - of a type that safetensors does not document
        raise InputError(f"{path} is not whole; delete it, and it is made anew: {error}") from None
    if metadata.get("sha256") != hash_tensors(tensors):
        raise InputError(f"{path} is not as it was written, or of an older version; delete it, and it is made anew")
    # In a safetensors file the tensors follow a header without gaps, so that their ends follow from the file's.
    start, places = path.stat().st_size - sum(value.nbytes for value in tensors.values()), {}
    for name, value in tensors.items():
        places[name] = _Place(start, tuple(value.shape[1:]), value.dtype)
        start += value.nbytes
    return ChunkFile(path, places)


class StoredRows:
    """A tensor that lies in files in parts; each index reads those rows, and no more is held in memory.

    Files are read, not mapped: the pages of a mapping that rows are drawn from by chance add up to the whole file.
    """

    def __init__(self, name: str, files: Sequence[ChunkFile], segments: Sequence[FileRows]) -> None:
        """Put the rows of the tensor of this name end to end, segment by segment."""
        places = [file.tensors[name] for file in files]
        self._paths = [file.path for file in files]
        self._starts = [place.start for place in places]
        self._dtype, self._row_shape = places[0].dtype, places[0].row_shape
        self._segments = np.array(segments, dtype=np.int64)
        self._ends = np.array(list(accumulate(segment.count for segment in segments)), dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._ends[-1])

    def __getitem__(self, rows: Int[Tensor, " some"]) -> Tensor:
        """Read rows, in the order asked for.

        Raises:
            InputError: a file is gone or shorter than it was.
        """
        found = torch.empty((len(rows), *self._row_shape), dtype=self._dtype)
        asked = rows.numpy()
        at = np.searchsorted(self._ends, asked, side="right")
        files, firsts, counts = self._segments[at].T
        in_file = firsts + asked - (self._ends[at] - counts)
        target = found.numpy()
        for position, (index, row) in enumerate(zip(files.tolist(), in_file.tolist(), strict=True)):
            self._read(index, row, target[position : position + 1])
        return found

    def _read(self, index: int, row: int, target: np.ndarray) -> None:
        path, offset = self._paths[index], self._starts[index] + row * target.nbytes
        try:
            if hasattr(os, "preadv"):
                file = os.open(path, os.O_RDONLY)  # half the time of a file object
                try:
                    count = os.preadv(file, [target.data], offset)
                finally:
                    os.close(file)
            else:  # Windows
                content = np.fromfile(path, target.dtype, count=target.size, offset=offset)
                count, target.reshape(-1)[: content.size] = content.nbytes, content
        except OSError as error:
            raise InputError(f"{path} can no longer be read, which training needs; start again: {error}") from None
        if count != target.nbytes:
            raise InputError(f"{path} is no longer whole; delete it and start again, and it is made anew")
