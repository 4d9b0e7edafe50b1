"""The pages whose shell blocks are run, and what a reader of each has at hand before its first command."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PAGES", "REPOSITORY"]

REPOSITORY = Path(__file__).parents[2]

TUTORIALS = {
    "capture": ("photographs",),
    "clip": ("walk.mp4",),
    "compare": ("runs/other",),
    "paper": ("runs/why",),
    "region": ("runs/bear",),
    "served": ("runs/mine",),
    "servers": (),
    "train": (),
    "words": (),
}
GUIDES = {
    "compare": ("benchmarks/truth_study.py", "runs/a", "runs/b"),
    "control": ("captions.txt", "depth.npy", "ids.png", "runs/mine"),
    "diagnose": (),
    "direct": ("runs/mine",),
    "editors": ("runs/mine",),
    "install": (),
    "miniature": (),
    "nerfstudio": (),
    "pairs": (),
    "records": ("runs/tower",),
    "reference": ("runs/mine", "photo.png", "subject.png"),
    "regions": ("bear-run",),
    "report": ("benchmarks/small_study.py", "paper.toml", "runs/before", "runs/after"),
    "scenes": ("path/to/capture", "runs/demo"),
    "video": ("film.mp4", "walk.mp4", "runs/mine"),
}
OF_README = ("path/to/bear", "blue.png", "film.mp4", "benchmarks/truth_study.py", "runs/a", "runs/b")
PAGES: dict[Path, tuple[str, ...]] = {
    REPOSITORY / "README.md": OF_README,
    **{REPOSITORY / "docs" / "tutorials" / f"{name}.md": given for name, given in TUTORIALS.items()},
    **{REPOSITORY / "docs" / f"{name}.md": given for name, given in GUIDES.items()},
}
