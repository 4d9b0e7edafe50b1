"""What is put into the commands of the documentation so that they take seconds, and which are not run, and why."""

from __future__ import annotations

__all__ = ["NOT_RUN", "PORT", "SMALL", "SUBSTITUTES"]

PORT = "{port}"

SMALL = {
    r"^clip (?!.*(--film|--run))": "--size 32 --num-frames 3",
    r"^clip .*--film": "--size 32 --length-s 0.6 --start-s 0",
    r"^clip .*--run": "--size 32 --num-frames 3",
    r"^diagnose": "--cases 1 --time-budget 1",
    r"^edit .*\.mp4": "--size 32",
    r"^edit .*--editor endpoint": "--picture-size own --min-views 1",
    r"^edits": "--methods nothing replace_once --editors exact",
    r"^fit (?!.*--splats)": "--size 32 --steps 20 --num-splats 300",
    r"^generate (?!.*(\.(png|mp4)|--like))": "--generator sds --scene-steps 2",
    r"^generate .*(--like|\.mp4)": "--steps 2",
    r"^generate .*\.png": "--steps 2 --num 1",
    r"^pairs": "--generate.sampler.num-steps 2 --workers 1 --rule.min-change 0 --rule.min-mask-share 0 "
    "--rule.min-image-similarity -2 --rule.min-direction-similarity -2 --rule.min-text-similarity -2",
    r"^prompts": "--num-prompts 4",
    r"^report": "--max-px 64 --max-views 1 --max-edits 2",
    r"^scenes": "--fit.steps 20 --fit.num-splats 300",
    r"^serve": "--device cpu --host 127.0.0.1",
    r"^train ": "--training.num-steps 2 --training.batch-size 2 --training.num-warmup-steps 1",
    r"^compare": "--orbit-frames 3",
    r"^train-control": "--training.num-steps 2 --training.batch-size 2",
    r"^verify runs/(mine|model|try)": "--fast",  # pictures of two steps are none that a check of pictures passes
    r"^world": "--num-scenes 1 --capture.num-views 6 --capture.held-out-every 3 --capture.size 64 "
    "--capture.num-points 300",
}
"""Words that are added to commands, by a pattern of the commands that they belong to; the last of an option counts."""

SUBSTITUTES = {
    # What the extra `segment` finds on photographs, here what lies in the middle of a view.
    r'(region \S+) "the bear"': r"\1 --box 0 0.3 0.3 0.7 0.7 --name bear",
    r"(127\.0\.0\.1|\bgpu|\bgpu-machine):8000": f"127.0.0.1:{PORT}",
    r"--device cuda": "--device cpu",
    r"path/to/dataset": "mine_pairs",
}
"""What stands on a page, and what is put in its place."""

NOT_RUN = {
    r"^(pip|uv|git|hf|docker) ": "asks the network",
    r"^cd restage": "follows what asks the network",
    r"^make ": "makes an environment of its own; what it then starts is run here",
    r"^ray ": "starts a cluster of several machines",
    r"/ns-train|nerfstudio|^restage fit edited/": "needs the environment of nerfstudio; make test-nerfstudio",
    r"--engine ray|/shared/": "needs several machines; tests/test_ray.py has local nodes",
    r"^restage miniature": "trains for hours; tests/miniature has small models",
    r"^python -m benchmarks": "takes hours",
    r"^restage diagnose": "makes trials for many minutes; tests/diagnose has stand-ins",
    r"--model (FOLDER|NAME|models/)|--editor (pipeline|try_on)": "needs somebody's model; tests/edit has tiny ones",
    r"panda|host\.example|--price-per|boxes\.json": "asks somebody's server; tests/edit/endpoint has its own",
    r"training/miniature": "needs what `restage miniature train` makes in hours",
    r"--backbone|--depth-model|controlnet": "needs models that do not come with the package",
}
"""Commands that are not run, by a pattern, and why."""
