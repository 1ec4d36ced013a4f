"""The page of a plan in a real browser: Chromium, headless (skipped where it is not installed)."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import sim.cli
import sim.planner.study
import sim.planner.traffic

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: the page is not looked at (`apt install chromium` installs one)"
)
SCENARIO = """\
name: <b>toy</b> & co
model: meta-llama/Llama-3.2-1B
hardware: l4
workload:
  num_requests: 300
  arrival: {kind: poisson, rate: 20}
  input_tokens: {kind: uniform, min: 100, max: 600}
  output_tokens: {kind: uniform, min: 1, max: 40}
engine: {max_model_len: 8192}
slo: {ttft_p99_ms: 500, tpot_p99_ms: 50}
"""
PROBE = """
<script>
addEventListener("load", () => {
  const first = table => [...document.querySelectorAll(`#${table} tbody tr`)].map(row => row.cells[0].textContent);
  const column = (table, n) => [...document.querySelectorAll(`#${table} tbody tr`)].map(
    row => Number(row.cells[n].dataset.value));
  const click = (table, n) => document.querySelectorAll(`#${table} th button`)[n].click();
  const seen = {title: document.querySelector("h1").textContent, before: first("plan")};
  click("plan", 3); seen.up = column("plan", 3);
  click("plan", 3); seen.down = column("plan", 3);
  click("plan", 0); seen.names = first("plan");
  seen.sorted = document.querySelector("#plan th").getAttribute("aria-sort");
  seen.figures = Object.fromEntries([...document.querySelectorAll("figure")].map(figure => {
    const box = figure.querySelector("svg").getBoundingClientRect();
    return [figure.id, [box.width, box.height, figure.querySelectorAll("path").length]];
  }));
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  seen.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small plan over three GPUs, with every section."""
    directory = tmp_path_factory.mktemp("plan")
    (directory / "toy.yaml").write_text(SCENARIO)
    options = ["--seeds", "2", "--duration", "5", "--uncertainty", "2", "--jobs", "1", "--out", str(directory / "out")]
    chosen = ["--hardware", "l4,a40,l40s", "--rate", "40"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.planner.traffic, "LEAST_REQUESTS", 200)
        patch.setattr(sim.planner.study, "LOADS", (0.3, 0.7, 1.0, 1.3))
        assert sim.cli.call(["plan", str(directory / "toy.yaml"), *chosen, *options]) == 0
    return directory / "out" / "plan.html"


def browser(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Chromium without a window, without the network."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]  # fmt: skip
    command = [str(CHROMIUM), *flags, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probed(page: Path, width: int) -> tuple[dict[str, Any], str]:
    """What a script in the page sees at a window's width, and what the browser logged."""
    copy = page.with_name(f"probe-{width}.html")
    copy.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    done = browser(copy, f"--window-size={width},900", "--dump-dom")
    match = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(match[1]))
    return seen, done.stderr


@pytest.mark.parametrize("width", [500, 1280])
def test_the_page_in_a_browser(page: Path, width: int) -> None:
    """No console error, nothing loaded, every figure drawn, tables sorted by a click, no sideways scrolling."""
    seen, log = probed(page, width)
    assert "CONSOLE" not in log
    assert seen["title"] == "<b>toy</b> & co" and seen["loaded"] == []
    assert set(seen["figures"]) >= {"latency_rate", "pareto", "cost", "limits", "kv_memory"}
    assert all(w > 200 and h > 50 and paths > 10 for w, h, paths in seen["figures"].values())
    assert len(seen["before"]) == 3 and seen["up"] == sorted(seen["up"]) and seen["down"] == sorted(seen["up"])[::-1]
    assert seen["names"] == sorted(seen["before"]) and seen["sorted"] == "ascending"
    assert seen["width"][0] <= seen["width"][1]


def test_the_page_on_paper(page: Path) -> None:
    """It prints, to a handful of pages."""
    paper = page.with_name("plan.pdf")
    browser(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert paper.read_bytes().startswith(b"%PDF") and 2 <= pages <= 12


def test_the_sections_of_the_page(page: Path) -> None:
    """Answer, plan, curves, cost, limits, command, assumptions and every configuration are there, in this order."""
    text = page.read_text()
    heads = ["id=\"answer\"", "<h2>Plan", "latency_rate", "pareto", "<h2>Cost", "<h2>What limits", "<h2>Start it",
             "vllm serve", "<h2>Assumptions and trust", "<h2>Every configuration"]  # fmt: skip
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    assert "Trust: datasheet" in text and "per GPU-hour" in text
    assert not re.search(r"(src|href)=\"https?:", text)
