"""Folders of virtual try-on in the layout of VITON-HD (Choi et al. 2021; github.com/shadow2496/VITON-HD).

`image/` holds persons, `cloth/` garments, `cloth-mask/` where a garment is, and `agnostic-mask/` what of a person may
change, in the folder itself or in `train/` and `test/`. Lists such as `train_pairs.txt` name a person and a garment a
line. The result of putting a garment on another person is known only where a folder `result/` holds it; else a person
in the own garment is the result, and the same with the masked region in gray is what it is put on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from restage.pairs.encoding import upright_picture
from restage.pairs.exchange import foreign
from restage.records import InputError, Progress, write_atomically
from restage.scenes.io.images import IMAGE_SUFFIXES

__all__ = ["TRYON"]

INSTRUCTION = "put on the garment in the picture"
GRAY = 128
SPLITS = ("train", "test", "")
PICTURED = ("agnostic-v3.2", "agnostic")
"""Folders with persons whose garment is covered already."""


def _splits(folder: Path) -> list[Path]:
    found = [folder / split for split in SPLITS]
    return [path for path in found if (path / "image").is_dir() and (path / "cloth").is_dir()]


def _file(folder: Path, part: str, *stems: str) -> bytes | None:
    """Read the picture of a part of the layout, whatever its suffix."""
    names = (f"{part}/{stem}{suffix}" for stem in stems for suffix in IMAGE_SUFFIXES)
    return next((found for name in names if (found := foreign.read_file(folder, name)) is not None), None)


def _listed(folder: Path, split: Path) -> list[tuple[str, str]]:
    """Return the stems of persons and garments: those of the lists of a split, or those of equal names."""
    lists = foreign.files_in(folder, f"{split.name if split != folder else '*'}_pairs*.txt")
    rows = [line.split() for path in lists for line in path.read_text("utf-8", errors="replace").splitlines()]
    pairs = [(Path(row[0]).stem, Path(row[1]).stem) for row in rows if len(row) >= 2]
    if not pairs:
        persons, garments = ({path.stem for path in foreign.files_in(split / part, "*")} for part in ("image", "cloth"))
        pairs = [(name, name) for name in sorted(persons & garments)]
    return list(dict.fromkeys(pairs))


def _wearable(split: Path, person: str, garment: str, listed: list[tuple[str, str]]) -> tuple[str, str]:
    """Return a person in the own garment for one in another's whose result nobody knows, unless that is listed, too."""
    has_result = any((split / "result" / f"{person}{suffix}").is_file() for suffix in IMAGE_SUFFIXES)
    if has_result or (person, person) in listed or _file(split, "cloth", person) is None:
        return person, garment
    return person, person


def _cover(person: bytes, mask: bytes) -> bytes | None:
    """Paint the masked region of a person gray; None if either is no picture, or they differ in size."""
    try:
        picture = np.array(upright_picture(person, "a person"))
        region = np.asarray(upright_picture(mask, "a mask", "L")) > 127
    except InputError:
        return None
    if picture.shape[:2] != region.shape:
        return None
    picture[region] = GRAY
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _read(folder: Path) -> Iterator[foreign.ForeignPair]:
    """Read the pairs of all splits, in the order of their lists."""
    splits = _splits(folder)
    if not splits:
        raise InputError(f"{folder} holds no folders image and cloth, nor train or test with such")
    for split in splits:
        listed = _listed(folder, split)
        for person, garment in dict.fromkeys(_wearable(split, person, garment, listed) for person, garment in listed):
            known = _file(split, "result", person)
            own = _file(split, "image", person)
            mask = _file(split, "agnostic-mask", person, f"{person}_mask")
            covered = next((found for part in PICTURED if (found := _file(split, part, person))), None)
            if known is None and covered is None and own is not None and mask is not None:
                covered = _cover(own, mask)
            is_worn = known is None and person == garment
            record = foreign.read_file(split, f"record/{person}.json")
            yield foreign.ForeignPair(
                where=f"{split.relative_to(folder).as_posix()}/{person} in {garment}",
                source=own if known is not None else covered,
                edited=known if known is not None else (own if is_worn else None),
                mask=mask,
                texts={"instruction": INSTRUCTION, "kind": "tryon", "id": person},
                row={} if record is None else {"record": record.decode("utf-8", "replace")},
                mask_is="white",
                reference=_file(split, "cloth", garment),
                reference_mask=_file(split, "cloth-mask", garment),
            )


def _export(pair_set: foreign.PairSet, folder: Path) -> Iterator[Progress]:
    """Write the pairs that refer to a picture, with their results and records; the list is written last."""
    names, split = [], folder / "train"
    for done, index in enumerate(pair_set.marks, start=1):
        for pair in pair_set.pairs(index):
            parts = {
                f"image/{pair.id}.png": "source.png",
                f"cloth/{pair.id}.png": "reference.png",
                f"cloth-mask/{pair.id}.png": "reference_mask.png",
                f"agnostic-mask/{pair.id}_mask.png": "mask.png",
                f"result/{pair.id}.png": "edited.png",
                f"record/{pair.id}.json": "json",
            }
            if "reference.png" not in pair.parts:
                continue
            for name, part in parts.items():
                if part in pair.parts and not (split / name).exists():
                    with write_atomically(split / name) as temporary:
                        temporary.write_bytes(pair.parts[part])
            names.append(f"{pair.id}.png {pair.id}.png\n")
        yield Progress(stage="export", done=done, total=len(pair_set.marks), note=f"{len(names)} pairs")
    if not names:
        raise InputError("none of these pairs refers to a picture, which this form is about; choose another --format")
    with write_atomically(folder / "train_pairs.txt") as temporary:
        temporary.write_text("".join(names), encoding="utf-8")


TRYON = foreign.PairFormat(
    description="Layout of VITON-HD, of pairs that refer to a picture: image, cloth, cloth-mask, agnostic-mask (white: "
    "what may change), result and record in train/, and train_pairs.txt.",
    read=_read,
    is_in=lambda folder: bool(_splits(folder)),
    export=_export,
)
