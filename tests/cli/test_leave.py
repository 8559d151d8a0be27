"""A command ends at once and loses nothing: output, exit code, what was registered for the end, threads that still work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = "import atexit, sys, threading, time\nfrom pathlib import Path\nfrom luthier.cli.leave import leave, may_hurry\n"
FAKE = "import types\nsys.modules['torch'] = types.SimpleNamespace(distributed=types.SimpleNamespace(is_available=lambda: False))\n"


def ended(code: str, torch: str = "import torch\n", out: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + torch + code], stdout=out, stderr=subprocess.PIPE, text=True)


def test_all_output_the_exit_code_and_what_waits_for_the_end(tmp_path: Path):
    done = ended(f"atexit.register(lambda: Path({str(tmp_path / 'late')!r}).write_text('written'))\n"
                 "assert may_hurry()\nprint('x' * 100_000)\nleave(3)")  # fmt: skip
    assert (done.returncode, len(done.stdout), done.stderr) == (3, 100_001, "")
    assert (tmp_path / "late").read_text() == "written"


def test_what_ends_a_process_the_usual_way():
    assert ended("print(may_hurry())", torch="").stdout == "False\n"
    assert ended("sys.setprofile(lambda *a: None); print(may_hurry())", FAKE).stdout == "False\n"
    waits = "threading.Thread(target=lambda: (time.sleep(0.3), print('done'))).start()\nprint(may_hurry())\nleave(0)"
    assert ended(waits, FAKE).stdout == "False\ndone\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_no_success():
    with open("/dev/full", "w") as full:
        done = ended("print('lost')\nleave(0)", FAKE, full.fileno())
    assert done.returncode != 0
    assert "No space left" in done.stderr


def test_commands_keep_their_codes(tmp_path: Path):
    luthier = [sys.executable, "-m", "luthier"]
    assert subprocess.run([*luthier, "methods", "--count", "1", "dpo"], capture_output=True).returncode == 0
    assert subprocess.run([*luthier, "check", str(tmp_path / "none.yaml")], capture_output=True).returncode == 2
