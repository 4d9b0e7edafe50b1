"""How well a machine is shared: fits, edits, pairs and training beside busy processes of other users.

    python -m benchmarks.neighbour [--parts fit edit pairs train] [--busy 2 6] [--repeats 1]

Each part runs with one thread and with as many as it takes by itself, alone and beside k busy processes, each in a
session of its own as those of other users are (Linux shares cores by session). Start it on a machine that does nothing
else, without OMP_NUM_THREADS: the load that strangers put on it meanwhile is shown in cores for every run. The last
line is JSON, for each part:

- quiet_speedup: wall time alone with one thread over that with as many as it takes.
- k2, k6: wall time beside 2 and 6 busy processes over what a fair share of the cores, cores / (k + 1), would take for
  the CPU seconds of the quiet run with one thread.
- stranger_cores: the most that others used during one of these runs.

Each figure is the median of the rounds (--repeats).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
VIEW_SIZE = 128


def prepare_fit() -> Callable[[], object]:
    """A fit of an unseen miniature world, 6,000 splats."""
    from restage.scenes.fit import FitConfig, fit_splats
    from restage.world.capture import make_capture
    from restage.world.grammar import sample_description

    capture = make_capture(sample_description(101), name="world", seed=101, size=VIEW_SIZE)
    return lambda: list(fit_splats(capture, FitConfig(steps=300)))


def prepare_edit() -> Callable[[], object]:
    """A fifth of what the method restage does by default with the shipped edit model."""
    from restage.edit.editors import MenuEditor
    from restage.edit.editors.interface import EditorSource
    from restage.edit.job import EditJob
    from restage.edit.methods.restage import Restage
    from restage.scenes.fit import FitConfig, fit_splats
    from restage.world.capture import make_capture
    from restage.world.grammar import request_of, sample_description, sample_edit

    description = sample_description(101)
    capture = make_capture(description, name="world", seed=101, size=VIEW_SIZE)
    *_, fitted = fit_splats(capture, FitConfig(steps=150))
    editor = MenuEditor(name="edit_model").open(EditorSource(file_names=(), truth=None, model=None))
    request = request_of(sample_edit(description, 0, kind="recolour"), 0)
    job = EditJob.of(fitted.splats, capture, request, editor, 0)
    return lambda: list(Restage(num_key_views=5, color_steps=24, shape_steps=76).run(job))


def prepare_pairs() -> Callable[[], object]:
    """A batch of eight pairs of the shipped text-to-image model."""
    from restage.diffusion.backbone import load_backbone
    from restage.pairs.config import GenerateConfig
    from restage.pairs.generate import generate_pairs, make_jobs
    from restage.run.models import models_in
    from restage.world.grammar import prompt_pair_of, sample_description, sample_edit

    edits = [sample_edit(sample_description(seed), seed) for seed in range(8)]
    config, backbone = GenerateConfig(), load_backbone(models_in().text_to_image)
    prompts = [prompt_pair_of(edit, seed) for seed, edit in enumerate(edits)]
    jobs = make_jobs(prompts, config, samples_per_prompt=1, run_seed=0)
    return lambda: generate_pairs(backbone, jobs, config)


def prepare_train() -> Callable[[], object]:
    """Steps of training the edit model on rendered pairs, which are encoded first."""
    from miniature.rendered_pairs import render_pairs
    from restage.diffusion.config import TrainingConfig
    from restage.run.models import models_in
    from restage.train.config import TrainConfig
    from restage.train.stage import load_start, train_edit_model

    pairs, start = list(render_pairs(16, seed=7)), load_start(models_in().edit_model)
    config = TrainConfig(training=TrainingConfig(num_steps=4, batch_size=32, learning_rate=2e-4))

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            list(train_edit_model(pairs, start, Path(folder), config))

    return work


PARTS = {"fit": prepare_fit, "edit": prepare_edit, "pairs": prepare_pairs, "train": prepare_train}


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def serve(part: str) -> None:
    """Do the work of a part whenever a line comes in, and print what it took; a first time warms up."""
    # Work goes on for minutes beside others, and must not outlive a benchmark that was killed.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    work = PARTS[part]()
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        work()
        print(json.dumps([time.perf_counter() - started_s, time.process_time() - started_cpu_s]), flush=True)


class Took(NamedTuple):
    """Seconds of a run, and how many cores others used meanwhile."""

    wall_s: float
    cpu_s: float
    stranger_cores: float


class Worker:
    """A process that does the work of a part."""

    def __init__(self, part: str, *, threads: int | None) -> None:
        """Start it with so many threads; None for what it takes by itself."""
        self.threads = threads
        environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
        if threads is not None:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.neighbour", "--serve", part],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that does the work has ended")
        return line

    def run(self, num_busy: int) -> Took:
        """Do the work once beside busy processes."""
        assert self.process.stdin is not None
        with busy_processes(num_busy) as busy:
            before_s = [_used_s(), *(_used_s(process.pid) for process in busy)]
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            wall_s, cpu_s = json.loads(self._read())
            all_s, *busy_s = (
                after - before
                for after, before in zip([_used_s(), *(_used_s(p.pid) for p in busy)], before_s, strict=True)
            )
        return Took(wall_s, cpu_s, (all_s - sum(busy_s) - cpu_s) / wall_s)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep so many processes busy within the context."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
    try:
        time.sleep(0.5)  # so that they have started, and are spread over the cores
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _used_s(pid: int | None = None) -> float:
    """CPU seconds of a process so far, or of the whole machine."""
    if pid is None:
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        used = sum(int(ticks[place]) for place in (0, 1, 2, 5, 6))  # neither idle, nor waiting, nor stolen
    else:
        used = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return used / os.sysconf("SC_CLK_TCK")


def measure(part: str, *, num_busy: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Measure one part; runs that are compared follow each other, since the speed of a shared machine wavers."""
    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {}
    with contextlib.closing(Worker(part, threads=1)) as single, contextlib.closing(Worker(part, threads=None)) as own:
        for _ in range(repeats):
            alone, quiet = (_run(worker, part, 0) for worker in (single, own))
            found.setdefault("quiet_speedup", []).append(alone.wall_s / quiet.wall_s)
            strangers = [alone.stranger_cores, quiet.stranger_cores]
            for count in num_busy:
                took = _run(own, part, count)
                found.setdefault(f"k{count}", []).append(took.wall_s * cores / (count + 1) / alone.cpu_s)
                strangers.append(took.stranger_cores)
            found.setdefault("stranger_cores", []).append(max(strangers))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def _run(worker: Worker, part: str, num_busy: int) -> Took:
    took = worker.run(num_busy)
    threads = "its own choice" if worker.threads is None else f"{worker.threads} thread"
    print(
        f"{part}, {threads}, {num_busy} busy: wall {took.wall_s:.1f} s, CPU {took.cpu_s:.1f} s, "
        f"strangers {took.stranger_cores:.2f} cores",
        flush=True,
    )
    return took


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--busy", nargs="+", type=int, default=[2, 6], help="numbers of busy processes beside it")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--serve", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    found = {part: measure(part, num_busy=tuple(arguments.busy), repeats=arguments.repeats) for part in arguments.parts}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
