"""Checks of the machine (processor, memory, GPUs, threads) and around it (disk, hub, ffmpeg, models, nerfstudio)."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TextIO

import psutil

import restage
from restage.records import InputError
from restage.run.environment import BFLOAT16_FLAGS, processor_name
from restage.run.limits import allowed_cores, cpu_quota, free_memory_bytes

__all__ = ["Finding", "Gpu", "check_disk", "check_ffmpeg", "check_gpus", "check_hub", "check_memory", "check_models"]
__all__ += ["check_nerfstudio", "check_processor", "check_threads", "is_healthy", "query_gpus", "show_table", "to_json"]

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    advice: str = ""  # what to do; empty if all is well
    is_problem: bool = False
    """Whether something that is needed is broken; else advice is a note on what is slow, missing or odd."""
    group: str = ""

    def __post_init__(self) -> None:
        if self.is_problem and not self.advice:
            raise InputError(f"{self.name}: a problem needs advice")

    @property
    def status(self) -> str:
        """One of the keys of `STYLES`."""
        return "problem" if self.is_problem else "note" if self.advice else "ok"


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Return whether nothing that is needed is broken."""
    return not any(finding.is_problem for finding in findings)


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: `ok`, the number of each status, and every finding."""
    counts = {status: sum(finding.status == status for finding in findings) for status in STYLES}
    rows = [{**asdict(finding), "status": finding.status} for finding in findings]
    return json.dumps({"ok": is_healthy(findings), "counts": counts, "findings": rows})


def show_table(findings: Sequence[Finding], *, file: TextIO | None = None) -> None:
    """Print the findings as one table, group by group."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for ratio in (None, None, 3, 3):
        table.add_column(ratio=ratio, overflow="fold", no_wrap=ratio is None)
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row(Text(group, style="bold"))
        status = Text(finding.status, style=STYLES[finding.status])
        table.add_row(Text(f"  {finding.name}"), status, Text(finding.found), Text(finding.advice))
    console = Console(file=file)
    console.print(table)
    num_problems = sum(finding.status == "problem" for finding in findings)
    verdict = f"{num_problems} problems" if num_problems else "nothing that is needed is broken"
    console.print(f"{verdict}, {sum(finding.status == 'note' for finding in findings)} notes", style="bold")


ENOUGH_MEMORY_GIB = 4.0
BUSY_SHARE = 0.1
"""A GPU counts as in use if more than this share of its memory is taken."""
BF16_CAPABILITY = 8.0
STARTS_THREADS = r"""
import json, numba, os, re, torch
from numba.np.ufunc import parallel
torch.get_num_threads()
parallel._launch_threads()
maps = open("/proc/self/maps").read() if os.path.isfile("/proc/self/maps") else ""
pools = {os.path.realpath(path) for path in re.findall(r"/\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so\S*", maps)}
print(json.dumps([sorted(pools), numba.threading_layer()]))
"""
"""Loads torch and numba, and starts their threads."""
LOADS_THREADS = r"""
import ctypes, glob, json, os, re, sys
torch, numba = sys.argv[1:]
ctypes.CDLL(f"{torch}/lib/libtorch_global_deps.so")
for layer in os.environ.get("NUMBA_THREADING_LAYER_PRIORITY", "tbb omp workqueue").split():
    try:
        if layer == "tbb" and ctypes.CDLL("libtbb.so.12").TBB_runtime_interface_version() < 12060:
            continue
        ctypes.CDLL(glob.glob(f"{numba}/np/ufunc/{layer}*.so")[0])
        break
    except (OSError, IndexError):
        pass
maps = open("/proc/self/maps").read()
pools = {os.path.realpath(path) for path in re.findall(r"/\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so\S*", maps)}
print(json.dumps([sorted(pools), layer]))
"""
"""Loads only the libraries that torch and numba take threads from, in the order in which they do."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Gpu(NamedTuple):
    """An NVIDIA GPU as its driver reports it."""

    index: int
    name: str
    total_mib: float
    used_mib: float
    busy_percent: float
    capability: float


class Processor(NamedTuple):
    """What this process may compute on."""

    model: str
    num_logical: int
    num_allowed: int  # logical cores that its affinity allows
    quota: float | None
    """Cores that the container's share of processor time amounts to; None for no limit."""
    flags: frozenset[str]  # instruction sets as Linux names them; empty elsewhere


def query_processor() -> Processor:
    """Ask the system about the processor."""
    info, quota = Path("/proc/cpuinfo"), cpu_quota()
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", info.read_text() if info.is_file() else "", re.MULTILINE)
    num_logical = os.cpu_count() or 1
    return Processor(
        processor_name(),
        num_logical,
        len(allowed_cores()),
        quota if quota < math.inf else None,
        frozenset(flags.group(1).split() if flags else ()),
    )


def query_gpus() -> list[Gpu]:
    """Ask the NVIDIA driver, which starts no work on a GPU; return nothing without a driver."""
    fields = "index,name,memory.total,memory.used,utilization.gpu,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.strip().splitlines()]
    # "[N/A]" is what shares of a GPU report.
    return [Gpu(int(i), name, *(0.0 if "[" in x else float(x) for x in numbers)) for i, name, *numbers in rows]


def query_torch_cuda() -> str:
    """Return the CUDA version that torch was built for, which it says in a file; nothing if it was built without."""
    spec = find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else Path()
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", version.read_text() if version.is_file() else "", re.MULTILINE)
    return found.group(1) if found else ""


def query_threads(*, starts: bool = False) -> tuple[list[str], str]:
    """Return the OpenMP runtimes that torch and numba load, and numba's threading layer; `starts` both to see that."""
    folders = [Path(spec.origin).parent for name in ("torch", "numba") if (spec := find_spec(name)) and spec.origin]
    is_known = len(folders) == 2 and (folders[0] / "lib/libtorch_global_deps.so").exists()
    is_known &= "NUMBA_THREADING_LAYER" not in os.environ  # what its values stand for is numba's business
    program = ["-c", STARTS_THREADS] if starts or not is_known else ["-S", "-c", LOADS_THREADS, *map(str, folders)]
    # In another process, so that a torch that takes its process with it is a finding, too.
    done = subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"torch or numba does not start: {last[0]}")
    pools, layer = json.loads(done.stdout)
    return pools, layer


def check_processor() -> Iterator[Finding]:
    """Report the processor's model and cores, how many this process gets, and whether they compute in bf16."""
    processor = query_processor()
    few = min(float(processor.num_allowed), processor.quota or processor.num_allowed) < 2
    quota = "" if processor.quota is None else f", time of {processor.quota:.1f} cores by quota"
    found = f"{processor.model}; {processor.num_allowed} of {processor.num_logical} cores by affinity{quota}"
    advice = "The demo takes about 20 minutes on one core; give it two or more if you can." if few else ""
    yield Finding("processor", found, advice)
    known = [flag for flag in BFLOAT16_FLAGS if flag in processor.flags]
    found = f"in hardware ({', '.join(known)})" if known else "not in hardware, as far as can be told"
    advice = "Models compute in float32 here; processors with bf16 are two to three times as fast."
    yield Finding("bf16", found, "" if known else advice)


def check_memory() -> Iterator[Finding]:
    """Report how much memory there is and how much is free."""
    memory = psutil.virtual_memory()
    free_gib = free_memory_bytes() / 2**30
    advice = f"The demo needs about {ENOUGH_MEMORY_GIB:.0f} GiB; close other programs first."
    found = f"{free_gib:.1f} of {memory.total / 2**30:.1f} GiB are free"
    yield Finding("memory", found, "" if free_gib >= ENOUGH_MEMORY_GIB else advice)


def check_gpus() -> Iterator[Finding]:
    """Report every GPU, its memory, whether it is in use, and whether torch can use it."""
    gpus = query_gpus()
    if not gpus:
        yield Finding("GPU", "none; everything runs on the processor")
    for gpu in gpus:
        is_busy = gpu.used_mib > BUSY_SHARE * max(gpu.total_mib, 1.0) or gpu.busy_percent > 0
        memory = f"{gpu.used_mib / 1024:.1f} of {gpu.total_mib / 1024:.1f} GiB taken"
        bf16 = "bf16" if gpu.capability >= BF16_CAPABILITY else "no bf16"
        advice = f"It is in use; choose another with CUDA_VISIBLE_DEVICES, or wait: nvidia-smi -i {gpu.index}"
        found = f"{gpu.name}, {memory}, {gpu.busy_percent:.0f} % busy, {bf16}"
        yield Finding(f"GPU {gpu.index}", found, advice if is_busy else "")
    if gpus and not query_torch_cuda():
        advice = "Install the CUDA build of the same version from https://download.pytorch.org/whl"
        yield Finding("torch and GPU", "this torch was built without CUDA, so the GPU is not used", advice)


def check_threads(environment: Mapping[str, str] = os.environ, *, starts: bool = False) -> Iterator[Finding]:
    """Check thread counts against the cores, the OpenMP runtimes, and numba's threading layer."""
    allowed = query_processor().num_allowed
    settings = {name: environment[name] for name in THREAD_VARIABLES if name in environment}
    too_many = [name for name, value in settings.items() if not value.isdigit() or not 0 < int(value) <= allowed]
    found = ", ".join(f"{name}={value}" for name, value in settings.items()) or f"none set; {allowed} threads each"
    advice = f"There are only {allowed} cores: unset {' '.join(too_many)}" if too_many else ""
    yield Finding("settings", found, advice)
    pools, layer = query_threads(starts=starts)
    waits = environment.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    is_single = "1" in (environment.get("OMP_NUM_THREADS"), str(allowed))
    found = ", ".join(Path(pool).name for pool in pools) or "no runtime found"
    advice = "Two pools on the same cores stall each other, up to ten times slower: export OMP_WAIT_POLICY=PASSIVE"
    yield Finding("OpenMP", found, advice if len(pools) > 1 and not waits and not is_single else "")
    advice = "It must not be used from two threads at once; install libgomp1 (or libomp)."
    yield Finding("numba", f"threading layer {layer}", advice if layer == "workqueue" else "")


ROOM_TO_WORK_GIB, ROOM_TO_START_GIB = 5.0, 1.0
HUB = "https://huggingface.co"
PACKAGE = Path(restage.__file__).parent


def _nearest_folder(path: Path) -> Path:
    """Return the path itself, or the closest folder above it that exists."""
    return next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir()), Path("/"))


def free_gib(path: Path) -> float:
    """Return the free space of the disk that a path is or will be on."""
    return shutil.disk_usage(_nearest_folder(path)).free / 2**30


def is_writable(path: Path) -> bool:
    """Return whether this user may write there, or create it."""
    return os.access(_nearest_folder(path), os.W_OK)


def check_disk(runs: Path) -> Iterator[Finding]:
    """Check free space and permissions where runs and models from the hub go."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    models = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    for name, path, option, is_needed in (("runs", runs, "--out", True), ("model cache", models, "HF_HOME", False)):
        room_gib = free_gib(path)
        found, is_problem = f"{room_gib:.1f} GiB free at {path}", is_needed
        if not is_writable(path):
            advice = f"This user may not write there; choose another {name} folder with {option}."
        elif room_gib < ROOM_TO_START_GIB:
            advice = "Free some space; a run of the demo takes about 0.2 GiB."
        else:
            is_problem = False
            advice = "Enough for the demo, not for models from the hub." if room_gib < ROOM_TO_WORK_GIB else ""
        yield Finding(name, found, advice, is_problem=is_problem)


def query_ffmpeg() -> tuple[str, str]:
    """Return the path of the ffmpeg that clips are written with, and the list of its encoders; raises without one."""
    import imageio_ffmpeg

    path = imageio_ffmpeg.get_ffmpeg_exe()
    done = subprocess.run([path, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=60, check=True)
    return path, done.stdout


def check_ffmpeg() -> Iterator[Finding]:
    """Check whether clips can be written."""
    try:
        path, encoders = query_ffmpeg()
        is_fine = "libx264" in encoders
        found = f"libx264 of {Path(path).name}" if is_fine else f"{path} has no encoder libx264"
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        is_fine, found = False, f"{type(error).__name__}: {error}"
    advice = "" if is_fine else "For clips: unset IMAGEIO_FFMPEG_EXE; pip install --force-reinstall imageio-ffmpeg"
    yield Finding("ffmpeg", found, advice, is_problem=not is_fine)


def check_models() -> Iterator[Finding]:
    """Check that the models that ship with the package are complete."""
    folder = PACKAGE / "assets"
    missing = [
        name
        for name in ("text_to_image", "clip", "edit_model")
        if not any(path.stat().st_size > 1000 for path in (folder / name).rglob("*.safetensors"))
    ]
    found = f"missing or empty: {', '.join(missing)}" if missing else str(folder)
    advice = "The package is incomplete; install it again (in a clone: git checkout restage/assets)" if missing else ""
    yield Finding("shipped models", found, advice, is_problem=bool(missing))


def reach_hub(url: str = HUB, timeout_s: float = 8.0) -> str:
    """Ask the hub for its front page; return nothing if it answers, else why not. Nothing is downloaded."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s):
            return ""
    except urllib.error.HTTPError:
        return ""  # it answered
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def check_hub(*, is_online: bool) -> Iterator[Finding]:
    """Check whether the hub can be reached; the network is used only if that was asked for."""
    if not is_online:
        yield Finding("hub", "not asked; `restage doctor --online` asks")
        return
    url = os.environ.get("HF_ENDPOINT", HUB)
    why_not = reach_hub(url)
    advice = "Shipped models work without it. For others, set HTTPS_PROXY or HF_ENDPOINT, or copy their folders here."
    yield Finding("hub", f"{url}: {why_not}" if why_not else f"{url} answers", advice if why_not else "")


def check_nerfstudio(folder: Path = PACKAGE.parent / ".venv-nerfstudio") -> Iterator[Finding]:
    """Check nerfstudio's own environment, if there is one: that it starts, and that its packages suit each other."""
    python = folder / "bin" / "python"
    if not python.exists():
        where = "" if (folder.parent / "Makefile").is_file() else "in a clone of the repository "
        advice = f"Only ns-train with Restage's methods needs it: {where}make nerfstudio (3.5 GB, some minutes)"
        yield Finding("nerfstudio", f"no environment {folder.name}", advice)
        return
    try:
        done = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, timeout=60, check=False)
        faults = (done.stdout or done.stderr).strip() if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        faults = f"it does not start: {type(error).__name__}"
    advice = f"Make it anew: rm -r {folder.name}; make nerfstudio" if faults else ""
    yield Finding("nerfstudio", faults or str(folder), advice)
