"""What a campaign costs and survives. The last line is JSON; the notes before it say what was done.

    python benchmarks/campaign.py [--tasks 200000]     many tiny tasks through Ray, overhead, two workers against one
    python benchmarks/campaign.py --faults 100         kills of workers, actors, a node, the driver; full and slow disk
    python benchmarks/campaign.py --cluster            the miniature on three nodes, one killed, one joining
    python benchmarks/campaign.py --flips 200          flipped bytes that `verify` has to find

The tiny tasks are made by a stand-in generator: noise of 8 x 8 pixels, so that only the campaign itself is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200_000, help="tiny tasks through Ray")
    parser.add_argument("--miniature-pairs", type=int, default=192, help="pairs of each timing")
    parser.add_argument("--faults", type=int, help="number of kills")
    parser.add_argument("--flips", type=int, help="number of flipped bytes")
    parser.add_argument("--cluster", action="store_true", help="three nodes, one is killed, one joins")
    parser.add_argument("--accepted", type=int, default=2_000, help="accepted pairs that --cluster needs")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-campaign"), help="for what is made")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    from benchmarks.campaigns import cluster, faults, throughput

    if options.faults:
        result = faults.measure(options.folder / "faults", options.faults)
    elif options.flips:
        result = faults.measure_flips(options.folder / "flips", options.flips)
    elif options.cluster:
        result = cluster.measure(options.folder / "cluster", options.accepted)
    else:
        result = throughput.measure(options.folder, options.tasks, options.miniature_pairs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
