"""The report in a real browser: the viewer shows the asset, in both schemes, on a phone as well."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.live_page import live_page
from studio.report import write_gallery, write_report
from studio.run_folder import RunFolder, create_run
from tests.studio.chromium import Browser, Page, find_chromium
from tests.studio.test_report import PROMPT, fill

WIDE, PHONE = (1200, 900), (390, 844)
LOADED = """new Promise((resolve) => {
  const ready = () => {
    const viewer = document.querySelector("model-viewer");
    if (!viewer || !viewer.addEventListener) return setTimeout(ready, 100);
    viewer.autoRotate = false;
    viewer.addEventListener("error", (event) => resolve("error: " + event.detail.type));
    if (viewer.loaded) return resolve("load");
    viewer.addEventListener("load", () => resolve("load"));
  };
  ready();
})"""
CANVAS = """new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(
  () => resolve(document.querySelector("model-viewer").toDataURL("image/png")))))"""
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no chromium, chromium-browser or google-chrome on the path",
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with Browser.start(find_chromium(), tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A run with everything a finished one has."""
    out = tmp_path_factory.mktemp("runs")
    return fill(create_run(out, prompt=PROMPT, method="demo", seed=3, info={}))


@pytest.fixture(scope="module")
def report(run) -> Path:
    """Its report."""
    return write_report(run)


def opened(browser: Browser, path: Path, size: tuple[int, int], scheme: str) -> Page:
    """The report, once the viewer has loaded the asset."""
    page = browser.open(path.resolve().as_uri(), width=size[0], height=size[1], scheme=scheme)
    page.evaluate("new Promise((r) => document.readyState === 'complete' ? r() : onload = r)")
    assert page.evaluate(LOADED) == "load"
    return page


def canvas(page: Page) -> np.ndarray:
    """The viewer's own picture, with transparency, [h, w, 4] in 0..1."""
    data = page.evaluate(CANVAS).partition(",")[2]
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    return np.asarray(image, dtype=np.float32) / 255.0


def redness(picture: np.ndarray) -> float:
    """Share of clearly red pixels: the asset is red, and nothing else on the page is."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return float(((red > 1.6 * green) & (red > 1.6 * blue) & (red > 0.25)).mean())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_viewer_shows_the_asset(browser, report, size, scheme):
    page = opened(browser, report, size, scheme)
    picture = canvas(page)
    covered = float((picture[..., 3] > 0.5).mean())
    assert 0.02 < covered < 0.9
    assert redness(picture) > 0.5 * 0.02
    shown = page.screenshot() / 255.0
    _keep(shown, f"report-{scheme}-{size[0]}")
    assert redness(shown) > 0.01
    channels = [int(part) for part in page.evaluate(BACKGROUND)[4:-1].split(",")]
    assert (max(channels) < 60) if scheme == "dark" else (min(channels) > 200)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.errors() == []


def test_the_theme_button_and_the_sides_work(browser, report):
    page = opened(browser, report, WIDE, "light")
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    before = canvas(page)
    page.evaluate(
        "[...document.querySelectorAll('.turns button')].find((b) => b.textContent == 'Back')"
        ".click(); document.querySelector('model-viewer').jumpCameraToGoal()"
    )
    assert np.abs(canvas(page) - before).mean() > 0.01
    assert page.errors() == []


def test_a_gallery_fits_a_phone(browser, run, report, tmp_path):
    other = create_run(tmp_path, prompt="a red duck", method="demo", seed=0, info={})
    path = write_gallery([run, other], tmp_path / "gallery.html")
    page = browser.open(path.as_uri(), width=PHONE[0], height=PHONE[1], scheme="light")
    page.evaluate("new Promise((r) => document.readyState === 'complete' ? r() : onload = r)")
    assert page.evaluate("document.querySelectorAll('article').length") == 2
    assert page.evaluate(OVERFLOW) <= 0
    assert page.errors() == []


def test_the_live_page_follows_a_run(browser, run):
    run.update_info({"status": "running"})
    with live_page(run, port=0) as address:
        page = browser.open(address, width=WIDE[0], height=WIDE[1], scheme="light")
        shown = page.evaluate(
            """new Promise((resolve) => { const look = () => {
              const image = document.getElementById("preview");
              if (image && image.naturalWidth && document.querySelector(".chart"))
                resolve(document.getElementById("status").textContent);
              else setTimeout(look, 100);
            }; look(); })"""
        )
        _keep(page.screenshot() / 255.0, "live")
        assert shown.startswith("Step 100 of ")
        assert "stage shape" in shown
        assert page.evaluate("document.querySelectorAll('.chart').length") == 2
        assert page.evaluate(OVERFLOW) <= 0
        assert [e for e in page.errors() if "favicon" not in e] == []
    run.update_info({"status": "done"})


def _keep(picture: np.ndarray, name: str) -> None:
    """Write a screenshot where ``STUDIO_SCREENSHOTS`` says, to be looked at."""
    folder = os.environ.get("STUDIO_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 255).astype(np.uint8)).save(Path(folder) / f"{name}.png")
