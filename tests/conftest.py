"""Test session: no network, no display, nothing reported to anyone.

Two markers are registered in pyproject.toml. `slow` loads the real model or needs more than about five seconds; `e2e`
starts train.py as a user does and takes minutes. `make test` runs both; while editing, use
`pytest -m "not slow and not e2e"`.
"""

import os

# Read by the libraries when they are first imported, so this comes before every other import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"

import socket
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuse connections that leave this machine: a test that needs one would pass here and fail elsewhere."""
    connect = socket.socket.connect

    def guarded(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to connect to {address!r}; tests use no network")
        connect(sock, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
