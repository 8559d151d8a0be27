"""A hub that cannot be reached is told from one that can, before its client starts to try again and again."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from datasets import config
from huggingface_hub import constants

from luthier.core import hub as module
from luthier.core.errors import DataError, ModelError
from luthier.core.hub import hub, unreachable
from luthier.data.formats import load
from luthier.models.loading import load_config, load_tokenizer, snapshot


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    module._why.cache_clear()
    yield
    module._why.cache_clear()


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> str:
    """The endpoint of a hub that nobody can reach."""
    endpoint = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    return endpoint


def test_a_port_that_listens_is_reached_and_a_closed_one_is_not(open_port: int, closed_port: int):
    assert unreachable(f"http://127.0.0.1:{open_port}") == ""
    assert unreachable(f"http://127.0.0.1:{closed_port}").endswith("cannot be reached (Connection refused)")


def test_a_proxy_is_the_door_where_one_is_set(open_port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{open_port}")
    assert unreachable("http://hub.invalid") == ""
    assert unreachable(f"http://127.0.0.1:{closed_port}") == ""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert unreachable(f"http://127.0.0.1:{closed_port}")


def test_a_network_that_swallows_everything_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch):
    def swallow(address: object, seconds: float) -> None:
        time.sleep(1)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallow)
    began = time.monotonic()
    assert unreachable("http://127.0.0.1:1", 0.2) == "http://127.0.0.1:1 cannot be reached (no connection within 0.2 s)"
    assert time.monotonic() - began < 0.9


def test_within_only_downloads_are_looked_at_and_afterwards_all_is_as_before(lost: str):
    seen: list[object] = []

    def fail() -> None:
        with hub("owner/name") as why:
            seen.extend((why.startswith(lost), constants.is_offline_mode(), config.HF_HUB_OFFLINE))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [True, True, True]
    assert not constants.is_offline_mode()
    assert not config.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked_and_a_chosen_offline_mode_stays(
    lost: str, open_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{open_port}")
    with hub("owner/name") as why:
        assert (why, constants.is_offline_mode()) == ("", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(module, "unreachable", lambda *a: pytest.fail("asked"))
    with hub("owner/name") as why:
        assert (why, constants.is_offline_mode()) == ("", True)


@pytest.mark.parametrize("call", [load_config, snapshot])
def test_a_model_fails_at_once_in_one_sentence(call, lost: str, caplog: pytest.LogCaptureFixture):
    began = time.monotonic()
    with pytest.raises(ModelError) as fault:
        call("some-org/some-model")
    assert str(fault.value) == (
        "model 'some-org/some-model' requires a model folder or a reachable hub name; got no such folder here, and "
        f"{lost} cannot be reached (Connection refused), with none downloaded before. Check the name or the network."
    )
    assert time.monotonic() - began < 5
    assert "Retrying" not in caplog.text


def test_data_and_tokenizers_fail_at_once_too(lost: str, caplog: pytest.LogCaptureFixture):
    began = time.monotonic()
    with pytest.raises(DataError, match=f"no such path here, and {lost} cannot be reached .*, with none downloaded"):
        load("some-org/some-data")
    with pytest.raises(ModelError, match="some-org/some-model"):
        load_tokenizer("some-org/some-model")
    assert time.monotonic() - began < 8
    assert "Retrying" not in caplog.text
