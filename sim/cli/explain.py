"""`roofserve explain`: what a run, a step or a kernel is made of, what bounds it, and what would change it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sim.cost.explain_kernel import KINDS
from sim.errors import ConfigError
from sim.explain.step import calibration_of, explained_kernel, explained_step
from sim.scenario import load_scenario, parse_setting
from sim.specs.hardware import load_gpu

_SIZE_HELP = "Another size of the kernel, such as heads=32 (repeatable)."
_STEP_OPTIONS: Mapping[str, int] = {"sequences": 32, "context": 1000, "prompt": 0}
_COUNT = click.IntRange(0)


@click.command()
@click.argument("scenario", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@click.option("--waterfall", is_flag=True, help="From a naive server to everything on, one technique at a time.")
@click.option("--no-changes", is_flag=True, help="Take the run apart, and try no changes.")
@click.option("--requests", default=1000, show_default=True, type=click.IntRange(1), metavar="N",
              help="Requests of each of the many runs behind changes and waterfall.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes for those runs [default: all cores]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write page, figures and JSON here.")
@click.option("--sequences", type=_COUNT, help="One step: decoding sequences  [default: 32]")
@click.option("--context", type=_COUNT, help="One step: context of each, in tokens  [default: 1000]")
@click.option("--prompt", type=_COUNT, help="One step: prompt tokens  [default: 0]")
@click.option("--kernel", type=click.Choice(list(KINDS)), help="One kernel instead of a scenario.")
@click.option("--hardware", help="GPU profile of the kernel.")
@click.option("-m", type=click.IntRange(1), help="Rows of a gemm: tokens.")
@click.option("-n", type=click.IntRange(1), help="Columns of a gemm's weight matrix.")
@click.option("-k", type=click.IntRange(1), help="Rows of a gemm's weight matrix.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help=_SIZE_HELP)
@click.option("--dtype", help="Number format: bf16, fp8, fp8_block, w4a16, ...  [default: the kind's usual one]")
@click.option("--stack", default="vllm", show_default=True, help="Software stack whose kernel is meant.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the roofline of a gemm here (PNG).")
@click.option(
    "--measurements", type=click.Path(path_type=Path, dir_okay=False), help="GEMM table with measured points."
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def explain(scenario: str | None, kernel: str | None, form: str, **options: Any) -> None:
    """Explain a run of SCENARIO: operators and roofs, where requests' time went, the bound, the next best change.

    With --sequences, --context or --prompt one step instead, with --kernel one kernel.

    \b
    Examples:
      roofserve explain quickstart --out out/explained
      roofserve explain quickstart --no-changes --format json
      roofserve explain quickstart --waterfall --requests 300 --out out/waterfall
      roofserve explain quickstart --set hardware=a100-sxm-80gb --set workload.arrival.rate=6
      roofserve explain quickstart --sequences 64 --context 1200 --prompt 512
      roofserve explain --kernel gemm --hardware h100-sxm -m 64 -n 8192 -k 8192 --dtype fp8
      roofserve explain --kernel decode --hardware a100-sxm-80gb --size sequences=32 --size context=2000 \\
          --size heads=32 --size kv_heads=8
    """
    if (kernel is None) == (scenario is None):
        raise ConfigError("name a SCENARIO, or a --kernel with its --hardware", key="explain")
    if kernel is not None:
        _show(_kernel(kernel, options), form, _print_rows)
    elif any(options[name] is not None for name in _STEP_OPTIONS):
        sizes = {name: options[name] if options[name] is not None else usual for name, usual in _STEP_OPTIONS.items()}
        loaded = load_scenario(str(scenario), _settings(options))
        found = explained_step(loaded, sizes["sequences"], sizes["context"], sizes["prompt"])
        _show(found, form, _print_rows)
    else:
        _run(str(scenario), options, form)


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(parse_setting(text) for text in options["settings"])


def _show(found: dict[str, Any], form: str, print_: Callable[[dict[str, Any]], None]) -> None:
    if form == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        print_(found)


def _run(scenario: str, options: Mapping[str, Any], form: str) -> None:
    """A whole run, or the waterfall: simulated, shown, and written if there is a directory for it."""
    from sim.explain.changes import CHANGES  # not before a run is asked for: small commands answer at once
    from sim.explain.load import Case
    from sim.explain.run import explain_run
    from sim.explain.waterfall import waterfall

    case = Case(scenario, _settings(options), options["requests"])
    with _progress(case.loaded.scenario.name) as on_progress:
        heard = {"jobs": options["jobs"], "on_progress": on_progress}
        if options["waterfall"]:
            found: Any = waterfall(case, **heard)
        else:
            found = explain_run(case, changes=() if options["no_changes"] else CHANGES, **heard)
    _show(found.as_dict(), form, _print_waterfall if options["waterfall"] else _print_run)
    if options["out"] is not None:
        page = _write(found, options["out"], options["waterfall"])
        click.echo(f"Page: {page}", err=form == "json")


def _write(found: Any, directory: Path, is_waterfall: bool) -> Path:
    from sim.explain.page import write_explanation, write_waterfall  # matplotlib

    try:
        return write_waterfall(found, directory) if is_waterfall else write_explanation(found, directory)
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror})", file="--out", key=str(directory)) from error


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name or "simulating", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_run(found: Mapping[str, Any]) -> None:
    from sim.explain.tables import explanation_tables, sentences, skipped_lines

    console = Console()
    for label in ("Model", "Hardware", "Workload", "Trust"):
        console.print(f"{label}: {found['setting'].get(label, '')}", highlight=False)
    _print_notes(console, found)
    _print_tables(sentences(found), explanation_tables(found), skipped_lines(found))


def _print_notes(console: Console, found: Mapping[str, Any]) -> None:
    for note in found.get("notes", ()):
        console.print(f"Note: {note}", highlight=False, markup=False)


def _print_waterfall(found: Mapping[str, Any]) -> None:
    from sim.explain.tables import skipped_lines, waterfall_sentences, waterfall_tables

    _print_tables(waterfall_sentences(found), waterfall_tables(found), skipped_lines(found))


def _print_tables(lines: Sequence[str], tables: Iterable[Any], skipped: Sequence[str]) -> None:
    console = Console()
    for text in tables:
        table = Table(title=text.title, title_style="bold", title_justify="left", box=None, header_style="bold")
        for i, heading in enumerate(text.headings):
            longest = max([len(word) for row in text.rows for word in row[i].split()], default=0)
            table.add_column(heading, justify="left" if i < text.words else "right", min_width=longest)
        for row in text.rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    if skipped:
        console.print(f"Not tried: {'; '.join(skipped)}.", highlight=False)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _kernel(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    if not options["hardware"]:
        raise ConfigError("is required with --kernel", key="--hardware")
    gpu = load_gpu(options["hardware"])
    sizes = {name: options[name] for name in ("m", "n", "k") if options[name] is not None}
    sizes |= dict(_size(text) for text in options["sizes"])
    found = explained_kernel(gpu, kind, sizes, options["dtype"], options["stack"])
    if options["plot"] is not None:
        _plot(kind, sizes, options, calibration_of(gpu)[0])
    return found


def _plot(kind: str, sizes: dict[str, int], options: dict[str, Any], constants: Any) -> None:
    from sim.validation.figures import save_gemm_roofline  # matplotlib: only when something is drawn

    if kind != "gemm":
        raise ConfigError("draws gemms only", key="--plot")
    name = options["dtype"] or KINDS[kind].dtype
    save_gemm_roofline(constants, sizes, (name, options["stack"]), options["plot"], options["measurements"])


def _size(text: str) -> tuple[str, int]:
    name, value = parse_setting(text)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError("expected a whole number", key=f"--size {name}", value=value)
    return name, value


def _print_rows(found: Mapping[str, Any]) -> None:
    console = Console()
    console.print(found["title"], highlight=False)
    if "interval_us" in found:
        low, high = found["interval_us"]
        console.print(
            f"90 % between {low:,.2f} and {high:,.2f} us; constants fitted to {found['source']}", highlight=False
        )
    _print_notes(console, found)
    table = Table(box=None, header_style="bold")
    for name, value in found["rows"][0].items():
        text = isinstance(value, str)
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
