"""`roofserve trace`: what users see, and what lies on the disk afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sim.cli.trace import trace
from sim.errors import ConfigError
from sim.workloads import trace_write
from sim.workloads.trace_write import WRITERS
from sim.workloads.traces import read_trace

PLAIN = "arrival_s,input_tokens,output_tokens\n0,374,44\n4.314579,396,109\n5.25,100,1\n"
HASHED = '{"timestamp": 0, "input_length": 700, "output_length": 9, "hash_ids": [7, 8]}\n'
SESSIONS = (
    '{"session_id": "a", "timestamp": 0, "input_length": 100, "output_length": 5}\n'
    '{"session_id": "a", "delay": 500, "input_length": 300, "output_length": 7}\n'
)


def call(*arguments: object) -> Result:
    """The command's result; what it raises on purpose is raised here."""
    result = CliRunner().invoke(trace, [str(a) for a in arguments])
    if isinstance(result.exception, ConfigError):
        raise result.exception
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A plain trace of three requests."""
    (tmp_path / "in.csv").write_text(PLAIN)
    return tmp_path / "in.csv"


def test_info_shows_a_table(source: Path) -> None:
    """Format, number of requests, rate and lengths are readable at a glance."""
    result = call("info", source)
    assert result.exit_code == 0
    for word in ("plain", "in.csv", "requests/s", "CV of gaps", "input", "output", "p99"):
        assert word in result.output


def test_info_as_json(source: Path) -> None:
    """--format json is the same for machines, and nothing else is on stdout."""
    summary = json.loads(call("info", source, "--format", "json").output)
    assert summary["requests"] == 3
    assert summary["span_s"] == 5.25
    assert summary["input_tokens"]["max"] == 396
    assert summary["prefix_hit_bound"] is None


def test_info_says_what_was_dropped(source: Path) -> None:
    """A row that cannot be a request is not left out in silence."""
    source.write_text(PLAIN + "6,0,5\n")
    assert "1 row dropped: no prompt tokens" in call("info", source).output


@pytest.mark.parametrize("form", WRITERS)
def test_convert_keeps_the_traffic(form: str, source: Path, tmp_path: Path) -> None:
    """Every format that is written is read back as the same requests at the same times."""
    out = tmp_path / "out"
    assert call("convert", source, out, "--to", form).exit_code == 0
    before, after = read_trace(source), read_trace(out)
    assert after.format == form
    assert after.input_tokens.tolist() == before.input_tokens.tolist()
    assert after.output_tokens.tolist() == before.output_tokens.tolist()
    assert after.arrival_ps.tolist() == pytest.approx(before.arrival_ps.tolist(), abs=50_000)


def test_convert_keeps_hashes_where_the_format_has_them(source: Path, tmp_path: Path) -> None:
    """Prefix hashes survive in a Mooncake file, and their loss elsewhere is said."""
    source.write_text(HASHED)
    call("convert", source, tmp_path / "a", "--to", "mooncake")
    assert (tmp_path / "a").read_text() == HASHED
    assert "left out" in call("convert", source, tmp_path / "b").output


def test_convert_keeps_sessions_or_refuses(source: Path, tmp_path: Path) -> None:
    """Turns that wait for an answer need a format that can say so."""
    source.write_text(SESSIONS)
    call("convert", source, tmp_path / "a", "--to", "mooncake")
    assert read_trace(tmp_path / "a").delay_ps is not None
    with pytest.raises(ConfigError, match=r"--to: 'plain': .*mooncake"):
        call("convert", source, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_generate_is_reproducible_and_extends(tmp_path: Path) -> None:
    """The same seed gives the same bytes, and more requests only add lines."""
    for name, number in (("a", 5), ("b", 5), ("c", 9)):
        call("generate", "chat", tmp_path / name, "--num-requests", number, "--seed", 3)
    a, b, c = ((tmp_path / name).read_text() for name in "abc")
    assert a == b
    assert c.startswith(a)
    assert len(c.splitlines()) == 10


def test_generate_writes_shared_prefixes(tmp_path: Path) -> None:
    """A shared system prompt becomes hashes that a reader finds again."""
    spec = "num_requests: 50\narrival: {kind: all_at_once}\ninput_tokens: 100\noutput_tokens: 3\n"
    spec += "shared_prefix: {tokens: 64}\n"
    (tmp_path / "w.yaml").write_text(spec)
    call("generate", tmp_path / "w.yaml", tmp_path / "t.jsonl", "--to", "mooncake")
    written = read_trace(tmp_path / "t.jsonl")
    assert written.prefix_block_tokens == 16
    assert written.prefix_hashes is not None
    assert len({h[:4] for h in written.prefix_hashes}) == 1
    assert len({h[4] for h in written.prefix_hashes}) == 50


def test_generate_refuses_a_closed_loop(tmp_path: Path) -> None:
    """Traffic at the server's pace has no arrival times to write."""
    spec = "num_requests: 5\narrival: {kind: closed_loop, concurrency: 2}\ninput_tokens: 1\noutput_tokens: 3\n"
    (tmp_path / "w.yaml").write_text(spec)
    with pytest.raises(ConfigError, match="closed_loop"):
        call("generate", tmp_path / "w.yaml", tmp_path / "out")


def test_an_existing_file_is_kept(source: Path, tmp_path: Path) -> None:
    """Nothing is overwritten without --overwrite, the input itself included."""
    with pytest.raises(ConfigError, match="--overwrite"):
        call("convert", source, source)
    assert source.read_text() == PLAIN
    assert call("convert", source, source, "--to", "vidur", "--overwrite").exit_code == 0
    assert source.read_text().startswith("arrived_at")


def test_an_interrupted_write_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing stops half way, neither a partial file nor a temporary one remains."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "folder" / "out.csv"
    out.parent.mkdir()
    monkeypatch.setattr(trace_write, "_check", fail)
    with pytest.raises(KeyboardInterrupt):
        trace_write.write_trace(trace_write.records_of_trace(read_trace(source)), out, "plain")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("out", ["none/out.csv", "."])
def test_a_place_that_cannot_be_written_is_refused(out: str, source: Path, tmp_path: Path) -> None:
    """A missing folder, or a folder instead of a file, is the user's mistake."""
    with pytest.raises(ConfigError):
        call("convert", source, tmp_path / out)


@pytest.mark.parametrize("command", ["info", "convert", "generate"])
def test_help_has_an_example(command: str) -> None:
    """Every command shows a line one can copy."""
    assert f"roofserve trace {command} " in call(command, "--help").output
