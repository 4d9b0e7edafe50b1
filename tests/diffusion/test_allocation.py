import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from restage.diffusion.hardware import keep_freed_memory

def faults_of_new_tensors():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = faults_of_new_tensors()
assert keep_freed_memory()
faults_of_new_tensors()
print(before, faults_of_new_tensors())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
def test_large_tensors_are_given_the_pages_of_those_before_them():
    # In a process of its own, since the option lasts for as long as a process.
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(int, done.stdout.split())
    assert after < before / 10
