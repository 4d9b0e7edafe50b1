"""Pictures that requests refer to are kept by their content, and read as they are shown."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from restage.records import EditCase, EditRequest, InputError, Reference, read_json, to_plain, write_json
from restage.scenes.references import GivenPicture, read_references


def picture(width: int = 6, height: int = 4, kind: str = "PNG", **how) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def mask(width: int = 6, height: int = 4) -> bytes:
    buffer = io.BytesIO()
    row = np.array([255] * (width // 2) + [0] * (width - width // 2), np.uint8)
    Image.fromarray(np.tile(row, (height, 1))).save(buffer, "PNG")
    return buffer.getvalue()


def request(*references: Reference) -> EditRequest:
    return EditRequest(instruction="as the picture", source_caption="", target_caption="", references=references)


def test_a_picture_is_kept_by_its_content_and_read_again(tmp_path: Path) -> None:
    given = GivenPicture(picture(), mask())
    kept = given.keep(tmp_path)
    assert kept == given.reference == given.keep(tmp_path)
    assert kept.picture == f"{hashlib.sha256(picture()).hexdigest()}.png"
    assert sorted(path.name for path in (tmp_path / "references").iterdir()) == sorted([kept.picture, kept.mask])
    (shown,) = read_references(tmp_path, request(kept))
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(picture())))).permute(2, 0, 1) / 255
    assert torch.allclose(shown.picture, expected, atol=1e-6)
    assert shown.mask is not None and shown.mask[:, :3].min() == 1 and shown.mask[:, 3:].max() == 0


def test_a_photograph_is_turned_as_its_camera_says_and_its_mask_fits_either_way(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter clockwise
    stored = picture(kind="JPEG", exif=exif)
    (as_stored,) = read_references(tmp_path, request(GivenPicture(stored, mask()).keep(tmp_path)))
    assert as_stored.picture.shape == (3, 6, 4) and as_stored.mask is not None
    assert as_stored.mask[:3].min() == 1 and as_stored.mask[3:].max() == 0  # what was left is on top now


def test_ids_of_requests_without_references_are_what_they_were(tmp_path: Path) -> None:
    plain = to_plain(request())
    assert set(plain) == {"instruction", "source_caption", "target_caption"}
    ids = [
        EditCase(scene="s", kind="free", request=request(*references), has_truth=False).id
        for references in ((), (Reference(picture="a.png"),), (Reference(picture="b.png"),))
    ]
    assert len(set(ids)) == 3
    assert ids[0] == "edit-89bb41c779192e07"
    write_json(tmp_path / "request.json", request(Reference(picture="a.png", mask="m.png")))
    assert read_json(tmp_path / "request.json", EditRequest) == request(Reference(picture="a.png", mask="m.png"))


def test_what_is_no_picture_or_no_longer_the_same_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not readable as an image"):
        GivenPicture(b"no picture").keep(tmp_path)
    with pytest.raises(InputError, match="the mask of the reference has 8x4 pixels, expected 6x4"):
        GivenPicture(picture(), mask(8)).keep(tmp_path)
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(InputError, match="expected a mask for each of 1 references, or none, got 2"):
        GivenPicture.read_all([tmp_path / "a.png"], [tmp_path / "a.png"] * 2)
    kept = GivenPicture.read_all([tmp_path / "a.png"])[0].keep(tmp_path)
    (tmp_path / "references" / kept.picture).write_bytes(picture(8))
    with pytest.raises(InputError, match="its content does not fit its name"):
        read_references(tmp_path, request(kept))
    with pytest.raises(InputError, match="expected a path inside"):
        read_references(tmp_path, request(Reference(picture="../a.png")))
    (tmp_path / "references" / kept.picture).unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_references(tmp_path, request(kept))


def test_a_mask_of_a_photograph_as_it_is_shown_is_taken(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(kind="JPEG", exif=exif)
    (shown,) = read_references(tmp_path, request(GivenPicture(stored, mask(4, 6)).keep(tmp_path)))
    assert shown.mask is not None and shown.picture.shape == (3, 6, 4)
    assert shown.mask[:, :2].min() == 1 and shown.mask[:, 2:].max() == 0
    with pytest.raises(InputError, match="the mask of the reference has 4x6 pixels, expected 6x4"):
        GivenPicture(picture(), mask(4, 6)).keep(tmp_path)


def test_a_thing_that_was_cut_out_is_its_own_mask(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 4), 255, np.uint8)
    pixels[:, 3:, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    given = GivenPicture(buffer.getvalue())
    (shown,) = read_references(tmp_path, request(given.keep(tmp_path)))
    assert shown.mask is not None and shown.mask[:, :3].min() == 1 and shown.mask[:, 3:].max() == 0
    (masked,) = read_references(tmp_path, request(GivenPicture(buffer.getvalue(), mask()).keep(tmp_path)))
    assert masked.mask is not None and torch.equal(masked.mask, shown.mask)
    pixels[..., 3] = 255
    (tmp_path / "opaque.png").write_bytes(b"")
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    (opaque,) = GivenPicture.read_all([tmp_path / "opaque.png"])
    assert read_references(tmp_path, request(opaque.keep(tmp_path)))[0].mask is None
