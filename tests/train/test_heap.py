"""Freed memory stays for the next step, unless the user's environment says otherwise; peaks begin anew."""

import subprocess
import sys

import pytest
import torch

from luthier.train.heap import keep_freed, peak_bytes, reset_peak

STEPS = """
import resource, torch
from luthier.train.heap import keep_freed
assert keep_freed()
def step():
    blocks = [torch.ones(1 << 20) for _ in range(24)]  # 24 blocks of 4 MiB, like activations
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults() -> int:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed(), reason="this C library has no such setting")
def test_the_next_step_pays_no_page_faults_for_the_same_blocks():
    assert faults() < 100  # of 73,728 pages; without the setting often all of them


def test_settings_of_the_user_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert keep_freed() is False


def test_a_peak_of_an_earlier_run_does_not_count():
    big = torch.ones(1 << 26)
    high = peak_bytes()
    del big
    reset_peak()
    assert peak_bytes() < high - (1 << 27)
