"""The menu of sub-commands: each builds a function whose arguments tyro turns into flags. Called by `cli.py`.

Whatever is heavy (torch, diffusers) is imported only when a sub-command is built or run. To add a sub-command, write
a function in one of the modules here, a line in this menu, and a line in `SUMMARIES` of `cli.py`.
"""

from collections.abc import Callable

from restage.commands import change, clips, generate, pairs, region, runs, scenes, stages

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Callable[[], Callable[..., None]]] = {
    "demo": lambda: stages.demo,
    "prompts": stages.build_stage("prompts", "restage.prompts.config", pairs.PROMPTS_HELP),
    "rounds": pairs.build_rounds,
    "pairs": pairs.build_pairs,
    "calibrate": pairs.build_calibrate,
    "world": stages.build_stage(
        "world",
        "restage.world.config",
        "Make scenes of the miniature world: captures, and the exact truth of their edits.\n\n"
        "Example: restage world runs/mine --edit-kinds recolour time",
    ),
    "clip": clips.build_clip,
    "train": stages.build_train,
    "train-control": stages.build_train_control,
    "fit": scenes.build_fit,
    "region": region.build_region,
    "edit": lambda: scenes.edit,
    "edits": scenes.build_edits,
    "change": change.build_change,
    "generate": generate.build_generate,
    "export": lambda: scenes.export,
    "import": pairs.build_import,
    "scenes": stages.build_stage(
        "scenes",
        "restage.scenes.config",
        "Fit splats to every capture of the run.\n\nExample: restage scenes runs/mine",
    ),
    "compare": stages.build_stage(
        "compare",
        "restage.compare.config",
        "Score every edit of the run on views that no method saw.\n\nExample: restage compare runs/mine",
    ),
    "study": lambda: stages.study,
    "report": runs.build_report,
    "miniature": stages.build_miniature,
    "view": lambda: scenes.view,
    "serve": scenes.build_serve,
    "diagnose": lambda: stages.diagnose,
    "show": lambda: runs.show,
    "ls": lambda: runs.ls,
    "diff": lambda: runs.diff,
    "rerun": lambda: runs.rerun,
    "track": lambda: runs.track,
    "bundle": lambda: runs.bundle,
    "verify": runs.build_verify,
    "doctor": lambda: runs.doctor,
}
