"""A fuzzer of all borders: spoils small valid inputs by a seed, runs the real commands on them, counts what goes wrong.

    python -m benchmarks.borders --count 1000            # a few minutes on one core
    python -m benchmarks.borders --only 417              # one case again: what was tried, and how it ended

Each case is a file, an argument, an answer or a request that is not as it should be (`cases` says which, `faults` how).
It runs in a fork of this process, in a folder of its own, with limits on time and memory. The last line is JSON:
`cases`, and how many of them ended in `tracebacks` (or another end that is not an agreed one: see `judge.COUNTS`),
`hangs`, too much `memory`, were `accepted_wrongly` although they cannot be right, or had something `left_behind`. The
valid inputs are tried first, each at its border: one that is refused would make all its cases worthless.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

# Before torch and numba are imported: their threads do not survive a fork.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")

from benchmarks.borders.cases import BORDERS, FILE_BORDERS  # noqa: E402
from benchmarks.borders.inputs import load_package, made_apart, make_inputs  # noqa: E402
from benchmarks.borders.judge import COUNTS, Verdict, judge  # noqa: E402

LINES_SHOWN = 12


def try_plain(inputs: Path, work: Path) -> list[str]:
    """Borders that refuse the valid input, or do something else that would be counted."""
    problems = []
    for border in {(border.given, border.command): border for border in FILE_BORDERS}.values():
        if border.command[0] == "diagnose":
            continue  # minutes, unless it is refused
        place = work / "plain"
        case = border.spoiled(place, Random(0), inputs, None)
        verdict = judge(case, place)
        shutil.rmtree(place)
        is_refused = verdict.code != 0 and border.given not in ("video", "photographs")  # too little for real cameras
        if is_refused or verdict.faults:
            problems.append(f"{case.what}: exit code {verdict.code}, {verdict.faults}\n{shown(verdict)}")
    return problems


def shown(verdict: Verdict) -> str:
    return "\n".join(f"    {line[:300]}" for line in verdict.output.splitlines()[-LINES_SHOWN:])


def try_case(number: int, seed: int, inputs: Path, work: Path) -> tuple[str, str, Verdict]:
    """Try the case of a number: what it is, its command, and how it ended."""
    place = work / f"case-{number}"
    rng = Random(f"{seed} {number}")
    case = BORDERS[number % len(BORDERS)](place, rng, inputs)
    return case.what, " ".join(map(repr, case.command)), judge(case, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases to try")
    parser.add_argument("--inputs", type=Path, help="folder that keeps the valid inputs for the next time")
    parser.add_argument("--keep", action="store_true", help="keep the folders of cases that fail")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp(prefix="borders-"))
    inputs = (options.inputs or work / "inputs").resolve()
    if not inputs.exists():
        inputs.mkdir(parents=True)
        made_apart(make_inputs, inputs)
    load_package()
    if not options.only and (problems := try_plain(inputs, work)):
        print("\n".join(problems), file=sys.stderr)
        raise SystemExit("valid inputs are not taken, so that spoiled ones say nothing")
    start, counts = time.monotonic(), Counter[str]()
    numbers = options.only or range(options.count)
    for number in numbers:
        what, command, verdict = try_case(number, options.seed, inputs, work)
        counts.update(verdict.faults.keys())
        if verdict.faults or options.only:
            facts = "; ".join(f"{name}: {text}" for name, text in verdict.faults.items()) or "ended well"
            print(f"{number}: {what!a}: exit code {verdict.code}, {verdict.seconds:.1f} s: {facts!a}", flush=True)
        if options.only:
            print(f"    {command!a}\n{ascii(shown(verdict))}")
        if not (options.keep and verdict.faults):
            shutil.rmtree(work / f"case-{number}", ignore_errors=True)
    if not options.keep:
        shutil.rmtree(work)
    record = {"cases": len(numbers), **{name: counts[name] for name in COUNTS}}
    print(json.dumps({**record, "seed": options.seed, "seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
    main()
