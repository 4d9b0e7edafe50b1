"""The menu of generators of scenes. To add one, write a frozen dataclass with `run` in a file here, and a line below.

A preset holds a generator's settings for another model than the miniature.
"""

from __future__ import annotations

from restage.generate.generators.blob import Blob
from restage.generate.generators.ism import Ism
from restage.generate.generators.refined import Refined
from restage.generate.generators.sds import Sds
from restage.generate.generators.views import Views
from restage.generate.job import GenerateJob, GenerateStep, Generator
from restage.records import InputError

__all__ = ["GENERATORS", "PRESETS", "Blob", "GenerateJob", "GenerateStep", "Generator", "Ism", "Refined", "Sds"]
__all__ += ["Views", "make_generator"]

GENERATORS: dict[str, type[Generator]] = {"ism": Ism, "refined": Refined, "sds": Sds, "views": Views}

_LARGE = Blob(num_splats=20_000, num_ground=6_000, num_sky=2_000)
PRESETS: dict[str, dict[str, Generator]] = {
    "sd15": {
        "sds": Sds(
            num_steps=10_000,
            guidance=100.0,
            lowest_noise=0.02,
            highest_noise=0.98,
            last_noise=None,
            num_pictures=0,
            other_decay=1.0,
            says_view=True,
            blob=_LARGE,
        ),
        "ism": Ism(
            num_steps=5_000,
            interval=80,
            guidance=7.5,
            lowest_noise=0.02,
            highest_noise=0.5,
            last_noise=None,
            num_pictures=0,
            says_view=True,
            blob=_LARGE,
        ),
    }
}
"""`sd15`: as published with Stable Diffusion 1.5, for a GPU."""


def make_generator(name: str, preset: str = "") -> Generator:
    """Return a generator of the menu with its own settings, or with those of a preset."""
    if name not in GENERATORS:
        raise InputError(f"unknown generator {name!r}; choose from {', '.join(GENERATORS)}")
    if not preset:
        return GENERATORS[name]()
    if name not in PRESETS.get(preset, {}):
        known = ", ".join(f"{other} for {' and '.join(menu)}" for other, menu in PRESETS.items())
        raise InputError(f"there is no preset {preset!r} of {name}; expected one of: {known}")
    return PRESETS[preset][name]
