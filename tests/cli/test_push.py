"""`luthier push` against a server on this machine that plays the hub's endpoints: what arrives, and every refusal."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from luthier.report.modelcard import CardFacts, write_model_card
from tests.cli.shell import luthier, refused

REPO = "me/tiny-run"


class Hub(BaseHTTPRequestHandler):
    """The endpoints that creating a repository and one commit need. `seen` holds what came, `plays` how it answers."""

    seen: dict[str, Any]
    plays: dict[str, Any]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.setdefault("paths", []).append(self.path)
        self.seen["token"] = self.headers.get("authorization")
        if (code := self.plays.get("code")) is not None:
            self.answer(code, {"error": "no such right"})
        elif self.path == "/api/repos/create":
            self.seen["create"] = json.loads(raw)
            self.answer(409 if self.plays.get("exists") else 200, {"url": f"{self.at}/{REPO}"})
        elif self.path == "/api/validate-yaml":
            faults = self.plays.get("yaml", [])
            self.answer(400 if faults else 200, {"errors": faults, "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(raw)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            self.seen["commit"] = [json.loads(line) for line in raw.splitlines()]
            self.answer(200, {"commitUrl": f"{self.at}/{REPO}/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.answer(404, {"error": "unknown"})

    def do_GET(self) -> None:
        if (code := self.plays.get("code")) is not None:
            return self.answer(code, {"error": "no such right"})
        private = not self.plays.get("is_public")
        there = [{"rfilename": n} for n in self.plays.get("files", [".gitattributes"])]
        return self.answer(200, {"id": REPO, "private": private, "siblings": there, "tags": [], "sha": "b" * 40})

    @property
    def at(self) -> str:
        return f"http://{self.headers['host']}"

    def answer(self, code: int, told: dict[str, Any]) -> None:
        """Send JSON."""
        body = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch):
    """A hub of its own, reached through HF_ENDPOINT with a token; gives (what came, how it answers)."""
    from huggingface_hub import constants

    kind = type("ThisHub", (Hub,), {"seen": {}, "plays": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield kind.seen, kind.plays
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder."""
    out = tmp_path / "run"
    for part in ("model", "adapter"):
        (out / part).mkdir(parents=True)
    save_file({"w": torch.arange(3.0)}, out / "model" / "model.safetensors")
    save_file({"a": torch.ones(2)}, out / "adapter" / "adaptation.safetensors")
    (out / "model" / "config.json").write_text("{}")
    (out / "model" / ".hidden").write_text("not for others")
    (out / "manifest.json").write_text("{}")
    facts = {"base_model": "some/base", "recipe": {"model": "some/base"}, "saved": "model"}
    write_model_card(CardFacts(name=str(out / "model"), **facts), out / "model")  # type: ignore[arg-type]
    write_model_card(CardFacts(name=str(out), **{**facts, "saved": "luthier"}), out)  # type: ignore[arg-type]
    return out


def arrived(seen: dict[str, Any]) -> dict[str, bytes]:
    """The files of the commit."""
    rows = [row["value"] for row in seen["commit"] if row["key"] == "file"]
    return {row["path"]: base64.b64decode(row["content"]) for row in rows}


def test_the_merged_model_arrives_whole_and_private(hub, run):
    seen, _ = hub
    ran = luthier("push", run, REPO)
    assert ran.code == 0, ran.err
    assert seen["token"] == "Bearer hf_secret"
    assert seen["create"]["name"] == "tiny-run"
    assert seen["create"]["organization"] == "me"
    assert "private" in json.dumps(seen["create"])
    got = arrived(seen)
    assert got.keys() == {"README.md", "config.json", "model.safetensors"}
    assert got["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    card = got["README.md"].decode()
    assert f'from_pretrained("{REPO}")' in card
    assert f"# {REPO}\n" in card
    assert str(run) not in card
    assert "/commit/" in ran.out
    assert "hf_secret" not in ran.out + ran.err


def test_the_adapter_goes_with_what_loads_it(hub, run):
    seen, _ = hub
    assert luthier("push", run, REPO, "--what", "adapter", "--public").code == 0
    assert arrived(seen).keys() == {"README.md", "manifest.json", "adapter/adaptation.safetensors"}
    assert "private" not in json.dumps(seen["create"]).replace('"private": false', "")


def test_a_dry_run_sends_nothing_and_says_what_is_missing(hub, run, monkeypatch):
    import huggingface_hub

    seen, _ = hub
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    (run / "model" / "README.md").unlink()
    ran = luthier("push", run, REPO, "--dry-run")
    assert ran.code == 0
    assert seen == {}
    size = (run / "model" / "model.safetensors").stat().st_size
    for words in (f"{size:,} bytes  model.safetensors", "2 files", f"private repository {REPO}", "missing: a token",
                  "missing: a model card", "nothing was sent"):  # fmt: skip
        assert words in ran.out
    refused(luthier("push", run, REPO), "ready", "a model card (README.md)")


def test_without_a_token_nothing_is_sent(hub, run, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused(luthier("push", run, REPO), "requires a token of the hub (set HF_TOKEN", "got none")
    assert hub[0] == {}


@pytest.mark.parametrize("name", ["a/b/c", "me/--x", "me/x y", "", "me/x.git", "https://hub/me/x", "../x"])
def test_a_malformed_name_is_refused_before_anything_else(hub, run, name):
    refused(luthier("push", run, name), "push requires a repository as OWNER/NAME", "Write it like me/my-model")
    assert hub[0] == {}


def test_what_is_no_run_or_has_no_such_part_is_refused(hub, run, tmp_path):
    refused(luthier("push", tmp_path / "none", REPO), "a finished run (model/)", "luthier run")
    for path in (run / "model").iterdir():
        path.unlink()
    refused(luthier("push", run, REPO), "ready", "weights (*.safetensors)")
    (run / "model").rmdir()
    refused(luthier("push", run, REPO), "model/", "Push the adapter with --what adapter")
    refused(luthier("push", run, REPO, "--what", "all"), "push --what requires model or adapter; got 'all'")
    assert hub[0] == {}


def test_a_link_that_leads_out_of_the_folder_is_never_followed(hub, run, tmp_path):
    (tmp_path / "secret").write_text("x")
    (run / "model" / "notes.txt").symlink_to(tmp_path / "secret")
    refused(luthier("push", run, REPO), "notes.txt, a link that leads out of it")
    assert hub[0] == {}


def test_a_public_repository_is_refused_unless_asked_for(hub, run):
    seen, plays = hub
    plays.update(exists=True, is_public=True, files=["old.bin", "README.md"])
    refused(luthier("push", run, REPO), "which is public", "Add --public")
    assert "commit" not in seen
    ran = luthier("push", run, REPO, "--public")
    assert ran.code == 0, ran.err
    assert "1 file that is there already stays, such as old.bin" in ran.out


@pytest.mark.parametrize(("code", "words"), [(401, "Log in with a token"), (403, "may write"), (500, "answer 500")])
def test_answers_of_the_hub_become_sentences(hub, run, code, words):
    hub[1]["code"] = code
    refused(luthier("push", run, REPO), f"a hub that takes {REPO}", words)


def test_a_card_that_the_hub_refuses_and_a_hub_that_is_away(hub, run, monkeypatch):
    hub[1]["yaml"] = [{"message": '"license" must be one of the list'}]
    refused(luthier("push", run, REPO), "license")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(luthier("push", run, REPO), "a hub that can be reached", "HF_ENDPOINT")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(luthier("push", run, REPO), "offline mode")
