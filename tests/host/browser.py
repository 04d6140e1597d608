"""A headless Chromium for the tests of pages: what a reader sees, and axe-core's word on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from events import HANG_S

WIDTHS = {"phone": (375, 812), "desk": (1920, 1080)}
SCHEMES = ("light", "dark")


def find_chromium() -> str | None:
    """The distribution's browser: a download of Playwright's own is not asked for."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A Playwright browser; skips the test, and says why, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install .[dev])")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def page(opened: Any, url: str, width: str = "desk", scheme: str = "light") -> Iterator[Any]:
    """A page at one width and in one scheme; fails the test on an error, or on a request that leaves the machine."""
    size = WIDTHS[width]
    context = opened.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    context.set_default_timeout(1000 * HANG_S)
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(f"script: {error}"))
    found.on("console", lambda line: problems.append(f"console: {line.text}") if line.type == "error" else None)
    found.on("request", lambda request: problems.append(f"asked for {request.url}") if _away(request.url) else None)
    try:
        found.goto(url)
        yield found
        assert problems == []
    finally:
        context.close()


def _away(url: str) -> bool:
    return not url.startswith(("file:", "data:", "http://127.0.0.1:"))


def serious(found: Any) -> list[str]:
    """What axe-core calls serious or critical, as `rule: help (target)`, over WCAG 2 and its best practices."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(found).response["violations"]
    return [
        f"{each['id']}: {each['help']} ({each['nodes'][0]['target']}, {len(each['nodes'])} places)"
        for each in violations
        if each["impact"] in ("serious", "critical")
    ]


def overflows(found: Any) -> float:
    """By how many px the page is wider than its window."""
    return float(found.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def shots(opened: Any, path: Path, folder: Path, schemes: Sequence[str] = SCHEMES) -> list[Path]:
    """Screenshots at both widths and in both schemes, to be looked at."""
    made = []
    for width in WIDTHS:
        for scheme in schemes:
            with page(opened, path.as_uri(), width, scheme) as found:
                made.append(folder / f"{path.stem}-{width}-{scheme}.png")
                found.screenshot(path=str(made[-1]))
    return made
