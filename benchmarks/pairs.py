"""Pair making by batched, fused attention control against the explicit form: one pair per call, all maps in memory.

    python -m benchmarks.pairs                                 # the miniature; about 12 minutes on two quiet cores
    python -m benchmarks.pairs --parts like_for_like control   # some parts of it
    python -m benchmarks.pairs --preset sd15 --device cuda     # Stable Diffusion 1.5's size, random weights, 512 px
    python -m benchmarks.pairs --preset sd15 --size 64 --steps 2 --batch 4   # the same at a size that a CPU can do

The other side is `tests/diffusion/explicit.py`, which tests hold to be equal: hooks, a controller in Python, maps in
float32, those of at most 32 x 32 queries stored. All sides run in one process, in turn, and keep freed memory as
`restage pairs` does. The last line is JSON.

- ratio_like_for_like: pairs per second, ours over explicit: DDIM, equal steps, float32, batches of `--batch` against 1.
  ratio_like_for_like_compiled: the same with ours compiled, as long runs are.
- ratio_accepted: accepted pairs per second: ours at the defaults of `restage pairs` for a run of `COMPILED_FROM` pairs
  against the explicit form at the public ones (float32, DDIM, 50 steps, Prompt-to-Prompt's windows); same rule, prompts
  and guidance. The seconds to compile, once in a process, are apart: compile_s. ratio_accepted_short: for a short run.
- control_cost: how much more a batch of pairs costs than a plain batch of as many pictures; 0 = not at all.
  control_cost_cpu: the same by the CPU time of this process, for a machine that other work shares.
- bytes_per_pair: peak memory above what was there before, per pair of a batch; of the explicit form, of its one.
- share_of_limit: of the time of a UNet call under autocast, the part that its products of matrices would take at this
  machine's measured bfloat16 rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clocks import Times, in_turn, peak_of_child, rounds_of, times
from benchmarks.controls import held_out_edits
from benchmarks.stable_diffusion import random_stable_diffusion
from restage.diffusion.backbone import Backbone, load_backbone
from restage.diffusion.clip import load_clip
from restage.diffusion.config import PROMPT_TO_PROMPT, SamplerConfig
from restage.diffusion.hardware import can_compile, keep_freed_memory
from restage.diffusion.pair_sampler import map_size_of
from restage.diffusion.sampling import latent_shape, sample_latents
from restage.pairs.config import COMPILED_FROM, GenerateConfig
from restage.pairs.generate import PairJob, generate_pairs, make_jobs
from restage.pairs.score import judge, score_pairs
from restage.recipes import RULE
from restage.records import PromptPair
from restage.world.grammar import EDIT_KINDS
from tests.diffusion.explicit import Controller, explicit_steps

ASSETS = Path(__file__).parents[1] / "restage" / "assets"
PUBLIC_STEPS = 50
PARTS = ("like_for_like", "control", "accepted", "memory", "limit", "levers")


def prompts_of(count: int) -> list[PromptPair]:
    """Held-out prompt pairs, kinds of edits in turn."""
    each = -(-count // len(EDIT_KINDS))
    by_kind = [[prompt for _, prompt in held_out_edits(kind, each)] for kind in EDIT_KINDS]
    return [prompt for prompts in zip(*by_kind, strict=True) for prompt in prompts][:count]


def explicit_pair(backbone: Backbone, job: PairJob, *, steps: int, guidance: float) -> tuple[Tensor, Controller]:
    """Latents of source and edit by the explicit form, and its controller with all maps."""
    prompt, shape = job.prompt, latent_shape(backbone)
    controller = Controller(
        backbone.tokenizer,
        prompt.source,
        prompt.target,
        swaps=prompt.swaps,
        words=prompt.words,
        options=PROMPT_TO_PROMPT,
        num_steps=steps,
        map_size=map_size_of(backbone.unet.config, shape[1]),
    )
    *_, latents = explicit_steps(backbone, controller, seed=job.seed, guidance=guidance, shape=shape)
    return latents, controller


class Benchmark:
    """Both sides on the same weights."""

    def __init__(self, backbone: Backbone, arguments: argparse.Namespace) -> None:
        """Prepare prompts and settings."""
        self.fast, self.arguments = backbone, arguments
        self.exact = dataclasses.replace(backbone, has_autocast=False)
        self.config = GenerateConfig(batch_size=arguments.batch)
        if arguments.preset == "sd15":
            self.config = dataclasses.replace(self.config, sampler=SamplerConfig(num_steps=arguments.steps))
        prompts = prompts_of(max(arguments.prompts, 2 * arguments.batch))
        self.jobs = make_jobs(prompts, self.config, samples_per_prompt=1, run_seed=1234)

    def _like(self, steps: int, batch_size: int) -> GenerateConfig:
        """Our side with the explicit side's settings."""
        return GenerateConfig(
            sampler=SamplerConfig(num_steps=steps, solver="ddim"),
            guidance=self.config.guidance,
            control=PROMPT_TO_PROMPT,
            shape_control=None,
            is_removal_reversed=False,
            self_share=(0.4, 0.4),
            batch_size=batch_size,
        )

    def _jobs(self, count: int, config: GenerateConfig) -> list[PairJob]:
        return [dataclasses.replace(job, self_share=config.self_share[0]) for job in self.jobs[:count]]

    def like_for_like(self) -> dict[str, Any]:
        """Pairs per second at the same work, for batches of 1 to 32."""
        steps, batch = self.arguments.steps, self.arguments.batch
        sizes = sorted({1, 4, batch, 2 * batch})
        job, guidance = self.jobs[0], self.config.guidance

        def ours(backbone: Backbone, size: int) -> Callable[[], object]:
            config = self._like(steps, size)
            jobs = self._jobs(size, config)
            return lambda: generate_pairs(backbone, jobs, config)

        def explicit() -> None:
            latents, _ = explicit_pair(self.exact, job, steps=steps, guidance=guidance)
            self.exact.decode_latents(latents)

        works = [explicit, *(ours(self.exact, size) for size in sizes)]
        if can_compile():
            sizes.append(batch)
            works.append(ours(self.exact.compiled(), batch))
            works[-1]()  # compiles
        rounds = rounds_of(works, self.arguments.repeats)
        walls, cpus = (
            [statistics.median(getattr(t, clock) for t in column) for column in zip(*rounds, strict=True)]
            for clock in ("wall", "cpu")
        )
        all_walls, all_cpus = ([t[0] / (own / n) for n, own in zip(sizes, t[1:], strict=True)] for t in (walls, cpus))
        compiled = {}
        if can_compile():
            sizes.pop()
            compiled = {"ratio_like_for_like_compiled": all_walls.pop()}
            compiled["ratio_like_for_like_compiled_cpu"] = all_cpus.pop()
        ratios, ratios_cpu = (dict(zip(sizes, found, strict=True)) for found in (all_walls, all_cpus))
        print("like for like, by batch size:", {size: round(ratio, 2) for size, ratio in ratios.items()}, flush=True)
        return {
            **compiled,
            "ratio_like_for_like": ratios[batch],
            "ratio_like_for_like_by_batch": ratios,
            "ratio_like_for_like_cpu_by_batch": ratios_cpu,
            "explicit_pairs_per_s": 1 / walls[0],
        }

    def control(self) -> dict[str, Any]:
        """What control costs: pairs against as many plain pictures."""
        config = self.config
        jobs = self.jobs[: config.batch_size]
        captions = [job.prompt.source for job in jobs] + [job.prompt.target for job in jobs]

        def plain() -> None:
            *_, last = sample_latents(
                self.fast,
                captions,
                seeds=[job.seed for job in jobs] * 2,
                guidance=torch.full((len(captions),), config.guidance),
                num_steps=config.sampler.num_steps,
            )
            self.fast.decode_latents(last.latents)

        rounds = rounds_of([lambda: generate_pairs(self.fast, jobs, config), plain], 4 * self.arguments.repeats)
        found: dict[str, Any] = {}
        for suffix, clock in (("", "wall"), ("_cpu", "cpu")):
            pairs = [[getattr(both, clock) for both in each] for each in rounds]
            costs = [controlled / free - 1 for controlled, free in pairs]
            print(f"control on and off, {clock} s:", [[round(s, 2) for s in both] for both in pairs], flush=True)
            found[f"control_cost{suffix}"] = statistics.median(costs)
            found[f"control_cost{suffix}_quartiles"] = statistics.quantiles(costs, n=4)[::2]
            found[f"control_cost{suffix}_of_fastest"] = min(p[0] for p in pairs) / min(p[1] for p in pairs) - 1
        return found

    def _accepted(self, pictures: Sequence[tuple[Tensor, Tensor, Tensor]], jobs: Sequence[PairJob]) -> float:
        clip = load_clip(ASSETS / "clip")
        sources, edited, masks = (torch.cat(parts) for parts in zip(*pictures, strict=True))
        scores = score_pairs(clip, [job.prompt for job in jobs], sources=sources, edited=edited, masks=masks)
        return sum(not judge(score, RULE) for score in scores) / len(jobs)

    def _ours(self, config: GenerateConfig, jobs: Sequence[PairJob]) -> dict[str, float]:
        """Acceptance and pairs per second of our side; a first batch is made to warm up."""
        generate_pairs(self.fast, jobs[: config.batch_size], config)
        made, spent = [], []
        for start in range(0, len(jobs), config.batch_size):
            batch = jobs[start : start + config.batch_size]
            spent.append(times(lambda batch=batch: made.append(generate_pairs(self.fast, batch, config)[:3])))
        return {"accepted": self._accepted(made, jobs), **_rates(len(jobs), spent)}

    def _explicit(self, jobs: Sequence[PairJob]) -> dict[str, float]:
        made, spent = [], []

        def make(job: PairJob) -> None:
            latents, controller = explicit_pair(self.exact, job, steps=PUBLIC_STEPS, guidance=self.config.guidance)
            images = self.exact.decode_latents(latents)
            mask = controller.blend_mask((images.shape[2], images.shape[3])).float()
            made.append((images[:1], images[1:], mask[None]))

        for job in jobs:
            spent.append(times(lambda job=job: make(job)))
        return {"accepted": self._accepted(made, jobs), **_rates(len(jobs), spent)}

    def accepted(self) -> dict[str, Any]:
        """Accepted pairs per second, ours at its defaults against the explicit form at the public ones."""
        jobs = self.jobs[: self.arguments.prompts]
        long = self.config.for_run(COMPILED_FROM)
        start = time.perf_counter()
        for count in {min(len(jobs), long.batch_size), len(jobs) % long.batch_size} - {0}:
            generate_pairs(self.fast, jobs[:count], long)  # compiles, once for each size of batch
        compile_s = time.perf_counter() - start
        ours, short, explicit = self._ours(long, jobs), self._ours(self.config, jobs), self._explicit(jobs)
        print(f"as used: ours {ours}, in a short run {short}, explicit {explicit}", flush=True)

        def ratio(side: dict[str, float], rate: str) -> float:
            return side["accepted"] * side[rate] / (explicit["accepted"] * explicit[rate])

        return {
            "ratio_accepted": ratio(ours, "pairs_per_s"),
            "ratio_accepted_cpu": ratio(ours, "pairs_per_cpu_s"),
            "ratio_accepted_short": ratio(short, "pairs_per_s"),
            "ratio_accepted_short_cpu": ratio(short, "pairs_per_cpu_s"),
            "compile_s": compile_s,
            "pairs_per_s": ours["pairs_per_s"],
            "accepted": ours["accepted"],
            "accepted_explicit": explicit["accepted"],
            "ratio_pairs": ours["pairs_per_s"] / explicit["pairs_per_s"],
        }

    def levers(self) -> dict[str, Any]:
        """What each lever alone does to time and acceptance of our side."""
        jobs, base = self.jobs[: self.arguments.prompts], self.config
        sampler = base.sampler

        def with_sampler(**changes: Any) -> GenerateConfig:
            return dataclasses.replace(base, sampler=dataclasses.replace(sampler, **changes))

        found = {"defaults": self._ours(base, jobs)}
        variants = {
            "50 steps of DDIM": with_sampler(num_steps=50, solver="ddim"),
            "18 steps": with_sampler(num_steps=18),
            "10 steps": with_sampler(num_steps=10),
            "Euler ancestral": with_sampler(solver="euler_ancestral"),
            "guidance off in the last fifth": with_sampler(guidance_window=(0.0, 0.8)),
            "pair by pair": dataclasses.replace(base, batch_size=1),
            "compiled": dataclasses.replace(base, is_compiled=True),
        }
        for name, config in variants.items():
            found[name] = self._ours(config, jobs)
            print(f"{name}: {found[name]}", flush=True)
        self.fast, fast = self.exact, self.fast
        found["float32"] = self._ours(base, jobs)
        self.fast = fast
        shared = [
            dataclasses.replace(job, prompt=_from(jobs[i - i % 4], job), seed=jobs[i - i % 4].seed)
            for i, job in enumerate(jobs)
        ]
        found["four edits a source (time only)"] = self._ours(base, shared) | {"accepted": None}
        return {
            "levers": {
                name: {**row, "speed": row["pairs_per_s"] / found["defaults"]["pairs_per_s"]}
                for name, row in found.items()
            }
        }

    def memory(self) -> dict[str, Any]:
        """Peak memory of one call above what was there before."""
        batch = self.arguments.batch
        config = self._like(2, batch)
        works: dict[str, Callable[[], object]] = {
            "ours": lambda: generate_pairs(self.exact, self._jobs(batch, config), config),
            "explicit": lambda: explicit_pair(self.exact, self.jobs[0], steps=2, guidance=self.config.guidance),
        }
        peaks = {}
        for name, work in works.items():
            if self.fast.device.type == "cuda":
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                work()
                peaks[name] = torch.cuda.max_memory_allocated() - before
            else:
                peaks[name] = peak_of_child(work)
        ours, explicit = peaks["ours"] / batch, peaks["explicit"]
        print(f"memory per pair: ours {ours / 2**20:.0f} MiB, explicit {explicit / 2**20:.0f} MiB", flush=True)
        return {"bytes_per_pair": round(ours), "bytes_per_pair_explicit": explicit}

    def limit(self) -> dict[str, Any]:
        """How close a UNet call comes to the rate at which this machine multiplies matrices."""
        device, rows = self.fast.device, 4 * self.config.batch_size
        latents = torch.randn(rows, *latent_shape(self.fast), device=device)
        t = torch.full((rows,), 500, device=device)
        text = self.fast.encode_prompts(["a cube"]).expand(rows)
        with FlopCounterMode(display=False) as counter:
            self.fast.predict_noise(latents, t, text)
        size = 4096
        matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        call, product = in_turn([lambda: self.fast.predict_noise(latents, t, text), lambda: matrix @ matrix], 5)
        rate = 2 * size**3 / product
        print(
            f"bfloat16 products: {rate / 1e9:.0f} GFLOP/s; a pair and step: {1e3 * call / rows * 4:.1f} ms", flush=True
        )
        return {"share_of_limit": counter.get_total_flops() / rate / call, "ms_per_pair_step": 1e3 * call / rows * 4}


def _rates(count: int, spent: Sequence[Times]) -> dict[str, float]:
    """Pairs per second by the clock, and by the CPU."""
    return {
        "pairs_per_s": count / sum(each.wall for each in spent),
        "pairs_per_cpu_s": count / sum(each.cpu for each in spent),
    }


def _from(source: PairJob, job: PairJob) -> PromptPair:
    """The prompt pair of a job with another's source caption: no sensible edit, but the same work."""
    return dataclasses.replace(job.prompt, source=source.prompt.source, swaps=(), words=())


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("miniature", "sd15"), default="miniature")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=None)
    parser.add_argument("--prompts", type=int, default=64, help="of the parts that count accepted pairs")
    parser.add_argument(
        "--steps", type=int, default=6, help="of the parts that compare like with like; of all for sd15"
    )
    parser.add_argument("--batch", type=int, default=16, help="pairs in a call of ours")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="of pictures, for sd15")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.preset == "miniature":
        backbone, parts = load_backbone(ASSETS / "text_to_image", arguments.device), PARTS
    else:
        backbone = random_stable_diffusion(arguments.size, arguments.device)
        parts = ("like_for_like", "control", "memory", "limit")
    benchmark = Benchmark(backbone, arguments)
    result: dict[str, Any] = {
        "preset": arguments.preset,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
    }
    for part in arguments.parts or parts:
        result.update(getattr(benchmark, part)())
    print(json.dumps(_rounded(result)))


if __name__ == "__main__":
    main()
