"""The one training loop: AdamW, EMA, exact resume; and its losses as a picture.

A step's batch and noise come from (seed, step) alone, so a run that was killed ends with the weights of one that was
not (same machine and thread count). Called by the recipes of the miniature and by the `train` stage.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from jaxtyping import Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from restage.diffusion.config import TrainingConfig
from restage.diffusion.hardware import bfloat16_autocast
from restage.records import InputError, content_id, derive_seed, parse_json, write_atomically
from restage.run.profile import timed
from restage.run.threads import compute_parts, small_tensors

__all__ = ["LossFunction", "LossParts", "TrainingStep", "draw_losses", "explicit_attention", "read_metrics"]
__all__ += ["running_mean", "train"]

STATE_NAME, METRICS_NAME = "state.pt", "metrics.jsonl"


class TrainingStep(NamedTuple):
    """What one step did."""

    step: int  # steps done, this one included
    num_steps: int
    losses: dict[str, float]  # each term, and their sum as `loss`


Terms = Mapping[str, Tensor]


class LossParts(NamedTuple):
    """The loss of a batch as that of its parts, which on a CPU are computed side by side."""

    parts: tuple[Callable[[], Terms], ...]  # the same terms from each, whose sums are the loss of the batch

    def whole(self) -> Terms:
        """Compute one part after the other, and return the sums of their terms."""
        terms = [part() for part in self.parts]
        return {name: torch.stack([part[name] for part in terms]).sum() for name in terms[0]}


LossFunction = Callable[[int, torch.Generator], Terms | LossParts]
"""From a step and its random generator to the terms of the loss, whose sum is minimised."""


def read_metrics(folder: Path) -> list[dict[str, float | int]]:
    """Read the metrics of a training folder, oldest first; empty where there are none."""
    path = folder / METRICS_NAME
    if not path.exists():
        return []
    # A kill in the middle of a write leaves part of a line, of a step that is done again.
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.endswith("}")]
    rows = [parse_json(line, dict[str, float | int], where=f"{path} line {n}") for n, line in enumerate(lines, start=1)]
    if any("step" not in row or row.keys() != rows[0].keys() for row in rows):
        raise InputError(
            f"{path}: expected a step and the same losses in every line; delete the folder, and train again"
        )
    return rows


def _identity(config: TrainingConfig, made_from: str) -> str:
    """Return what tells a training from another; it may become longer, or be saved at other times."""
    same = dataclasses.replace(config, num_steps=1, is_compiled=False, checkpoint_every_s=0.0)
    return content_id("training", [same, made_from])


def _resume(
    folder: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: TrainingConfig,
    made_from: str,
) -> int:
    path = folder / STATE_NAME
    if not path.exists():  # killed before the first checkpoint: those steps are done again
        (folder / METRICS_NAME).unlink(missing_ok=True)
        return 0
    broken = f"{path} is not readable as the state of this training; delete it to begin anew"
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        step, seed, identity = int(state["step"]), state.get("seed"), state.get("training")
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file brings about
        raise InputError(f"{broken}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    if seed not in (None, config.seed):
        raise InputError(f"{folder} holds a training with seed {seed}, not {config.seed}; choose another folder")
    if identity not in (None, _identity(config, made_from)):  # states of older versions say nothing of it
        raise InputError(
            f"{folder} holds a training with another config, start or pairs; choose another folder, or delete {path}"
        )
    if step > config.num_steps:
        raise InputError(f"{folder} holds a training of {step} steps, more than {config.num_steps}; choose another one")
    try:
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(state[name])
    except Exception as error:  # noqa: BLE001 - as above
        raise InputError(f"{broken}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    # Metrics are written at each step and states only now and then: what came after the state will be written again.
    kept = [row for row in read_metrics(folder) if row["step"] <= step]
    with write_atomically(folder / METRICS_NAME) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return step


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        target.lerp_(source, 1 - decay)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


@contextlib.contextmanager
def explicit_attention(model: nn.Module) -> Iterator[int]:
    """Write attention on the CPU out as two matrix products and a softmax within the context; elsewhere do nothing.

    The backward pass of PyTorch's fused attention on CPUs takes two to seven times as long as this at the sizes of
    small models (docs/log/2026-11-26-text-to-image.md). Layers with a processor of their own keep it.

    The number of layers of diffusers and models of transformers that were changed is the context's value.
    """
    is_cpu = next(model.parameters()).device.type == "cpu"
    modules = list(model.modules()) if is_cpu else []
    layers = [m for m in modules if isinstance(m, Attention) and type(m.processor) is AttnProcessor2_0]
    before = [layer.processor for layer in layers]
    texts = [m for m in modules if isinstance(m, PreTrainedModel) and m.config._attn_implementation == "sdpa"]
    try:
        for layer in layers:
            layer.set_processor(AttnProcessor())
        for text in texts:
            text.set_attn_implementation("eager")
        yield len(layers) + len(texts)
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)  # pyright: ignore[reportArgumentType]
        for text in texts:
            text.set_attn_implementation("sdpa")


@contextlib.contextmanager
def _compiled(model: nn.Module, is_compiled: bool) -> Iterator[None]:
    """Compile calls of the model within the context; its weights and their names stay what they are."""
    # `torch.compile(model)` would wrap it and rename every weight to `_orig_mod...`, and so break saved states.
    try:
        if is_compiled:
            model.compile(dynamic=False)  # sizes are few, and each is compiled for itself
        yield
    finally:
        model._compiled_call_impl = None


def _backward_in_parts(
    loss: LossParts, trained: list[nn.Parameter], device: torch.device, config: TrainingConfig
) -> dict[str, Tensor]:
    """Set the gradients of a batch, added up in the order of its parts; returns the terms of its loss."""

    def gradients(part: Callable[[], Terms]) -> tuple[Terms, tuple[Tensor | None, ...]]:
        # Both autocast and its cache of weights, which parts would take from each other, are of a thread.
        with bfloat16_autocast(device, is_wanted=config.is_bf16, keeps_weights=False):
            terms = part()
        total = torch.stack(list(terms.values())).sum()
        found = torch.autograd.grad(total, trained, allow_unused=True)
        return {name: term.detach() for name, term in terms.items()}, found

    all_terms, all_gradients = zip(*compute_parts([partial(gradients, part) for part in loss.parts]), strict=True)
    for parameter, found in zip(trained, zip(*all_gradients, strict=True), strict=True):
        used = [gradient for gradient in found if gradient is not None]
        parameter.grad = functools.reduce(torch.add, used) if used else None
    return {name: torch.stack([terms[name] for terms in all_terms]).sum() for name in all_terms[0]}


def train(
    model: nn.Module, loss_of: LossFunction, *, folder: Path, config: TrainingConfig, made_from: str = ""
) -> Iterator[TrainingStep]:
    """Train a model in place, from where `folder` says an earlier session stopped; ends with the averaged weights.

    `made_from` names what the losses depend on besides the config: the weights at the start, the examples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    average = copy.deepcopy(model).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    first = _resume(folder, model, average, optimizer, config=config, made_from=made_from)
    saved_s = time.monotonic()
    model.train()
    with explicit_attention(model), _compiled(model, config.is_compiled), (folder / METRICS_NAME).open("a") as metrics:
        for step in range(first, config.num_steps):
            # A generator for each step, on the CPU: a resumed step draws what it would have drawn, on any device.
            generator = torch.Generator().manual_seed(derive_seed(config.seed, "step", step))
            with bfloat16_autocast(device, is_wanted=config.is_bf16), timed("loss"):
                found = loss_of(step, generator)
                if isinstance(found, LossParts) and len(found.parts) == 1:
                    found = found.parts[0]()
            if isinstance(found, LossParts):
                with timed("loss and backward"):
                    terms = _backward_in_parts(found, trained, device, config)
            else:
                terms = dict(found)
                with timed("backward"):
                    torch.stack(list(terms.values())).sum().backward()
            loss = torch.stack([term.detach() for term in terms.values()]).sum()
            with timed("optimizer"), small_tensors():
                nn.utils.clip_grad_norm_(trained, config.gradient_clip)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate_at(step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                # Early weights are worth nothing; a short memory at first keeps them out of the average.
                _update_average(average, model, min(config.ema_decay, (1 + step) / (10 + step)))
            losses = {"loss": float(loss.detach()), **{name: float(term.detach()) for name, term in terms.items()}}
            metrics.write(json.dumps({"step": step + 1, **losses}) + "\n")
            is_last = step + 1 == config.num_steps
            if is_last or time.monotonic() - saved_s > config.checkpoint_every_s:
                metrics.flush()  # before the state, which must never be ahead of its metrics
                state = {"step": step + 1, "seed": config.seed, "training": _identity(config, made_from)}
                parts = {"model": model, "average": average, "optimizer": optimizer}
                with timed("save"), write_atomically(folder / STATE_NAME) as temporary:
                    torch.save({**state, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
                saved_s = time.monotonic()
            yield TrainingStep(step + 1, config.num_steps, losses)
    model.load_state_dict(average.state_dict())
    model.eval()


def running_mean(values: Float64[np.ndarray, " steps"], width: int) -> Float64[np.ndarray, " steps"]:
    """Return the mean of the last `width` values at each place; at the start there are fewer."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (totals[ends] - totals[starts]) / (ends - starts)


def draw_losses(folder: Path) -> Path:
    """Draw `loss.png` from the metrics of a training folder, each term with its running mean; returns the path."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    terms = [name for name in (rows[0] if rows else {}) if name not in ("step", "loss")]
    figure = Figure(figsize=(3.2 * max(len(terms), 1), 2.6), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, max(len(terms), 1)))
    steps = np.array([row["step"] for row in rows])
    for panel, term in zip(panels, terms, strict=False):
        values = np.array([row[term] for row in rows], dtype=np.float64)
        panel.plot(steps, values, color="0.8", linewidth=0.6)
        panel.plot(steps, running_mean(values, max(len(values) // 20, 1)), color="tab:blue", linewidth=1.4)
        panel.set(title=f"{term} loss", xlabel="step", ylim=(0, float(np.quantile(values, 0.98)) * 1.1 + 1e-6))
        panel.spines[["top", "right"]].set_visible(False)
    path = folder / "loss.png"
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
