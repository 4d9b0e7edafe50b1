import shutil
from pathlib import Path

from restage.diffusion.backbone import load_backbone, save_backbone
from tests.train.tiny import tiny_backbone


def test_what_is_saved_does_not_depend_on_where_the_model_was_loaded_from(tmp_path: Path) -> None:
    save_backbone(tiny_backbone(), tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for name in ("here", "there"):
        save_backbone(load_backbone(tmp_path / name), tmp_path / f"from {name}")
    files = [path.relative_to(tmp_path / "from here") for path in (tmp_path / "from here").rglob("*") if path.is_file()]
    assert Path("unet/config.json") in files
    for file in files:
        assert (tmp_path / "from here" / file).read_bytes() == (tmp_path / "from there" / file).read_bytes(), file
