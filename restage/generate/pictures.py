"""Turns captions into picture files, each of which says what it was made from.

A file that is there and was made from the same is left as it is, so that the same command goes on after a stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float
from PIL import Image, PngImagePlugin
from torch import Tensor

from restage.diffusion.conditions import Conditions
from restage.diffusion.sampling import sample_images
from restage.generate.config import PicturesConfig
from restage.records import InputError, Progress, canonical_json, derive_seed, write_atomically
from restage.run.models import folder_sha256
from restage.scenes.io.images import open_picture, to_uint8
from restage.train.chunks import hash_tensors

if TYPE_CHECKING:
    from restage.diffusion.backbone import Backbone

__all__ = ["PICTURE_SUFFIXES", "generate_pictures", "made_from", "numbered", "picture_paths", "settings_of"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
MADE_FROM = "comment"
"""Text of a picture file that says what it was made from; the name that JPEG has for it."""


class _Wanted(NamedTuple):
    path: Path
    caption: str
    seed: int  # of the noise
    frame: int  # number of its layout
    record: str  # what the picture is made from, as JSON


def picture_paths(out: Path, count: int) -> list[Path]:
    """Name the files of so many pictures: `out` itself for one, else x-000.png and so on; in a folder 000.png."""
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        return [out / f"{number:03d}.png" for number in range(count)]
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number:03d}{out.suffix}") for number in range(count)]


def made_from(path: Path) -> str:
    """Return what a picture file says that it was made from; empty if it says nothing."""
    with open_picture(path) as image:
        found = image.info.get(MADE_FROM, "")
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def numbered(captions: Sequence[str], num: int) -> list[tuple[str, int]]:
    """Return each caption `num` times with the number of its sample; where one stands again, its numbers go on.

    Raises:
        InputError: there is no caption, or one is empty.
    """
    if not captions or not all(caption.strip() for caption in captions):
        raise InputError("expected a caption, such as 'a red cone on grass', and none that is empty")
    orders, seen = [], Counter[str]()
    for caption in captions:
        orders += [(caption, seen[caption] + sample) for sample in range(num)]
        seen[caption] += num
    return orders


def generate_pictures(
    backbone: Backbone,
    captions: Sequence[str],
    config: PicturesConfig,
    *,
    out: Path,
    seed: int = 0,
    layouts: Sequence[Conditions] = (),
) -> Iterator[Progress]:
    """Make `config.num` pictures of each caption; the noise of one depends on its caption, its number and the seed.

    With layouts, the backbone's control branches hold each picture to one; several are frames, which share their noise.

    Raises:
        InputError: a file is there that was made from something else, or a caption is empty or too long.
    """
    made, hashes = settings_of(backbone, config, layouts), [hash_tensors(layout) for layout in layouts]
    frames = range(max(1, len(layouts)))
    orders = [(*order, frame) for order in numbered(captions, config.num) for frame in frames]
    backbone.token_ids(captions)  # one that is too long is refused before anything is made
    wanted = []
    for path, (caption, sample, frame) in zip(picture_paths(out, len(orders)), orders, strict=True):
        noise_seed = derive_seed(seed, caption, sample)
        record = canonical_json(
            {**made, "caption": caption, "seed": noise_seed, **({"layout": hashes[frame]} if layouts else {})}
        )
        if not path.exists():
            wanted.append(_Wanted(path, caption, noise_seed, frame, record))
        elif made_from(path) != record:
            raise InputError(f"{path} is there and was made from something else; choose another --out, or remove it")
    total, done = len(orders), len(orders) - len(wanted)
    for start in range(0, len(wanted), config.batch_size):
        batch = wanted[start : start + config.batch_size]
        images = sample_images(
            backbone.steered([layouts[item.frame] for item in batch]) if layouts else backbone,
            [item.caption for item in batch],
            seeds=[item.seed for item in batch],
            steps=config.steps,
            guidance=config.guidance,
        )
        for item, image in zip(batch, images, strict=True):
            write_picture(item.path, image, item.record)
            done += 1
            yield Progress(stage="pictures", done=done, total=total, note=item.path.name)


def settings_of(backbone: Backbone, config: PicturesConfig, layouts: Sequence[Conditions]) -> dict[str, Any]:
    """Return what everything that is made at once is made from, besides captions, noise and layouts."""
    if backbone.folder is None:
        raise InputError("expected a model that was loaded from a folder")
    made: dict[str, Any] = {"model": folder_sha256(backbone.folder), "steps": config.steps, "guidance": config.guidance}
    if layouts:
        made["branches"] = [[branch.sha256, branch.weight, *branch.window] for branch in backbone.branches]
    return made


def write_picture(path: Path, image: Float[Tensor, "3 h w"], record: str) -> None:
    """Write RGB in [0, 1] as PNG or JPEG, atomically, together with what it was made from."""
    picture = Image.fromarray(to_uint8(image))
    with write_atomically(path) as temporary:
        if path.suffix.lower() == ".png":
            text = PngImagePlugin.PngInfo()
            text.add_text(MADE_FROM, record)
            picture.save(temporary, format="PNG", pnginfo=text)
        else:
            picture.save(temporary, format="JPEG", quality=95, comment=record)
