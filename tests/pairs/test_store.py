import io
import tarfile

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from restage.pairs.store import ImagePair, done_shards, read_pairs, read_rows, write_manifest, write_shard
from restage.records import InputError
from tests.pairs.tiny import PROMPTS


def make_pair(index=0):
    generator = torch.Generator().manual_seed(index)
    source, edited = (torch.randint(256, (2, 3, 12, 10), generator=generator) / 255).unbind()
    mask = (torch.rand(12, 10, generator=generator) > 0.5).float()
    prompt = PROMPTS[index]
    return ImagePair(
        id=f"pair-{index:016x}", source=source, edited=edited, mask=mask, prompt=prompt, facts={"seed": index}
    )


def write(folder, index=0):
    pair = make_pair(index)
    rows = [{"id": pair.id, "accepted": True, "preview": b"x"}, {"id": "pair-no", "accepted": False, "preview": b"y"}]
    write_shard(folder, index, pairs=[pair], rows=rows, facts={"content": "c"})


def test_pairs_are_read_back_without_loss(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 0)
    for index, found in enumerate(read_pairs(tmp_path)):
        pair = make_pair(index)
        assert (found.id, found.prompt, found.facts) == (pair.id, pair.prompt, {"seed": index})
        for name in ("source", "edited", "mask"):
            assert torch.equal(getattr(found, name), getattr(pair, name))


def test_equal_pairs_give_equal_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name)
    for file in ("shard-00000.tar", "shard-00000.parquet", "shard-00000.done"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_members_of_a_pair_stand_together_under_its_key(tmp_path):
    write(tmp_path)
    with tarfile.open(tmp_path / "shard-00000.tar") as tar:
        members = tar.getmembers()
        mask = Image.open(io.BytesIO(tar.extractfile(members[2]).read()))  # pyright: ignore[reportOptionalMemberAccess]
    assert [member.name.split(".", 1) for member in members] == [
        [make_pair().id, name] for name in ("source.png", "edited.png", "mask.png", "json")
    ]
    assert mask.mode == "1" and {member.mtime for member in members} == {0}


def test_a_shard_without_its_mark_does_not_count(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 1)
    (tmp_path / "shard-00001.done").unlink()
    assert list(done_shards(tmp_path)) == [0] and len(list(read_pairs(tmp_path))) == 1


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_shard_that_was_changed_is_refused(tmp_path, damage):
    write(tmp_path)
    damage(tmp_path / "shard-00000.tar")
    with pytest.raises(InputError, match="shard-00000.tar"):
        list(read_pairs(tmp_path))


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finished shard"):
        next(read_pairs(tmp_path))


def test_manifest_is_rebuilt_from_the_sidecars(tmp_path):
    for index in (0, 1):
        write(tmp_path, index)
    assert write_manifest(tmp_path, tmp_path / "manifest.parquet") == 4
    table = pq.ParquetFile(tmp_path / "manifest.parquet").read()
    assert table.column_names == ["id", "accepted", "pixel_sha256", "bytes_sha256"]
    assert table.column("id").to_pylist() == [row["id"] for row in read_rows(tmp_path)]


def test_a_shard_without_accepted_pairs_is_a_shard(tmp_path):
    write(tmp_path, 1)
    write_shard(tmp_path, 0, pairs=[], rows=[{"id": "pair-no", "accepted": False, "preview": b""}], facts={})
    assert [pair.id for pair in read_pairs(tmp_path)] == [make_pair(1).id]


def test_a_column_that_has_no_value_in_one_shard_takes_its_type_from_the_others(tmp_path):
    for index, seed in enumerate((None, 7)):
        row = {"id": f"pair-{index:016x}", "accepted": False, "seed": seed}
        write_shard(tmp_path, index, pairs=[], rows=[row], facts={})
    assert write_manifest(tmp_path, tmp_path / "manifest.parquet") == 2
    assert pq.read_table(tmp_path / "manifest.parquet")["seed"].to_pylist() == [None, 7]


def test_shards_whose_columns_contradict_each_other_are_refused(tmp_path):
    for index, note in enumerate(("x", [1])):
        row = {"id": f"pair-{index:016x}", "accepted": False, "note": note}
        write_shard(tmp_path, index, pairs=[], rows=[row], facts={})
    with pytest.raises(InputError, match="holds shards of different columns"):
        write_manifest(tmp_path, tmp_path / "manifest.parquet")
