"""Pairs of different kinds and options, for the tests that compare control with its explicit twin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from restage.diffusion.config import INSTRUCT_PIX2PIX, MASACTRL, PROMPT_TO_PROMPT, ControlOptions, LocalBlend
from restage.diffusion.control import PairControl
from restage.diffusion.control_options import build_control
from tests.diffusion.explicit import Controller
from tests.diffusion.tiny import tiny_tokenizer

# Random maps are nearly flat: a high threshold cuts them into something.
BLEND = LocalBlend(threshold=0.95, kept_threshold=0.97)


@dataclass(frozen=True)
class Case:
    source: str
    target: str
    options: ControlOptions
    swaps: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()
    kept_words: tuple[str, ...] = ()
    seed: int = field(default=11)

    @property
    def cuts_maps(self) -> bool:
        """Whether word maps are cut at a threshold on the way, so that the last bits of one can change the result."""
        return bool(self.words or self.kept_words) and (
            self.options.blend.start < 1 or self.options.region_threshold > 0
        )

    def _texts(self) -> dict[str, Any]:
        return {"swaps": self.swaps, "words": self.words, "kept_words": self.kept_words, "options": self.options}

    def control(self) -> PairControl:
        return build_control(tiny_tokenizer(), self.source, self.target, **self._texts())[1]

    def controller(self, num_steps: int, map_size: int = 16, tokenizer: Any = None) -> Controller:
        tokenizer = tokenizer or tiny_tokenizer()
        texts = self._texts()
        return Controller(tokenizer, self.source, self.target, **texts, num_steps=num_steps, map_size=map_size)


BALL = ("a red ball on sand", "a blue zebra on sand")
BALL_SWAPS = (("red", "blue"), ("ball", "zebra"))
GRASS = ("a cube on the grass", "a big cube on the grass at night")

CASES = {
    "replace": Case(*BALL, ControlOptions(blend=BLEND), BALL_SWAPS, ("ball", "zebra")),
    "replace, Prompt-to-Prompt": Case(*BALL, PROMPT_TO_PROMPT, BALL_SWAPS),
    "refine": Case(*GRASS, ControlOptions(blend=BLEND, cross_window=(0.2, 0.6)), (), ("cube",)),
    "reweight": Case(
        "a red cone at noon",
        "a red cone at noon",
        ControlOptions(word_strengths={"red": 3.0, "noon": -1.0}, cross_window=(0.0, 1.0)),
    ),
    "replace and reweight": Case(
        *BALL, ControlOptions(word_strengths={"zebra": 2.0}, word_windows={"blue": (0.4, 1.0)}), BALL_SWAPS
    ),
    "refine and reweight": Case(*GRASS, ControlOptions(word_strengths={"night": 2.0, "cube": 0.5})),
    "words that are kept": Case(*GRASS, ControlOptions(blend=BLEND), (), ("cube", "big"), ("grass",)),
    "InstructPix2Pix": Case("a red cone at noon", "two blue cubes", INSTRUCT_PIX2PIX),
    "small layers, conditional half": Case(
        *BALL, ControlOptions(self_max_size=8, self_unconditional=False, cross_window=(0.0, 0.4)), BALL_SWAPS
    ),
    "MasaCtrl": Case(*GRASS, MASACTRL),
    "MasaCtrl by region": Case(
        *GRASS,
        ControlOptions(
            cross_window=(0.0, 0.0), self_attention="mutual", self_window=(0.1, 1.0), region_threshold=0.5, blend=BLEND
        ),
        (),
        ("cube",),
    ),
    "no self attention": Case(*BALL, ControlOptions(self_attention="none"), BALL_SWAPS),
    "nothing": Case(*BALL, ControlOptions(self_attention="none", cross_window=(0.0, 0.0))),
}
