"""The prompts stage: fills `<run>/prompts/prompts.jsonl` from a writer, or from a file of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from restage.prompts import WRITERS
from restage.prompts.store import read_prompts, write_prompts
from restage.records import InputError, Progress, PromptPair, RunFolder, derive_seed
from restage.world.grammar import EDIT_KINDS

__all__ = ["PromptsConfig", "run_prompts"]

MAX_DRAWS_PER_PAIR = 200
"""After this many repeats in a row, a writer is taken to have no new pair of a kind."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Which prompt pairs a run works with."""

    num_prompts: int = 120
    """How many pairs to write; those of the kinds differ by at most one."""
    writer: str = "grammar"
    """Who writes them: a name of the menu `WRITERS`."""
    kinds: tuple[str, ...] = EDIT_KINDS
    """Kinds of edit to write, in turn."""
    path: Path | None = None
    """Take the pairs from this JSON Lines file instead; all of the above is then unused."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise InputError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.writer not in WRITERS:
            raise InputError(f"unknown writer {self.writer!r}; known: {', '.join(WRITERS)}")
        if unknown := [kind for kind in self.kinds if kind not in EDIT_KINDS] or ([] if self.kinds else ["(none)"]):
            raise InputError(f"unknown kind of edit {unknown[0]!r}; known: {', '.join(EDIT_KINDS)}")


def _key(pair: PromptPair) -> tuple[str, ...]:
    return tuple(" ".join(text.casefold().split()) for text in (pair.source, pair.target, pair.instruction))


def write_pairs(config: PromptsConfig, seed: int) -> Iterator[PromptPair]:
    """Write the pairs of a config, kinds in turn; texts that differ in case or spaces alone are repeats.

    Raises:
        InputError: the writer has no more new pairs of a kind.
    """
    write = WRITERS[config.writer]
    known: set[tuple[str, ...]] = set()
    for index in range(config.num_prompts):
        kind = config.kinds[index % len(config.kinds)]
        for draw in range(MAX_DRAWS_PER_PAIR):
            pair = write(kind, derive_seed(seed, "prompt", config.writer, index, draw))
            if _key(pair) not in known:
                break
        else:
            raise InputError(f"writer {config.writer!r} has no new pair of kind {kind!r} after {index}; ask for fewer")
        known.add(_key(pair))
        yield pair


def run_prompts(run: RunFolder, config: PromptsConfig) -> Iterator[Progress]:
    """Write the prompt pairs of a run; the same run seed and config give the same file.

    Raises:
        InputError: the stage was finished with another config, or the user's file cannot be used.
    """
    if run.is_done("prompts", config):
        yield Progress(stage="prompts", done=1, total=1, note="already done")
        return
    if config.path is not None:
        pairs = list(read_prompts(config.path))
    else:
        pairs = []
        for pair in write_pairs(config, run.seed):
            pairs.append(pair)
            if len(pairs) % 20 == 0:
                yield Progress(stage="prompts", done=len(pairs), total=config.num_prompts, note=pair.instruction)
    write_prompts(run.folder("prompts") / "prompts.jsonl", pairs)
    counts = {kind: sum(pair.kind == kind for pair in pairs) for kind in dict.fromkeys(pair.kind for pair in pairs)}
    run.mark_done("prompts", config, num_prompts=len(pairs), by_kind=counts)
    yield Progress(stage="prompts", done=len(pairs), total=len(pairs), note=f"{len(pairs)} prompt pairs")
