"""How weights and programs are spoiled; see `faults`."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.borders.faults import (
    FILE,
    Fault,
    remove,
    replace_file,
)
from benchmarks.borders.tables import Evil

__all__ = ["CODE", "WEIGHTS"]


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write_weights(path: Path, header: bytes, data: bytes, *, size: int | None = None) -> None:
    replace_file(path, struct.pack("<Q", len(header) if size is None else size) + header + data)


def odd_header(path: Path, rng: Random) -> bool:
    header, data = read_header(path)
    size = rng.choice((2**63, 2**40, 0))
    write_weights(path, json.dumps(header).encode(), data, size=size)
    return True


def missing_weight(path: Path, rng: Random) -> bool:
    tensors = load_file(path)
    tensors.pop(rng.choice(sorted(tensors)))
    remove(path)
    save_file(tensors, path, {"format": "pt"})
    return True


def other_shape(path: Path, rng: Random) -> bool:
    tensors = load_file(path)
    name = rng.choice(sorted(name for name, tensor in tensors.items() if tensor.ndim > 1))
    tensors[name] = tensors[name].new_zeros(3, *tensors[name].shape[1:], 2)
    remove(path)
    save_file(tensors, path, {"format": "pt"})
    return True


def weights_not_finite(path: Path, rng: Random) -> bool:
    tensors = load_file(path)
    name = rng.choice(sorted(name for name, tensor in tensors.items() if tensor.is_floating_point()))
    tensors[name] = tensors[name] * float("nan")
    remove(path)
    save_file(tensors, path, {"format": "pt"})
    return False


def pickle_instead(path: Path, rng: Random) -> bool:
    """Weights as a pickle under the old name, which runs code when it is opened."""
    remove(path)
    name = {"model.safetensors": "pytorch_model.bin"}.get(path.name, path.name.replace(".safetensors", ".bin"))
    path.with_name(name).write_bytes(pickle.dumps(Evil()))
    return True


WEIGHTS: tuple[Fault, ...] = (
    *FILE, *(odd_header,) * 3, missing_weight, missing_weight, other_shape, other_shape, weights_not_finite,
    pickle_instead, pickle_instead,
)  # fmt: skip
CODE_TEXTS = (
    "STUDY = 3\n", "x = (\n", "raise ValueError('mine')\n", "import no_such_package\n", "STUDY = undefined\n",
    "def study():\n    return None\n", "def study(x):\n    return x\n", "\0", "raise SystemExit(0)\n",
    "def study():\n    return study()\nSTUDY = study()\n", "1 / 0\n", "open('nowhere')\n",
    "from restage.records import InputError\nraise InputError('mine')\n", "raise SystemExit('mine')\n",
)  # fmt: skip
SETTINGS = (
    ("num_views=6", "num_views=0"), ("size=32", "size=-1"), ("steps=3", "steps=0"), ("seeds=(0,)", "seeds=()"),
    ("recolour", "no_such_kind"), ('"nothing"', '"../../x"'), ('"exact")', '"no_such")'),
)  # fmt: skip


def broken_code(path: Path, rng: Random) -> bool:
    replace_file(path, rng.choice(CODE_TEXTS).encode())
    return True


def other_setting(path: Path, rng: Random) -> bool:
    """Another value for one of the numbers of the study."""
    text = path.read_text()
    text = text.replace(*rng.choice(SETTINGS))
    replace_file(path, text.encode())
    return True


CODE: tuple[Fault, ...] = (*(broken_code,) * 8, *(other_setting,) * 4)
