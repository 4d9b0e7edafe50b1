"""Which editors this machine can open now: pipelines in the hub's cache, and whether an endpoint is set."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from restage.doctor.machine import Finding
from restage.edit.families import cached_pipelines

__all__ = ["check_editors"]


def check_editors() -> Iterator[Finding]:
    """List the editors besides those that are always there."""
    free_gb = _gpu_memory_gb()
    pipelines = cached_pipelines()
    for pipeline in pipelines:
        found = f"{pipeline.name}: {pipeline.class_name}, {pipeline.weights_gb:.1f} GB of weights"
        advice = ""
        if free_gb is None:
            advice = "No GPU here: a view takes minutes to hours on the processor"
        elif pipeline.weights_gb > free_gb:
            advice = f"The GPU has {free_gb:.0f} GB; use --model-options offload=model weights=float8"
        yield Finding("pipeline", found, advice)
    if not pipelines:
        advice = "To edit photographs by more than colors, fetch one: hf download black-forest-labs/FLUX.2-klein-4B"
        yield Finding("pipeline", "none in the hub's cache that restage edit --editor pipeline knows", advice)
    url, model = (os.environ.get(name) for name in ("OPENAI_BASE_URL", "RESTAGE_EDITOR_MODEL"))
    yield Finding(
        "endpoint", f"{model} at {url}" if url and model else "none; set OPENAI_BASE_URL and RESTAGE_EDITOR_MODEL"
    )


def _gpu_memory_gb() -> float | None:
    """Return the memory of the largest NVIDIA GPU, without loading torch; None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    sizes = [float(line) for line in done.stdout.split() if line.replace(".", "").isdigit()]
    return max(sizes) / 1024 if sizes else None
