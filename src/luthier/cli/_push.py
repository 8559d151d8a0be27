"""`luthier push`: a finished run to a hub, private unless asked otherwise; a dry run that only lists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from luthier.cli._run import quiet
from luthier.core.errors import ConfigError, OutputError, Refused, counted, sentence

KINDS = ("model", "adapter")


@dataclass(frozen=True)
class Load:
    """What would be sent. files: by name in the repository. card: the model card as sent. missing: what stands in the way.
    notes: what to know before it is public."""

    repo: str
    files: dict[str, Path]
    card: str
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def sizes(self) -> dict[str, int]:
        """Bytes by name, the card's included."""
        own = {name: path.stat().st_size for name, path in self.files.items()}
        return dict(sorted((own | ({"README.md": len(self.card.encode())} if self.card else {})).items()))


def push_run(folder: Path, repo: str, what: str, public: bool, dry_run: bool, message: str) -> None:
    """Send a run's merged model or adapter with its card, or list what would be sent."""
    quiet()
    load = collect(folder, repo, what)
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    for name, size in load.sizes().items():
        typer.echo(f"  {size:>14,} bytes  {name}")
    total, seen = sum(load.sizes().values()), "public" if public else "private"
    typer.echo(f"{counted(len(load.sizes()), 'file')}, {total:,} bytes, to the {seen} repository {repo} at {hub}")
    for note in load.notes:
        typer.echo(f"note: {note}")
    if dry_run:
        for fault in [*load.missing, *([] if _token() else [_NO_TOKEN])]:
            typer.echo(f"missing: {fault}")
        typer.echo("dry run: nothing was sent")
        return
    if load.missing:
        raise Refused(sentence("push", "a folder that is ready", load.missing[0], "Mend it, or look with --dry-run"))
    typer.echo(f"sent: {send(load, public, message)}")


_NO_TOKEN = "a token of the hub (set HF_TOKEN, or run `hf auth login`)"


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def check_repo(repo: str) -> None:
    """Raises ConfigError unless `repo` is a name that a hub takes, as owner/name or name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        required = "a repository as OWNER/NAME, of letters, digits and single - _ ."
        raise ConfigError(sentence("push", required, repr(repo), "Write it like me/my-model")) from fault


def collect(folder: Path, repo: str, what: str) -> Load:
    """What a run's folder gives for a repository. what: "model" (the merged weights) or "adapter".

    Raises ConfigError for a bad name, OutputError where there is no such part, Refused for a link that leads out of it.
    """
    check_repo(repo)
    if what not in KINDS:
        raise ConfigError(sentence("push --what", "model or adapter", repr(what), "Choose one of them"))
    inside = folder / what
    if not inside.is_dir():
        do = "Run `luthier run` first"
        if what == "model" and (folder / "adapter").is_dir():
            do = "Its README.md says why. Push the adapter with --what adapter"
        raise OutputError(sentence(f"folder {folder}", f"a finished run ({what}/)", "none", do))
    found = {f"{'' if what == 'model' else 'adapter/'}{name}": path for name, path in _files(inside)}
    card_at = inside / "README.md" if what == "model" else folder / "README.md"
    if what == "adapter" and (folder / "manifest.json").is_file():
        found["manifest.json"] = folder / "manifest.json"
    found.pop("README.md", None)
    missing = [] if any(n.endswith(".safetensors") for n in found) else ["weights (*.safetensors)"]
    card = card_at.read_text(encoding="utf-8") if card_at.is_file() else ""
    if not card:
        missing.append(f"a model card ({card_at.name})")
    return Load(repo, found, _renamed(card, repo), missing, _notes(card, found))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    top = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(top):
            do = "Put the file itself there, or remove the link"
            raise Refused(sentence("push", f"files inside {folder}", f"{name}, a link that leads out of it", do))
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            yield name, path


def _renamed(card: str, repo: str) -> str:
    """The card with the repository's name where it says the folder's."""
    found = re.search(r'from_pretrained\(("(?:[^"\\]|\\.)*")\)', card)
    if found is None:
        return card
    from luthier.report.modelcard import inline

    return card.replace(found[1], json.dumps(repo)).replace(f"# {inline(json.loads(found[1]))}\n", f"# {repo}\n", 1)


def _notes(card: str, files: dict[str, Path]) -> list[str]:
    """What a reader of the repository would see that was meant for this machine."""
    home = str(Path.home())
    texts = {"README.md": card} | {n: p.read_text(errors="replace") for n, p in files.items() if n == "manifest.json"}
    local = [n for n, text in texts.items() if (home != "/" and home in text) or str(Path.cwd()) in text]
    return [f"{name} names folders of this machine" for name in local]


def send(load: Load, public: bool, message: str) -> str:
    """Create the repository if needed and send everything in one commit; returns its address.

    A repository that exists must be as private as asked. Raises Refused or OutputError with what to do.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = _token()
    if token is None:
        raise Refused(sentence("push", _NO_TOKEN, "none", "Create one that may write at the hub's settings"))
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    files: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in sorted(load.files.items())]
    files.append(CommitOperationAdd("README.md", load.card.encode()))
    with _told(load.repo):
        repo = api.create_repo(load.repo, private=not public, exist_ok=True).repo_id
        info = api.model_info(repo)
        if not public and not info.private:
            required = "a private repository, or --public"
            raise Refused(
                sentence("push", required, f"{repo}, which is public", "Add --public, or choose another name")
            )
        stay = sorted({s.rfilename for s in info.siblings or []} - load.sizes().keys() - {".gitattributes"})
        if stay:
            kept = counted(len(stay), "file that is there already stays", "files that are there already stay")
            typer.echo(f"note: {kept}, such as {stay[0]}")
        return str(api.create_commit(repo, files, commit_message=message).commit_url)


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Faults of the hub and of the way to it as sentences."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    transport: Any = HfHubHTTPError.__bases__[0]  # the HTTP library below differs between versions of huggingface_hub
    try:
        yield
    except OfflineModeIsEnabled as fault:
        raise Refused(sentence("push", "the network", "offline mode (HF_HUB_OFFLINE)", "Unset it")) from fault
    except HfHubHTTPError as fault:
        code = fault.response.status_code if fault.response is not None else 0
        said = " ".join(str(fault.server_message or fault).split())[:200]
        do = {401: "Log in with a token that the hub knows", 403: "Use a token that may write there"}.get(
            code, "Try again"
        )
        raise OutputError(sentence("push", f"a hub that takes {repo}", f"answer {code} ({said})", do)) from fault
    except (transport, OSError) as fault:
        came = f"{type(fault).__name__}: {fault}"
        raise OutputError(
            sentence("push", "a hub that can be reached", came, "Check the network and HF_ENDPOINT")
        ) from fault
    except ValueError as fault:
        raise OutputError(
            sentence("push", f"a card and files that the hub takes for {repo}", str(fault), "Mend them")
        ) from fault
