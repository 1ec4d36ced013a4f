"""House rules that a machine can check: imports point down, and who may touch the clock, the GPU, the terminal."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sim"

# From the ground up. A file imports from levels below its own and from its own folder; names that share a level never
# import each other. A new file or folder gets a place here.
LEVELS = (
    ("errors",),
    ("units", "rng", "catalog"),
    ("documents",),
    ("specs",),
    ("cost",),
    ("request", "results"),
    ("sequences", "step", "prefix_groups", "predictors", "increments", "acceptance"),
    ("batch",),
    ("speculative_batch",),
    ("kv",),
    ("schedulers", "workloads"),
    ("engine",),
    ("token_times", "slo", "audit", "breakdown", "fairness", "guesses", "presets"),
    ("series",),
    ("regime",),
    ("latencies",),
    ("client",),
    ("metrics",),
    ("techniques",),
    ("tariff",),
    ("scenario",),
    ("kv_settings", "format_checks", "trust"),
    ("engine_settings", "written_workload", "model_formats", "pools"),
    ("drafting",),
    ("gpu_resources", "step_pricing", "speculative_settings"),
    ("policies",),
    ("setup",),
    ("build",),
    ("resolved",),
    ("run",),
    ("intervals",),
    ("planner",),
    ("imports",),
    ("report", "validation"),
    ("explain",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LEVELS) for name in names}

# Third-party modules with one home.
HOMES = {
    "simpy": ("engine",),
    "torch": ("validation",),
    "triton": ("validation",),
    "click": ("cli",),
    "rich": ("cli", "report"),
    "matplotlib": ("report", "explain", "validation"),
    "jinja2": ("report",),
    "joblib": ("planner", "intervals", "explain", "validation"),
    "ray": ("planner",),
}
# Optional extras and slow libraries may be imported where they are used; pandas takes longer than a small command. And
# commands may import what only some of their options need, such as figures.
DEFERRED = {"torch", "triton", "ray", "aiconfigurator_core", "pandas", "joblib", "scipy"}
# The only places that import by name, so that `--help` answers at once.
LAZY = {"__init__.py", "cli/__init__.py"}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    """A parsed file."""
    return ast.parse((PACKAGE / file).read_text(), filename=file)


def home(file: str) -> str:
    """The folder of a file, or the file's own name at the top."""
    return file.split("/")[0] if "/" in file else file.removesuffix(".py")


def imported(file: str) -> Iterator[tuple[str, ast.stmt]]:
    """Dotted names that a file imports; `from sim.kv import base` is `sim.kv.base`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            for alias in node.names:
                is_module = (PACKAGE.parent / node.module.replace(".", "/") / f"{alias.name}.py").exists()
                yield (f"{node.module}.{alias.name}" if is_module else str(node.module)), node


def functions(file: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    return (n for n in ast.walk(tree(file)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_file_has_a_level() -> None:
    """A new file or folder under `sim/` is given its place in the table above."""
    assert sorted({home(file) for file in FILES} - set(RANK)) == []


def test_imports_point_down() -> None:
    """No file imports from a level above its own, or from a neighbour on the same level."""
    upward = []
    for file in FILES:
        for name, node in imported(file):
            parts = name.split(".")
            if parts[0] != "sim":
                continue
            target = parts[1] if len(parts) > 1 else "__init__"
            if target != home(file) and RANK[target] >= RANK[home(file)]:
                upward.append(f"{file}:{node.lineno}: imports {name}")
    assert upward == []


def test_no_import_cycles_within_a_folder() -> None:
    """Files of one folder import each other in one direction only."""
    edges = {f: {f"{n.removeprefix('sim.').replace('.', '/')}.py" for n, _ in imported(f)} for f in FILES}
    done: set[str] = set()

    def visit(file: str, path: tuple[str, ...]) -> None:
        assert file not in path, f"cycle: {' -> '.join([*path, file])}"
        if file not in done:
            for target in sorted(edges[file] & set(FILES)):
                visit(target, (*path, file))
            done.add(file)

    for file in FILES:
        visit(file, ())


def test_libraries_stay_in_their_homes() -> None:
    """SimPy is the engine's, torch and Triton belong to validation, the terminal to the command line."""
    strays = []
    for file in FILES:
        for name, node in imported(file):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None and home(file) not in homes:
                strays.append(f"{file}:{node.lineno}: imports {name}")
    assert strays == []


def test_only_the_command_line_prints() -> None:
    """`print` is nobody's but the command line's; reports draw on a console they are given or return text."""
    printing = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                printing.append(f"{file}:{node.lineno}")
    assert [place for place in printing if not place.startswith("cli/")] == []


def test_policies_know_only_protocols() -> None:
    """A scheduler names no concrete allocator, and neither schedulers nor allocators mention true output lengths."""
    wrong = []
    for file in FILES:
        if home(file) not in ("schedulers", "kv"):
            continue
        if home(file) == "schedulers":
            wrong += [
                f"{file}: {name}"
                for name, _ in imported(file)
                if name.startswith("sim.kv") and name not in ("sim.kv.base", "sim.kv.host_pool")
            ]
        wrong += [
            f"{file}:{n.lineno}: {n.attr}"
            for n in ast.walk(tree(file))
            if isinstance(n, ast.Attribute) and n.attr in ("_output_tokens", "_finish_step")
        ]
    assert wrong == []


def test_physics_knows_no_request() -> None:
    """Costs are computed from shapes and facts about hardware: nothing of requests, schedulers or the clock."""
    known = {"cost", "specs", "units", "errors", "documents", "catalog"}
    names = [(file, name) for file in FILES if home(file) == "cost" for name, _ in imported(file)]
    assert [(f, n) for f, n in names if n.startswith("sim.") and n.split(".")[1] not in known] == []


def test_no_star_imports() -> None:
    """Every name says where it comes from."""
    stars = [
        f"{file}:{node.lineno}"
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


def test_imports_stand_at_the_top() -> None:
    """Deferred imports are for extras and declared slow libraries; importing by name is for the lazy tables."""
    deferred = []
    for file in FILES:
        for function in functions(file):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    module = node.names[0].name if isinstance(node, ast.Import) else str(node.module)
                    lazy = module.split(".")[0] in DEFERRED or (home(file) == "cli" and module.startswith("sim."))
                    if not lazy:
                        deferred.append(f"{file}:{node.lineno}: {module}")
        if file not in LAZY and any(name == "importlib" for name, _ in imported(file)):
            deferred.append(f"{file}: importlib")
    assert deferred == []


def test_files_are_short() -> None:
    """A file can be read in one sitting: at most 400 lines."""
    lengths = {file: len((PACKAGE / file).read_text().splitlines()) for file in FILES}
    assert {file: n for file, n in lengths.items() if n > 400} == {}


def test_functions_are_short() -> None:
    """A function body has at most 60 lines, its docstring not counted."""
    long = {}
    for file in FILES:
        for function in functions(file):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > 60:
                long[f"{file}:{function.name}"] = lines
    assert long == {}


def test_no_vague_file_names() -> None:
    """A file is named after what it holds."""
    vague = {"utils", "util", "common", "helpers", "misc", "manager", "handler"}
    assert [file for file in FILES if Path(file).stem in vague] == []


@cache
def _classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for file in FILES for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef)}


def _inherits_docstring(cls: ast.AST, method: str) -> bool:
    """Whether a base class of this package says what the method means."""
    for base in cls.bases if isinstance(cls, ast.ClassDef) else ():
        parent = _classes().get(base.id) if isinstance(base, ast.Name) else None
        if parent is None:
            continue
        documented = {n.name for n in parent.body if isinstance(n, ast.FunctionDef) and ast.get_docstring(n)}
        if method in documented or _inherits_docstring(parent, method):
            return True
    return False


def _undocumented(file: str) -> Iterator[str]:
    """Public names without a docstring, but for overrides of what a base class explains."""
    module = tree(file)
    if module.body and not ast.get_docstring(module):
        yield file
    todo: list[tuple[str, ast.Module | ast.ClassDef]] = [("", module)]
    while todo:
        prefix, scope = todo.pop()
        for node in scope.body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not _inherits_docstring(scope, node.name):
                yield f"{file}:{node.lineno}: {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                todo.append((f"{prefix}{node.name}.", node))


@pytest.mark.parametrize("folder", sorted({home(file) for file in FILES}))
def test_public_names_have_docstrings(folder: str) -> None:
    """Every public module, class, function and method says what it means."""
    assert [name for file in FILES if home(file) == folder for name in _undocumented(file)] == []
