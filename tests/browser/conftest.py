"""A server process over a run with long rollouts, and pages of a headless Chromium that may not complain."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.reading_run import ReadingRun, write_many, write_reading_run

TOKEN = "token-of-the-browser-test"
OUT = ROOT / "build" / "browser"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LONG_WORDS = 17_000
"""Words of the long rollouts: 20,000 tokens in English, and more in Chinese."""


def find_browser() -> str:
    """The browser of the environment variable BROWSER, else a Chromium of the system."""
    names = [os.environ.get("BROWSER", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("no browser: apt-get install chromium, or BROWSER=PATH make test-browser", pytrace=False)
    return found


@pytest.fixture(scope="session")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("no playwright: make test-browser installs it, or pip install -e '.[browser]'", pytrace=False)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield found
        found.close()


@contextmanager
def serving(*roots: Path):
    """The address of an `lwz ui` process, once it has said it."""
    environment = os.environ | {"LWZ_UI_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-u", "-m", "megatron_lwz.cli.ui", *map(str, roots)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in process.stdout if line.startswith("http")).partition("/?")[0]
        yield address
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    return write_reading_run(tmp_path_factory.mktemp("runs") / "novels", words=LONG_WORDS, more=60)


@pytest.fixture(scope="session")
def server(long_run, tmp_path_factory):
    other = ReadingRun(tmp_path_factory.mktemp("runs") / "other", name="another run")
    for step in range(1, 8):
        other.add_step(step, entropy=1.0)
    other.close()
    with serving(long_run, other.root) as address:
        yield address


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """The address of a server over a run with 5,000 rollouts, just started: it still indexes."""
    with serving(write_many(tmp_path_factory.mktemp("runs") / "many")) as address:
        yield address


@pytest.fixture
def open_page(browser, server):
    """Opens pages: `open_page("/path", phone=True, dark=True)`. Any message on a console fails the test."""
    contexts, said = [], []

    def open_it(path: str, *, phone: bool = False, dark: bool = False, address: str = server, **options):
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(f"{path}: {message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"{path}: {error}"))
        page.on(
            "request", lambda request: request.url.startswith(address) or said.append(f"{path}: asks {request.url}")
        )
        place, mark, fragment = path.partition("#")
        page.goto(f"{address}{place}{'&' if '?' in place else '?'}token={TOKEN}{mark}{fragment}")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert said == []


def until(page, expression: str, argument: object = None, seconds: float = 20.0) -> None:
    """Waits until a JavaScript expression, or a function of `argument`, is true. Playwright's own wait needs `eval`."""
    deadline = time.monotonic() + seconds
    code = expression if "=>" in expression[:20] else f"() => Boolean({expression})"
    while not page.evaluate(code, argument):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(50)


@pytest.fixture(scope="session")
def measured():
    """Figures that the tests measure; written to build/browser/measured.json."""
    found: dict[str, object] = {}
    yield found
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "measured.json").write_text(json.dumps(found, indent=2) + "\n")
