from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = "import os, restage; print(os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "PASSIVE 0"), ({"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "infinite"}, "ACTIVE infinite")],
)
def test_threads_that_wait_do_not_spin_unless_the_user_wants_it(chosen: dict[str, str], expected: str) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**own, **chosen}, capture_output=True, text=True)
    assert done.stdout.strip() == expected
