"""Layouts and masks of data sets as others give them out: what is read must be what was meant."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from restage.pairs.exchange.export import export_pairs
from restage.pairs.store import read_pairs, read_rows
from restage.records import InputError
from tests.pairs.faulty import verify_pairs
from tests.pairs.test_foreign import bring_in, picture, write

SIDE = 16
REGION = np.zeros((SIDE, SIDE), bool)
REGION[4:9, 3:12] = True


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def masked_pair(number: int, mask: bytes, **columns) -> dict:
    """A row whose pictures differ in `REGION` alone."""
    rng = np.random.default_rng(number)
    source = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    edited = source.copy()
    edited[REGION] = 255 - edited[REGION]
    pictures = {"source_img": source, "mask_img": None, "target_img": edited}
    row = {name: {"bytes": mask if array is None else png(array), "path": None} for name, array in pictures.items()}
    return {"img_id": str(number), "turn_index": 1, **row, "instruction": f"change it {number}", **columns}


def levels(inside: int, outside: int) -> np.ndarray:
    return np.where(REGION, inside, outside).astype(np.uint8)


def hole(number: int, *, is_hole_edited: bool = True) -> bytes:
    rgb = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    alpha = levels(0, 255) if is_hole_edited else levels(255, 0)
    return png(np.dstack([rgb, alpha]))


MASKS = {
    "transparent": lambda number: hole(number),
    "opaque": lambda number: hole(number, is_hole_edited=False),
    "white": lambda number: png(levels(255, 0)),
    "black": lambda number: png(levels(0, 255)),
    "white, labels 0 and 1": lambda number: png(levels(1, 0)),
    "white, in blue": lambda number: png(np.dstack([levels(0, 0), levels(0, 0), levels(255, 0)])),
    "black, one bit": lambda number: png(levels(0, 255), "1"),
    "white, opaque RGBA": lambda number: png(levels(255, 0), "RGBA"),
    "white, 16 bits": lambda number: png(levels(255, 0).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_a_mask_means_is_recognized(tmp_path, name):
    data = write(tmp_path / "data", [masked_pair(number, MASKS[name](number)) for number in range(3)])
    folder, note = bring_in(data, tmp_path / "run")
    assert f"the edited region of masks is {name.partition(',')[0]}" in note
    for pair in read_pairs(folder):
        assert np.array_equal(pair.mask.numpy() > 0.5, REGION)
    assert [row["mask_share"] for row in read_rows(folder)] == [pytest.approx(REGION.mean())] * 3


@pytest.mark.parametrize(("named", "mask"), [("black", levels(0, 255)), ("white", levels(255, 0))])
def test_what_the_user_says_of_masks_holds_against_the_pictures(tmp_path, named, mask):
    rows = [masked_pair(number, png(255 - mask)) for number in range(2)]
    folder, _ = bring_in(write(tmp_path / "data", rows), tmp_path / "run", mask_is=named)
    assert all(np.array_equal(pair.mask.numpy() > 0.5, ~REGION) for pair in read_pairs(folder))


def test_masks_that_do_not_show_what_they_mean_have_to_be_named(tmp_path):
    rows = []
    for number in range(2):  # pictures that differ everywhere alike
        images = {
            name: {"bytes": picture(2 * number + side, (SIDE, SIDE)), "path": None}
            for side, name in enumerate(("source_img", "target_img"))
        }
        rows.append(masked_pair(number, png(levels(255, 0)), **images))
    data = write(tmp_path / "data", rows)
    with pytest.raises(InputError, match="--mask-is"):
        bring_in(data, tmp_path / "run")
    assert not (tmp_path / "run" / "pairs").exists()
    folder, _ = bring_in(data, tmp_path / "named", mask_is="white")
    assert len(list(read_pairs(folder))) == 2


@pytest.mark.parametrize(("value", "what"), [(0, "nothing"), (255, "everything")])
def test_masks_that_cover_nothing_or_everything_in_all_pairs_are_refused(tmp_path, value, what):
    data = write(tmp_path / "data", [masked_pair(number, png(levels(value, value))) for number in range(3)])
    with pytest.raises(InputError, match=f"the masks cover {what} in all 3 pairs"):
        bring_in(data, tmp_path / "run")
    assert not (tmp_path / "run" / "pairs").exists()
    folder, _ = bring_in(data, tmp_path / "without", mask_is="none")
    assert all(pair.mask.min() == 1 for pair in read_pairs(folder))


def test_one_mask_that_covers_everything_is_no_reason_to_refuse_the_set(tmp_path):
    masks = [png(levels(255, 255)), png(levels(255, 0))]
    rows = [masked_pair(number, mask) for number, mask in enumerate(masks)]
    folder, _ = bring_in(write(tmp_path / "data", rows), tmp_path / "run")
    assert [pair.mask.mean().item() for pair in read_pairs(folder)] == [1.0, pytest.approx(REGION.mean())]


@pytest.mark.parametrize(
    "columns",
    [("input_image", "edit_prompt", "edited_image"), ("Left", "text", "Right"), ("image", "prompt", "target")],
)
def test_three_columns_without_captions_are_taken(tmp_path, columns):
    before, text, after = columns
    rows = [
        {before: {"bytes": picture(2 * n), "path": None}, text: f"do {n}", after: {"bytes": picture(2 * n + 1)}}
        for n in range(3)
    ]
    folder, note = bring_in(write(tmp_path / "data", rows), tmp_path / "run", format="hf")
    pairs = list(read_pairs(folder))
    assert [pair.prompt.instruction for pair in pairs] == ["do 0", "do 1", "do 2"]
    assert all(pair.prompt.source == pair.prompt.target == "" for pair in pairs)
    expected = np.asarray(Image.open(io.BytesIO(picture(2))))
    assert np.array_equal((pairs[1].source * 255).round().permute(1, 2, 0).byte().numpy(), expected)
    assert ("'Left' was taken as the source" in note) == (before == "Left")
    assert verify_pairs(folder) == ()
    list(export_pairs(str(tmp_path / "run"), tmp_path / "out", "hf"))
    again, _ = bring_in(tmp_path / "out", tmp_path / "again")
    assert [pair.prompt for pair in read_pairs(again)] == [pair.prompt for pair in pairs]


def test_captions_in_columns_called_input_and_output_are_told_from_pictures(tmp_path):
    row = {
        "input": "a cat",
        "input_image": {"bytes": picture(0)},
        "edit": "make it a dog",
        "inverse_edit": "a cat again",
        "output": "a dog",
        "output_image": {"bytes": picture(1)},
    }
    folder, _ = bring_in(write(tmp_path / "data", [row]), tmp_path / "run")
    (pair,) = read_pairs(folder)
    assert (pair.prompt.source, pair.prompt.target, pair.prompt.undo) == ("a cat", "a dog", "a cat again")


def image_folder(folder: Path, mark: str = "") -> Path:
    rows = []
    for number in range(3):
        for side, name in enumerate(("before", "after")):
            (folder / "train" / name).mkdir(parents=True, exist_ok=True)
            (folder / "train" / name / f"{number}.v1.png").write_bytes(picture(2 * number + side))
        files = {"file_name": f"before/{number}.v1.png", "edited_file_name": f"after/{number}.v1.png"}
        rows.append({**files, "edit_prompt": f"do {number}"})
    text = mark + "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["auto", "imagefolder"])
def test_image_folders_with_metadata_are_taken(tmp_path, form, mark):
    folder, note = bring_in(image_folder(tmp_path / "data", mark), tmp_path / "run", format=form)
    pairs = list(read_pairs(folder))
    assert [pair.prompt.instruction for pair in pairs] == ["do 0", "do 1", "do 2"] and note == "3 of 3 pairs taken"
    expected = np.asarray(Image.open(io.BytesIO(picture(5))))
    assert np.array_equal((pairs[2].edited * 255).round().permute(1, 2, 0).byte().numpy(), expected)


def test_metadata_as_csv_is_taken(tmp_path):
    data = image_folder(tmp_path / "data") / "train"
    (data / "metadata.jsonl").unlink()
    (data / "metadata.csv").write_text("input_path,text,output_path\nbefore/1.v1.png,do it,after/1.v1.png\n")
    folder, _ = bring_in(tmp_path / "data", tmp_path / "run")
    assert [row["instruction"] for row in read_rows(folder)] == ["do it"]


def test_metadata_that_names_files_outside_reads_none(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(7))
    data = image_folder(tmp_path / "data")
    (data / "train" / "link.png").symlink_to(tmp_path / "secret.png")
    names = ("../../secret.png", str(tmp_path / "secret.png"), "link.png", "a" * 5000 + ".png", "a\0.png")
    rows = [{"file_name": name, "edited_file_name": "after/1.v1.png", "edit_prompt": "do it"} for name in names]
    with (data / "train" / "metadata.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    folder, _ = bring_in(data, tmp_path / "run")
    assert [row["reason"] for row in read_rows(folder)] == [""] * 3 + ["the source picture is missing"] * len(names)


def test_the_folder_of_magic_brush_is_taken(tmp_path):
    data = tmp_path / "dev"
    turns = []
    for number in range(2):
        row = masked_pair(number, hole(number))
        place = data / "images" / str(number)
        place.mkdir(parents=True)
        for name, column in (("input", "source_img"), ("mask1", "mask_img"), ("output1", "target_img")):
            (place / f"{number}-{name}.png").write_bytes(row[column]["bytes"])
        turns.append(
            {name: f"{number}-{name}{'' if name == 'input' else 1}.png" for name in ("input", "mask", "output")}
        )
        turns[-1]["instruction"] = f"do {number}"
    (data / "edit_turns.json").write_text(json.dumps(turns))
    captions = {"0": {"0-input.png": "a cat", "0-output1.png": "a dog"}}
    (data / "global_descriptions.json").write_text(json.dumps(captions))
    folder, _ = bring_in(tmp_path, tmp_path / "run")
    pairs = list(read_pairs(folder))
    assert [pair.prompt.source for pair in pairs] == ["a cat", ""] and pairs[0].prompt.target == "a dog"
    assert all(np.array_equal(pair.mask.numpy() > 0.5, REGION) for pair in pairs)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("stem", ["train.v1/photo no. {} (1.0)", "{}", "a.b/{}.v2"])
@pytest.mark.parametrize("texts", [{"json": b'{"edit": "do it"}'}, {"edit.txt": b"do it"}, {"txt": b"do it\n"}])
def test_names_with_dots_keep_their_samples_apart(tmp_path, stem, texts):
    files = {}
    for number in range(3):
        parts = {"source.png": picture(2 * number), "edited.png": picture(2 * number + 1), **texts}
        files |= {f"{stem.format(number)}.{ending}": content for ending, content in parts.items()}
    write_tar(tmp_path / "shard-000000.tar", files)
    folder, note = bring_in(tmp_path, tmp_path / "run")
    assert note.startswith("3 of 3 pairs taken")
    assert [row["instruction"] for row in read_rows(folder)] == ["do it"] * 3


def test_a_folder_that_looks_like_nothing_known_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"expected parquet files, tars, seeds.json .* or metadata.jsonl"):
        bring_in(tmp_path / "data", tmp_path / "run")


def test_string_columns_with_large_offsets_are_texts(tmp_path):
    table = pa.table(
        {
            "input_image": pa.array([picture(0)], pa.large_binary()),
            "edit": pa.array(["do it"], pa.large_string()),
            "output_image": pa.array([picture(1)], pa.binary()),
        }
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    folder, _ = bring_in(tmp_path / "data", tmp_path / "run")
    assert [row["instruction"] for row in read_rows(folder)] == ["do it"]
