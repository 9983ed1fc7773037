"""Candidates of made clips, and a stub of an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stub_server import Stub
from synthetic_candidates import KEY, make_candidates


@pytest.fixture
def candidates(tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: make_candidates(tmp_path, **options)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Stub()
    yield made
    made.close()
