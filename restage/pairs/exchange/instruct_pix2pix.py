"""The folder layout of InstructPix2Pix (Brooks et al. 2022; github.com/timothybrooks/instruct-pix2pix).

Each prompt pair has a folder with `prompt.json` (input, edit, output), `<seed>_0.jpg` and `<seed>_1.jpg` (before and
after), and `metadata.jsonl` (a line of scores for each seed); `seeds.json` lists the folders with their seeds. The
public loader reads `seeds.json`, `edit` and the pictures. JPEG loses a little; masks lie beside the pictures as PNG.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from restage.pairs.exchange.exported import ExportedPair, PairSet
from restage.pairs.exchange.foreign_pair import ForeignPair
from restage.pairs.exchange.format import PairFormat
from restage.records import InputError, Progress, read_json, write_atomically

__all__ = ["INSTRUCT_PIX2PIX"]

SCORES = {
    "clip_sim_0": "source_text",
    "clip_sim_1": "target_text",
    "clip_sim_dir": "direction_similarity",
    "clip_sim_image": "image_similarity",
}
"""The layout's names of scores, and ours."""


def _jpeg(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, format="JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(value).encode())


def _metadata(pair: ExportedPair) -> dict[str, Any]:
    row = pair.row
    scores = {theirs: row.get(ours) for theirs, ours in SCORES.items()}
    return {"seed": _seed(pair), "p2p_threshold": row.get("self_share"), **scores, "pair": pair.id}


def _seed(pair: ExportedPair) -> int:
    """Return the seed of the noise, which names the pictures; for a foreign pair without a seed, a part of its id."""
    seed = pair.row.get("seed")
    return int(seed) if seed is not None else int(pair.id[-8:], 16)


def _write_folder(folder: Path, pairs: Sequence[ExportedPair]) -> list[str]:
    """Write the pairs of a prompt; `prompt.json` is written last, so that a folder that has it is whole."""
    seeds = []
    for pair in pairs:
        seed = str(_seed(pair))
        seeds.append(seed)
        if not (folder / "prompt.json").exists():
            _write(folder / f"{seed}_0.jpg", _jpeg(pair.parts["source.png"]))
            _write(folder / f"{seed}_1.jpg", _jpeg(pair.parts["edited.png"]))
            _write(folder / f"{seed}_mask.png", pair.parts["mask.png"])
    if not (folder / "prompt.json").exists():
        lines = (json.dumps(_metadata(pair)) for pair in pairs)
        _write(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines).encode())
        row = pairs[0].row
        texts = {"input": row["source_caption"], "edit": row["instruction"], "output": row["target_caption"]}
        _write_json(folder / "prompt.json", {**texts, "kind": row["kind"]})
    return seeds


def _export(pair_set: PairSet, folder: Path) -> Iterator[Progress]:
    """Write the layout; samples of one prompt pair that follow each other share a folder."""
    done = 0

    def pairs() -> Iterator[ExportedPair]:
        nonlocal done
        for index in pair_set.marks:
            yield from pair_set.pairs(index)
            done += 1

    listed = []
    for number, (_, group) in enumerate(groupby(pairs(), key=lambda pair: pair.row["prompt_id"])):
        name = f"{number:07d}"
        listed.append((name, _write_folder(folder / name, list(group))))
        yield Progress(stage="export", done=done, total=len(pair_set.marks), note=name)
    _write_json(folder / "seeds.json", listed)


def _folders(folder: Path) -> list[tuple[str, list[str]]]:
    """Return the folders with their seeds, from `seeds.json` or from what lies there."""
    if (folder / "seeds.json").exists():
        try:
            return [(str(name), [str(seed) for seed in seeds]) for name, seeds in read_json(folder / "seeds.json")]
        except (TypeError, ValueError):
            raise InputError(f"{folder / 'seeds.json'} must be a list of [folder, [seeds]]") from None
    found = [(path, sorted(path.glob("*_0.jpg"))) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [(path.name, [file.name.removesuffix("_0.jpg") for file in files]) for path, files in found if files]


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _scores_of(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Read the scores of `metadata.jsonl` by seed, under our names."""
    rows = {}
    for line in (_read(folder / "metadata.jsonl") or b"").decode("utf-8", "replace").splitlines():
        try:
            found = json.loads(line)
            rows[str(found["seed"])] = {SCORES.get(name, name): value for name, value in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return rows


def _texts(folder: Path) -> dict[str, str]:
    try:
        prompt = json.loads(_read(folder / "prompt.json") or b"{}")
    except ValueError:
        return {}
    parts = {
        "source_caption": prompt.get("input", prompt.get("caption")),
        "target_caption": prompt.get("output"),
        "instruction": prompt.get("edit"),
        "kind": prompt.get("kind"),
    }
    return {part: value for part, value in parts.items() if isinstance(value, str) and value.strip()}


def _read_pairs(folder: Path) -> Iterator[ForeignPair]:
    """Read the pairs of such a folder, in the order of `seeds.json`.

    Raises:
        InputError: there are none, or the first prompt has no captions or instruction.
    """
    folders = _folders(folder)
    if not folders:
        raise InputError(f"{folder} holds no seeds.json and no folder with <seed>_0.jpg")
    first = _texts(folder / folders[0][0])
    for part, key in (("source_caption", "input"), ("target_caption", "output"), ("instruction", "edit")):
        if part not in first:
            place = folder / folders[0][0] / "prompt.json"
            raise InputError(f"{place} has no {part.replace('_', ' ')}; expected a text under {key!r}")
    for name, seeds in folders:
        texts, scores = _texts(folder / name), _scores_of(folder / name)
        for seed in seeds:
            yield ForeignPair(
                where=f"{name}/{seed}",
                source=_read(folder / name / f"{seed}_0.jpg"),
                edited=_read(folder / name / f"{seed}_1.jpg"),
                mask=_read(folder / name / f"{seed}_mask.png"),
                texts=texts,
                row={"seed": seed, **scores.get(seed, {})},
            )


INSTRUCT_PIX2PIX = PairFormat(
    description="Layout of InstructPix2Pix: a folder for each prompt pair, JPEG pictures (quality 100, not "
    "lossless), masks beside them as PNG.",
    read=_read_pairs,
    export=_export,
)
