"""An S3 for tests that listens on this machine: one server a test process, a bucket for each test."""

from __future__ import annotations

import atexit
import logging
from functools import lru_cache
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
}


def bucket_url(monkeypatch: pytest.MonkeyPatch, prefix: str = "fleet") -> str:
    """Make a bucket and return its URL; the credentials for it are in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    endpoint, name = s3_endpoint(), f"tests-{uuid4().hex[:16]}"
    httpx.put(f"{endpoint}/{name}").raise_for_status()
    return f"s3://{name}/{prefix}?endpoint={quote(endpoint, safe='')}"


@lru_cache(maxsize=1)
def s3_endpoint() -> str:
    """Return the address of this process's S3; the test is skipped where none can run."""
    moto = pytest.importorskip("moto.server", reason="no S3 here: pip install 'moto[server]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"
