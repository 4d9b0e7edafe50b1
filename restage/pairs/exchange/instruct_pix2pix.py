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

from restage.pairs.encoding import load_picture
from restage.pairs.exchange import foreign
from restage.prompts.store import MAX_LINE
from restage.records import InputError, Progress, write_atomically

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
    load_picture(png, "a stored picture").save(buffer, format="JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def _metadata(pair: foreign.ExportedPair) -> dict[str, Any]:
    row = pair.row
    scores = {theirs: row.get(ours) for theirs, ours in SCORES.items()}
    return {"seed": _seed(pair), "p2p_threshold": row.get("self_share"), **scores, "pair": pair.id}


def _seed(pair: foreign.ExportedPair) -> int:
    """Return the seed of the noise, which names the pictures; for a foreign pair without a seed, a part of its id."""
    seed = pair.row.get("seed")
    return int(seed) if seed is not None else int(pair.id[-8:], 16)


def _write_folder(folder: Path, pairs: Sequence[foreign.ExportedPair]) -> list[str]:
    """Write the pairs of a prompt; `prompt.json` is written last, so that a folder that has it is whole."""
    seeds = [str(_seed(pair)) for pair in pairs]
    if not (folder / "prompt.json").exists():
        for seed, pair in zip(seeds, pairs, strict=True):
            _write(folder / f"{seed}_0.jpg", _jpeg(pair.parts["source.png"]))
            _write(folder / f"{seed}_1.jpg", _jpeg(pair.parts["edited.png"]))
            for part in ("mask.png", "reference.png", "reference_mask.png"):
                if part in pair.parts:
                    _write(folder / f"{seed}_{part}", pair.parts[part])
        lines = (json.dumps(_metadata(pair)) for pair in pairs)
        _write(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines).encode())
        row = pairs[0].row
        texts = {"input": row["source_caption"], "edit": row["instruction"], "output": row["target_caption"]}
        _write(folder / "prompt.json", json.dumps({**texts, "kind": row["kind"]}).encode())
    return seeds


def _export(pair_set: foreign.PairSet, folder: Path) -> Iterator[Progress]:
    """Write the layout; samples of one prompt pair that follow each other share a folder."""
    done = 0

    def pairs() -> Iterator[foreign.ExportedPair]:
        nonlocal done
        for index in pair_set.marks:
            yield from pair_set.pairs(index)
            done += 1

    listed = []
    for number, (_, group) in enumerate(groupby(pairs(), key=lambda pair: pair.row["prompt_id"])):
        name = f"{number:07d}"
        listed.append((name, _write_folder(folder / name, list(group))))
        yield Progress(stage="export", done=done, total=len(pair_set.marks), note=name)
    _write(folder / "seeds.json", json.dumps(listed).encode())


def _folders(folder: Path) -> list[tuple[str, list[str]]]:
    """Return the folders with their seeds, from `seeds.json` or from what lies there."""
    if (content := foreign.read_file(folder, "seeds.json")) is not None:
        try:
            return [(str(name), [str(seed) for seed in seeds]) for name, seeds in foreign.json_or_none(content)]
        except (TypeError, ValueError):
            raise InputError(f"{folder / 'seeds.json'} must be a list of [folder, [seeds]]") from None
    found = [(path, sorted(path.glob("*_0.jpg"))) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [(path.name, [file.name.removesuffix("_0.jpg") for file in files]) for path, files in found if files]


def _scores_of(content: bytes | None) -> dict[str, Mapping[str, Any]]:
    """Read the scores of `metadata.jsonl` by seed, under our names."""
    rows = {}
    lines = (line for line in (content or b"").splitlines() if len(line) <= MAX_LINE)
    for found in map(foreign.json_or_none, lines):
        if isinstance(found, dict) and "seed" in found:
            rows[str(found["seed"])] = {SCORES.get(name, name): value for name, value in found.items()}
    return rows


def _texts(content: bytes | None) -> dict[str, str]:
    prompt = foreign.json_or_none(content)
    names = {
        "source_caption": "input" if isinstance(prompt, dict) and "input" in prompt else "caption",
        "target_caption": "output",
        "instruction": "edit",
        "kind": "kind",
    }
    return foreign.texts_of(prompt, names) if isinstance(prompt, dict) else {}


def _read_pairs(folder: Path) -> Iterator[foreign.ForeignPair]:
    """Read the pairs of such a folder, in the order of `seeds.json`."""
    folders = _folders(folder)
    if not folders:
        raise InputError(f"{folder} holds no seeds.json and no folder with <seed>_0.jpg")
    if "instruction" not in _texts(foreign.read_file(folder, f"{folders[0][0]}/prompt.json")):
        raise InputError(f"{folder / folders[0][0] / 'prompt.json'} has no instruction; expected a text under 'edit'")
    for name, seeds in folders:
        texts = _texts(foreign.read_file(folder, f"{name}/prompt.json"))
        scores = _scores_of(foreign.read_file(folder, f"{name}/metadata.jsonl"))
        for seed in seeds:
            yield foreign.ForeignPair(
                where=f"{name}/{seed}",
                source=foreign.read_file(folder, f"{name}/{seed}_0.jpg"),
                edited=foreign.read_file(folder, f"{name}/{seed}_1.jpg"),
                mask=foreign.read_file(folder, f"{name}/{seed}_mask.png"),
                texts=texts,
                row={"seed": seed, **scores.get(seed, {})},
                mask_is="white",  # only our own exports have masks and references in this layout
                reference=foreign.read_file(folder, f"{name}/{seed}_reference.png"),
                reference_mask=foreign.read_file(folder, f"{name}/{seed}_reference_mask.png"),
            )


INSTRUCT_PIX2PIX = foreign.PairFormat(
    description="Layout of InstructPix2Pix: a folder for each prompt pair, JPEG pictures (quality 100, not "
    "lossless), masks beside them as PNG.",
    read=_read_pairs,
    is_in=lambda folder: (folder / "seeds.json").is_file() or any(folder.glob("*/*_0.jpg")),
    export=_export,
)
