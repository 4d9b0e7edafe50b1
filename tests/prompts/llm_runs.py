"""Runs of the prompts stage that ask the fake server."""

import json

from restage.prompts.config import PromptsConfig
from restage.prompts.llm_config import LlmConfig, LlmLimits
from restage.prompts.stage import run_prompts
from restage.prompts.store import read_prompts
from restage.run.folder import RunFolder


def config_of(server, num_prompts=12, limits=None, llm=None, **changes) -> PromptsConfig:
    limits = LlmLimits(**{"num_parallel": 1, "timeout_s": 5.0, **(limits or {})})
    model = LlmConfig(**{"base_url": server.url, "model": "fake", "pairs_per_request": 4, **(llm or {})}, limits=limits)
    return PromptsConfig(**{"num_prompts": num_prompts, "writer": "llm", "kinds": ("recolour",), **changes}, llm=model)


def run_all(path, config):
    run = RunFolder.open(path, {}, seed=1)
    steps = list(run_prompts(run, config))
    return steps[-1], read_prompts(path / "prompts" / "prompts.jsonl")


def rejects_of(path):
    return [json.loads(line) for line in (path / "prompts" / "rejects.jsonl").read_text().splitlines()]
