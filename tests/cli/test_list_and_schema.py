"""`roofserve list` and `roofserve schema`: what can be named exists, and the schemas fit the shipped files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim import catalog
from sim.build import build
from sim.documents import load_yaml
from sim.scenario import load_scenario

LISTS = ("allocators", "formats", "hardware", "models", "presets", "quantization", "routers", "scenarios", "schedulers",
         "workloads")  # fmt: skip
KINDS = ("hardware", "preset", "scenario", "workload")
Command = Callable[..., Any]


def mistakes(schema: dict[str, Any], value: Any, root: dict[str, Any], at: str = "") -> Iterator[str]:
    """What JSON Schema (2020-12, the keywords our schemas use) says is wrong with a value."""
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        yield from mistakes(target, value, root, at)
    for word in ("anyOf", "oneOf"):
        branches = [list(mistakes(branch, value, root, at)) for branch in schema.get(word, ())]
        if branches and all(branches):
            yield min(branches, key=len)[0]
    if "type" in schema and not any(is_a(kind, value) for kind in listed(schema["type"])):
        yield f"{at}: {value!r} is not {schema['type']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, (int, float)) and value <= schema.get("exclusiveMinimum", -float("inf")):
        yield f"{at}: {value!r} is too small"
    if isinstance(value, dict):
        yield from mistakes_of_mapping(schema, value, root, at)
    for i, item in enumerate(value if isinstance(value, list) else ()):
        yield from mistakes(schema.get("items", {}), item, root, f"{at}.{i}")


def mistakes_of_mapping(schema: dict[str, Any], value: dict[str, Any], root: dict[str, Any], at: str) -> Iterator[str]:
    """The same for the keys of a mapping."""
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    yield from (f"{at}.{key} is missing" for key in schema.get("required", ()) if key not in value)
    for key, inner in value.items():
        if key in properties or isinstance(rest, dict):
            yield from mistakes(properties.get(key, rest), inner, root, f"{at}.{key}")
        elif rest is False:
            yield f"{at}.{key} is unknown"


def is_a(kind: str, value: Any) -> bool:
    """Whether a value has a JSON type."""
    if isinstance(value, bool):
        return kind == "boolean"
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    return isinstance(value, types.get(kind, ()))


def listed(kinds: Any) -> list[str]:
    """One type or several."""
    return kinds if isinstance(kinds, list) else [kinds]


@pytest.mark.parametrize("what", LISTS)
def test_a_list_is_for_people_and_for_machines(what: str, roofserve: Command) -> None:
    """Every list has rows, as a table and as JSON, with the same names in the first column and no empty cell there."""
    answer, machine = roofserve("list", what), roofserve("list", what, "--format", "json")
    assert (answer.code, answer.err, machine.code, machine.err) == (0, "", 0, "")
    rows = json.loads(machine.out)
    assert rows
    for row in rows:
        name, *rest = row.values()
        assert re.search(rf"^\s*{re.escape(name)}(\s|$)", answer.out, re.MULTILINE)
        assert rest and all(cell not in ("", None) for cell in rest[:1])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("what", LISTS)
def test_lists_fit_the_terminal(what: str, columns: int, roofserve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is torn apart, since it is there to be copied, and no number is cut; descriptions keep to the terminal.

    The longest model names alone need most of 80 columns: there the terminal wraps the numbers.
    """
    monkeypatch.setenv("COLUMNS", str(columns))
    answer = roofserve("list", what).out
    for row in json.loads(roofserve("list", what, "--format", "json").out):
        name, *cells = row.values()
        numbers = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells if is_a("number", cell)]
        line = next(line for line in answer.splitlines() if line.strip().split("  ")[0] == name)
        assert [number for number in numbers if number not in line.split()] == []
    if what != "models":
        assert max(len(line.rstrip()) for line in answer.splitlines()) <= columns


def test_a_list_in_a_pipe_keeps_its_rows_whole(roofserve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`roofserve list hardware | grep h100` finds one line for each GPU."""
    monkeypatch.delenv("COLUMNS")
    lines = roofserve("list", "hardware").out.splitlines()
    assert len(lines) == 1 + len(catalog.names("hardware"))


def test_what_is_listed_can_be_named(roofserve: Command) -> None:
    """The hardware, workloads, presets and scenarios of the lists are the shipped files."""
    for kind, what in (
        ("hardware", "hardware"),
        ("workload", "workloads"),
        ("preset", "presets"),
        ("scenario", "scenarios"),
    ):
        rows = json.loads(roofserve("list", what, "--format", "json").out)
        assert [row[kind] for row in rows] == catalog.names(kind)


def test_an_unknown_list_is_refused(roofserve: Command) -> None:
    """The answer names what can be listed."""
    answer = roofserve("list", "gpus")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "hardware" in answer.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_fits_every_shipped_file(kind: str, roofserve: Command) -> None:
    """An editor that uses the schema underlines nothing in the shipped files, and knows every key in them."""
    answer = roofserve("schema", kind)
    assert (answer.code, answer.err) == (0, "")
    schema = json.loads(answer.out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    for name in catalog.names(kind):
        # As JSON, where every key is a string, however YAML writes it.
        data = json.loads(json.dumps(yaml.safe_load(catalog.find(kind, name).read_text())))
        assert list(mistakes(schema, data, schema)) == [], name


@pytest.mark.parametrize(
    ("kind", "old", "new", "mistake"),
    [
        ("scenario", "hardware:", "hardwear:", ".hardware is missing"),
        ("scenario", "preset: vllm-v1", "scheduler: [x]", ".engine.scheduler: ['x'] is not"),
        ("scenario", "num_requests", "num_request", ".workload"),
        ("workload", "rate: 5.53", "rate: 0", ".arrival.rate: 0 is too small"),
        ("hardware", "sm_count", "smcount", ".sm_count is missing"),
        ("preset", "max_num_seqs: 256", "max_num_seqs: many", ".max_num_seqs: 'many' is not integer"),
    ],
)
def test_a_schema_sees_mistakes(kind: str, old: str, new: str, mistake: str, roofserve: Command) -> None:
    """What the command would refuse, the schema underlines."""
    names = {"scenario": "quickstart", "workload": "chat", "hardware": "h100-sxm", "preset": "vllm-v1"}
    text = catalog.find(kind, names[kind]).read_text()
    assert old in text
    schema = json.loads(roofserve("schema", kind).out)
    assert any(found.startswith(mistake) for found in mistakes(schema, yaml.safe_load(text.replace(old, new)), schema))


@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_of_a_schema_leads_somewhere(kind: str, roofserve: Command) -> None:
    """No definition is missing, and every key of the user's files is described."""
    schema = json.loads(roofserve("schema", kind).out)
    text = json.dumps(schema)
    assert {ref.split("/")[-1] for ref in re.findall(r'"\$ref": "([^"]+)"', text)} <= set(schema.get("$defs", {}))
    if kind in ("scenario", "workload"):
        assert [key for key, told in schema["properties"].items() if "description" not in told] == []


def test_a_scheduler_may_be_a_name_or_a_mapping(roofserve: Command) -> None:
    """Both spellings of a policy are valid in the editor."""
    schema = json.loads(roofserve("schema", "scenario").out)
    base = {"model": "m", "hardware": "h", "workload": "chat"}
    for scheduler in ("chunked", {"kind": "chunked"}):
        assert list(mistakes(schema, {**base, "engine": {"scheduler": scheduler}}, schema)) == []


@pytest.mark.parametrize("name", catalog.names("scenario"))
def test_every_shipped_scenario_can_be_built(name: str) -> None:
    """Model, GPU, traffic and engine of every shipped scenario exist and fit."""
    setup = build(load_scenario(name))
    assert setup.num_blocks > 0


@pytest.mark.parametrize("name", catalog.names("workload"))
def test_every_shipped_workload_can_be_served(name: str) -> None:
    """Every shipped workload suits a small model on one GPU, and says what it is and where its figures come from."""
    setup = build(load_scenario({"model": "meta-llama/Llama-3.1-8B", "hardware": "h100-sxm", "workload": name}))
    assert next(iter(setup.workload)).prompt_tokens > 0
    assert setup.spec.description
    assert setup.spec.source


@pytest.mark.parametrize("name", catalog.names("hardware"))
def test_every_shipped_gpu_serves_a_small_model(name: str) -> None:
    """A 1B model runs on every shipped GPU, in a type that the chip multiplies."""
    setup = build(load_scenario({"model": "meta-llama/Llama-3.2-1B", "hardware": name, "workload": "chat"}))
    assert setup.num_blocks > 1000
    assert setup.gpu.supports({"bfloat16": "bf16", "float16": "fp16"}[setup.engine.dtype])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list", "hardware"], ["list", "workloads"], ["list", "routers"],
                  ["schema", "scenario"], ["run", "--help"]],
)  # fmt: skip
def test_small_commands_start_without_the_heavy_libraries(arguments: list[str], tmp_path: Path) -> None:
    """Help, lists and schemas answer without loading pandas and matplotlib, which takes a second."""
    code = (
        "import sys, sim.cli\n"
        f"code = sim.cli.call({arguments!r})\n"
        "heavy = {'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_help_has_examples(roofserve: Command) -> None:
    """Every command shows a line one can copy."""
    assert "roofserve run quickstart" in roofserve("--help").out
    for command in ("run", "list", "schema"):
        assert f"  roofserve {command} " in roofserve(command, "--help").out


def test_shipped_files_have_a_first_line_for_people() -> None:
    """Every shipped YAML begins with a comment that says what it is."""
    for kind in ("hardware", "workload", "scenario", "preset"):
        for name in catalog.names(kind):
            path = catalog.find(kind, name)
            assert path.read_text().startswith("# "), path
            assert load_yaml(path).data
