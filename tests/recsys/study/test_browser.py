"""The reports in a real browser, as wide as a desk's and as a phone's screen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.study.daily_page import render_daily
from recsys.study.daily_report import build_daily
from recsys.study.report import build_report
from recsys.study.report_page import render_page
from tests.recsys.study.daily_example import example_daily
from tests.recsys.study.example import example_results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

_PROBE = """<script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("svg, img")].map(x => x.getBoundingClientRect().width);
  const root = document.documentElement;
  parent.postMessage(JSON.stringify({
    text: document.body.innerText, width: innerWidth, scrolled: root.scrollWidth,
    drawn: boxes.filter(width => width > 50).length
  }), "*");
});
</script>"""
_FRAME = """<!doctype html><pre id="told"></pre>
<script>addEventListener("message", told => {{ document.getElementById("told").textContent = told.data; }});</script>
<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>"""


def seen(page: str, width: int, folder: Path) -> dict[str, Any]:
    """What a reader has before him: the text that is shown, the width of the window and of the page, plots drawn."""
    (folder / "page.html").write_text(page.replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(_FRAME.format(width=width), encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom"]
    dom = subprocess.run(
        [*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, check=True, timeout=600
    ).stdout
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert told, "the page's script has told nothing"
    return json.loads(html.unescape(told))


def figures(document: dict[str, Any]) -> list[str]:
    """What a reader looks for: every arm's AUC and entropy, the verdict, what retrieval and transfer come to."""
    found = [document["verdict"]["sentence"]]
    for arms in document["tasks"].values():
        found += [f"{entry[key]:.4f}" for entry in arms.values() for key in ("auc", "ne")]
    for upstreams in document.get("transfer", {}).values():
        found += [f"{entry['ratio']:.2f}" for entry in upstreams.values() if entry["ratio"] is not None]
    return found


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize(
    ("document", "render"),
    [
        (lambda: build_report(example_results(), samples=20), render_page),
        (lambda: build_daily(example_daily(), samples=20), render_daily),
    ],
    ids=["report", "daily"],
)
def test_a_reader_finds_the_figures(
    document: Callable[[], dict[str, Any]], render: Callable[[dict[str, Any]], str], width: int, tmp_path: Path
) -> None:
    made = document()
    page = seen(render(made), width, tmp_path)
    text = " ".join(page["text"].split())
    missing = [figure for figure in figures(made) if " ".join(figure.split()) not in text]
    assert not missing
    assert page["width"] == width
    assert page["scrolled"] <= width, "the page is wider than the screen: only its tables may be scrolled"
    assert page["drawn"] >= 3
