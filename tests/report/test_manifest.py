"""What a run says of where it came from: versions of what is installed, the commit and whether the tree was changed."""

from __future__ import annotations

import subprocess
from importlib import metadata

from luthier.report.manifest import git_state, versions


def git(folder, *words):
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(("git", "-C", str(folder), *own, *words), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_versions_are_those_installed_and_a_caller_may_change_the_answer():
    found = versions()
    assert found["torch"] == metadata.version("torch")
    assert {"luthier", "python"} <= found.keys()
    found["torch"] = "0"
    assert versions()["torch"] == metadata.version("torch")


def test_a_tree_is_known_by_its_commit_and_whether_it_was_changed(tmp_path):
    assert git_state(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {}, "before the first commit there is nothing to name"
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "b").write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "changed": True}
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_text("3")
    assert git_state(tmp_path) == {"commit": commit, "changed": True}
