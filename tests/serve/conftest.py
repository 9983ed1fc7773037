"""A browser for the tests of the pages."""

from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture(scope="module")
def chromium():
    """Starts browsers of the system's Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:

        def start(*words: str):
            arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", *words]
            return playwright.chromium.launch(executable_path=program, args=arguments)

        yield start


@pytest.fixture(scope="module")
def own():
    """A service of a tiny captioner."""
    from served import captioner, service

    found = service(captioner())
    yield found
    found.close()


@pytest.fixture(scope="session")
def shot():
    """Takes a picture of a page for people to look at, where ALIGNCAP_SHOTS names a folder."""

    def take(page, name: str) -> None:
        if folder := os.environ.get("ALIGNCAP_SHOTS"):
            page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    return take
