"""A small study from file to page: three methods and doing nothing, two editors, six edits, two seeds.

    restage study benchmarks/small_study.py --out runs/small_study
    restage report runs/small_study --formats page latex slides zip

84 edits of three unseen worlds at 64 pixels: enough to see how studies and reports look, and too little to rank
methods that are close.
"""

from __future__ import annotations

from restage.compare.config import CompareConfig
from restage.edit.methods import Idu, Nothing, ReplaceOnce, Restage
from restage.scenes.config import FitConfig
from restage.studies.scenes import sample_world_scenes
from restage.studies.study import MenuEditor, Study, StudyMethod
from restage.world.config import CaptureConfig

STUDY = Study(
    name="small_study",
    scenes=sample_world_scenes(
        3,
        ("recolour", "ground"),
        seed=21,
        capture=CaptureConfig(num_views=15, held_out_every=5, size=64, num_points=1200),
        fit=FitConfig(steps=500, num_splats=1500),
    ),
    methods={
        "nothing": StudyMethod(settings=Nothing()),
        "replace_once": StudyMethod(settings=ReplaceOnce(num_steps=60)),
        "idu": StudyMethod(settings=Idu(num_steps=80, edit_every=10)),
        "restage": StudyMethod(
            settings=Restage(num_key_views=4, noise_levels=(1.0,), color_steps=30, shape_steps=40),
        ),
    },
    editors={"exact": MenuEditor(name="exact"), "edit_model": MenuEditor(name="edit_model")},
    seeds=(0, 1),
    compare=CompareConfig(orbit_frames=16),
    seed=21,
)
