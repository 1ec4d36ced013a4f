"""The files of a report: figures, page and summary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest

from sim.report.evidence import Evidence
from sim.report.figures import KINDS, drawn
from sim.report.html import render_page
from sim.report.style import COLOURS, inline_svg, svg_text
from sim.report.write import write_report
from sim.results import RunResult

Runs = Callable[..., RunResult]
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Tags(HTMLParser):
    """Checks that tags nest, and collects ids, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: Path) -> Tags:
    """The page, read by a parser that insists on nesting."""
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    return tags


def reported(toy_run: Runs) -> RunResult:
    """The run of the report that most tests look at."""
    return toy_run(n=120, slo={"ttft_p99_ms": 500, "tpot_p99_ms": 5})


@pytest.fixture(scope="module")
def page(toy_run: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One written report."""
    return write_report(reported(toy_run), tmp_path_factory.mktemp("report"), timeline=True)


def test_report_writes_every_file(page: Path) -> None:
    """Each figure as PNG and SVG, and no partial file left behind."""
    files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
    figures = {f"figures/{kind.name}.{suffix}" for kind in KINDS for suffix in ("png", "svg")}
    assert files == figures | {"report.html", "summary.json", "timeline.json.gz"}


def test_page_is_self_contained_and_well_formed(page: Path) -> None:
    """Nothing is loaded from anywhere, every reference resolves inside the page, and no id occurs twice."""
    tags = parsed(page)
    assert all(link.startswith("#") and link[1:] in tags.ids for link in tags.links)
    assert len(tags.ids) == len(set(tags.ids))
    assert not re.search(r"<script|@import|url\((?!#)", page.read_text())


def test_page_states_answer_before_figures(page: Path) -> None:
    """Regime, trust and objectives come first; scenario and provenance are at hand."""
    text = parsed(page).text
    places = [text.index(words) for words in ("STABLE", "extrapolated", "Objectives", "Latency", "Figures")]
    assert places == sorted(places)
    assert "max_num_seqs: 64" in text and "roofserve: 0.1.0" in text


def test_same_run_gives_the_same_bytes(page: Path, toy_run: Runs, tmp_path: Path) -> None:
    """No date, no random id, no order of a set in any file."""
    write_report(reported(toy_run), tmp_path, timeline=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert path.read_bytes() == (page.parent / path.relative_to(tmp_path)).read_bytes(), path.name


def test_names_from_the_scenario_are_escaped(toy_run: Runs, tmp_path: Path) -> None:
    """A scenario cannot smuggle markup into the page."""
    run = toy_run(n=2)
    run.manifest["scenario"]["name"] = "<script>alert(1)</script>"  # type: ignore[index]
    run.manifest["facts"]["notes"] = ["a < b & <b>bold</b>"]  # type: ignore[index]
    run.manifest["facts"]["breakdown"][0]["operator"] = "--><script>x</script>"  # type: ignore[index]
    evidence = Evidence.of(run)
    drawings = [(kind, svg_text(figure)) for kind, figure in drawn(evidence) if kind.name == "operator_time"]
    (tmp_path / "page.html").write_text(render_page(evidence, drawings))
    tags = parsed(tmp_path / "page.html")
    assert "script" not in tags.seen and "a < b & <b>bold</b>" in tags.text
    assert len(drawings) == 1


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 1}, {"n": 3, "patience_s": 0.0, "at_once": True}])
def test_odd_runs_give_a_page(toy_run: Runs, tmp_path: Path, options: dict[str, float]) -> None:
    """No request, one request, all at once, hardly any served: there is always a page to read."""
    page = write_report(toy_run(**options), tmp_path, timeline=True)
    assert "nan" not in parsed(page).text.lower().split()


def test_page_without_facts_still_renders(toy_run: Runs, tmp_path: Path) -> None:
    """A bare result, such as one built by hand in Python, lacks facts and scenario."""
    run = toy_run(n=20)
    page = write_report(RunResult(run.requests, run.steps, run.segments), tmp_path)
    assert "Time to First Token" in parsed(page).text
    assert not (tmp_path / "figures" / "kv_memory.svg").exists()


def test_figures_of_an_earlier_run_are_removed(toy_run: Runs, tmp_path: Path) -> None:
    """What the directory holds belongs to one run."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "queue.png").write_bytes(b"of an earlier run")
    write_report(toy_run(n=0), tmp_path)
    assert not (tmp_path / "figures" / "queue.png").exists()


def test_summary_file_is_the_summary(page: Path) -> None:
    """`summary.json` has the keys of `vllm bench serve` and ours."""
    summary = json.loads((page.parent / "summary.json").read_text())
    assert summary["completed"] == 120 and summary["slo"][0]["met"] is False
    assert {"p99_ttft_ms", "median_itl_ms", "request_goodput", "max_concurrent_requests", "regime"} <= set(summary)


def test_drawing_leaves_matplotlib_as_it_was(toy_run: Runs) -> None:
    """A user's own plots in the same process keep their style."""
    before = dict(mpl.rcParams)
    _, figure = next(drawn(Evidence.of(toy_run(n=20))))
    svg_text(figure)
    assert dict(mpl.rcParams) == before


def test_every_axis_has_a_label_with_a_unit(toy_run: Runs) -> None:
    """A number without a unit says nothing; only panels stacked on a common axis share one."""
    for kind, figure in drawn(Evidence.of(toy_run(n=40))):
        for axes in figure.axes:
            shared = axes.get_shared_x_axes().get_siblings(axes)
            assert any(a.get_xlabel() for a in shared), kind.name
            assert axes.get_ylabel() or kind.name in ("memory_map", "operator_time"), kind.name


def test_colours_of_one_figure_differ_in_print() -> None:
    """Stacked or crossing concepts keep apart in grey, by lightness."""

    def lightness(name: str) -> float:
        red, green, blue = (int(COLOURS[name][i : i + 2], 16) for i in (1, 3, 5))
        return (0.299 * red + 0.587 * green + 0.114 * blue) / 255

    for pair in (("kv", "free"), ("waiting", "running"), ("arrivals", "completions"), ("weights", "activations")):
        assert abs(lightness(pair[0]) - lightness(pair[1])) > 0.1, pair


def test_inlined_drawing_follows_the_page_colours(toy_run: Runs) -> None:
    """Ink becomes the page's text colour and paper disappears, for light and dark alike."""
    _, figure = next(drawn(Evidence.of(toy_run(n=20))))
    inline = inline_svg(svg_text(figure), "x", "title")
    assert "currentColor" in inline and "#1a1a1a" not in inline and "#ffffff" not in inline
    assert not re.search(r'(url\(|href=")#(?!x-)', inline)
