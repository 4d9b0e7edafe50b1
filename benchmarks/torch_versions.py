"""Does the main path run with other versions of torch than the one that constraints.txt names?

    python -m benchmarks.torch_versions 2.6.0 2.14.1 --pip-options "--index-url https://download.pytorch.org/whl/cpu"

Each version is installed into an environment of its own in a temporary folder; all other packages are those of the
environment that runs this. There a demo of tiny random models goes from prompts to the page. Prints a line of JSON for
each version. On Linux, PyPI's own wheels of torch are for CUDA and bring several GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

CLONE = Path(__file__).parents[1]
MAIN_PATH = """
import sys, torch
from pathlib import Path
from tests.tiny_demo import run_tiny_demo
from tests.tiny_models import write_tiny_models
folder = Path(sys.argv[1])
run_tiny_demo(folder / "run", write_tiny_models(folder / "models"))
assert (folder / "run" / "report" / "index.html").is_file()
print(torch.__version__)
"""


def try_version(version: str, pip_options: list[str], folder: Path) -> dict[str, Any]:
    """Install a torch and run the main path with it; says which part failed, and the last line of why."""
    environment, python = folder / "environment", folder / "environment" / "bin" / "python"
    started_s = time.monotonic()
    steps = {
        "environment": [sys.executable, "-m", "venv", environment],
        "install": [python, "-m", "pip", "install", "-q", *pip_options, f"torch=={version}"],
        "main path": [python, "-c", MAIN_PATH, folder],
    }
    for name, command in steps.items():
        if name == "main path":
            (site,) = environment.glob("lib/python*/site-packages")
            # Looked at after the environment's own packages, so that its torch is found first.
            (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        paths = {**os.environ, "PYTHONPATH": str(CLONE), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(list(map(str, command)), env=paths, cwd=CLONE, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return {"torch": version, "ok": False, "failed": name, "reason": reason}
    found = done.stdout.strip().splitlines()[-1]
    return {
        "torch": version,
        "ok": found.partition("+")[0] == version,
        "found": found,
        "s": time.monotonic() - started_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--pip-options", type=shlex.split, default=[], help="such as where to look for wheels")
    options = parser.parse_args()
    rows = []
    for version in options.versions:
        with tempfile.TemporaryDirectory(prefix="restage-torch-") as folder:
            rows.append(try_version(version, options.pip_options, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
