"""Trace readers: every format, what is dropped or changed, and what is said about a bad row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sim.errors import ConfigError
from sim.units import PS_PER_S
from sim.workloads.trace_table import Trace
from sim.workloads.traces import read_trace

PLAIN = "arrival_s,input_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
HASHED = '{"timestamp": 3000, "input_length": 700, "output_length": 9, "hash_ids": [7, 8]}\n'

FORMATS = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109",
    "azure 2024": "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:10.680590+00:00,374,44\n"
    "2024-05-12 00:00:14.995169+00:00,396,109\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,374,44,418,Conversation log\n9.314579,GPT-4,396,109,505,API log\n",
    "burstgpt v2": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,a,43,GPT-4,374,44,418,Conversation log\n19440114.314579,,4,GPT-4,396,109,505,API log\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n",
    "splitwise-sim": "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,0.013,1,374,44\n1,2,0,4.327579,1,396,109\n",
    "plain": "arrival_s,input_tokens,output_tokens\n0,374,44\n4.314579,396,109\n",
    "plain, other names": "\ufeffArrival Time,prompt_tokens,completion_tokens\n1.0,374,44\n5.314579,396.0,109\n\n",
    "mooncake": '{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": [1]}\n'
    '{"timestamp": 4314.579, "input_length": 396, "output_length": 109, "hash_ids": [1]}\n',
    "qwen-bailian": '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 2.0, "input_length": 374, "output_length": 44}\n'
    '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 6.314579, "input_length": 396, "output_length": 109}\n',
    "llmservingsim": '{"input_toks": 374, "output_toks": 44, "arrival_time_ns": 0}\n'
    '{"input_toks": 396, "output_toks": 109, "arrival_time_ns": 4314579000}',
}


def read(folder: Path, text: str, name: str = "trace.txt") -> Trace:
    """The trace in a text."""
    path = folder / name
    path.write_bytes(text.encode())
    return read_trace(path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(name: str, tmp_path: Path) -> None:
    """Two requests, 4.314579 s apart, are read alike from every format, which is recognised by its content."""
    trace = read(tmp_path, FORMATS[name])
    assert trace.format == name.split(",")[0].split(" ")[0]
    assert trace.input_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert trace.arrival_ps[0] == 0
    assert trace.arrival_ps[1] == pytest.approx(4.314579 * PS_PER_S, abs=5000)
    assert trace.rows_read == 2
    assert not trace.counts


def test_compressed_files_are_read(tmp_path: Path) -> None:
    """A gzipped trace is read like the plain one, CSV or JSON."""
    for name in ("azure", "mooncake"):
        (tmp_path / "t.gz").write_bytes(gzip.compress(FORMATS[name].encode()))
        assert read_trace(tmp_path / "t.gz").input_tokens.tolist() == [374, 396]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (PLAIN, "holds no requests"),
        ("arrival_s,input_tokens\n1,2\n", r":1: header: .*no column with the output tokens .*outputtokens"),
        ("a,b,c\n1,2,3\n", ":1: header: 'a,b,c': is in no known trace format"),
        (PLAIN + "0,5,5\n1,x,5\n", ":3: input_tokens: 'x': is not a number"),
        (PLAIN + "0,5,5\n1,,5\n", ":3: input_tokens: '': is not a number"),
        (PLAIN + "0,5,5\n\n1,5,-7\n", ":4: output_tokens: '-7': is negative"),
        (PLAIN + "0,5,5\n1,5.5,5\n", ":3: input_tokens: '5.5': is not a whole number"),
        (PLAIN + "0,5,5\n1,3e10,5\n", ":3: input_tokens: '3e10': is more tokens"),
        (PLAIN + "0,5,5\nnan,5,5\n", ":3: arrival_s: 'nan': is not a number"),
        (PLAIN + "0,5,5\n1,5\n", ":3: output_tokens: '': is not a number"),
        (PLAIN + "0,5,5\n1,5,5,5\n", ":3: is not a table"),
        (PLAIN + "0,5,5\n9e9,5,5\n", "spans more than 53 days"),
        (AZURE + "2023-11-16 18:15:46.68,3,4\nyesterday,3,4\n", ":3: TIMESTAMP: 'yesterday'"),
        (HASHED + '{"timestamp": 1e30, "input_length": 5, "output_length": 3}', ":2: timestamp: 1e.30: is too large"),
        (HASHED + '{"timestamp": 3100, "input_le', ":2: is not valid JSON"),
        (HASHED + "[1]", ":2: is not a JSON object"),
        (HASHED + '{"timestamp": 1, "output_length": 3}', ":2: input_length: is required but missing"),
        (HASHED + '{"input_length": 1, "output_length": 3}', ":2: timestamp: is required but missing"),
        (HASHED + '{"timestamp": 1, "input_length": "5"}', ":2: input_length: '5': is not a number"),
        (HASHED + '{"timestamp": 1, "input_length": 5, "output_length": -3}', ":2: output_length: -3: is negative"),
        (HASHED + '{"timestamp": 1, "input_length": 5.5, "output_length": 3}', ":2: input_length: 5.5: is not a whole"),
        (HASHED + '{"timestamp": NaN, "input_length": 5, "output_length": 3}', ":2: timestamp: nan: is not a number"),
        (HASHED + '{"timestamp": 1, "input_length": 5, "output_length": 3, "hash_ids": [0.5]}', "2: hash_ids"),
        ('{"prompt": "What?"}', ":1: keys: 'prompt': is in no known JSONL trace format"),
        ('[{"conversations": ', ":1: is not valid JSON"),
        ('[{"turns": []}]', r"\[0\].conversations: is not a list of turns"),
        (PLAIN + "0,5,\x00\n", ":2: output_tokens"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    """The message names file, line, column and value of the first thing that is wrong."""
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "trace.txt") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.csv", "missing.gz", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    """No file, or a directory, is the user's mistake, not a crash."""
    with pytest.raises(ConfigError):
        read_trace(tmp_path / name)


def test_binary_content_is_refused(tmp_path: Path) -> None:
    """Something that is not text is refused as such."""
    (tmp_path / "x.csv").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(ConfigError):
        read_trace(tmp_path / "x.csv")


def test_unsorted_rows_are_sorted_and_said(tmp_path: Path) -> None:
    """Rows out of order are replayed in order of arrival, from the earliest one."""
    trace = read(tmp_path, "arrival_s,input_tokens,output_tokens\n7,1,1\n5,2,2\n6,3,3\n")
    assert trace.input_tokens.tolist() == [2, 3, 1]
    assert trace.arrival_ps.tolist() == [0, PS_PER_S, 2 * PS_PER_S]
    assert any("not in order" in remark for remark in trace.remarks)


def test_an_empty_answer_becomes_one_token(tmp_path: Path) -> None:
    """A row without output still cost a prefill: it counts as one token, and that is said."""
    trace = read(tmp_path, "arrival_s,input_tokens,output_tokens\n0,5,0\n1,0,9\n2,5,9\n")
    assert trace.output_tokens.tolist() == [1, 9]
    assert trace.counts == {"0 output tokens, counted as 1": 1, "dropped: no prompt tokens": 1}


def test_failures_of_burstgpt_are_dropped(tmp_path: Path) -> None:
    """In BurstGPT a row without response tokens is a failed request."""
    trace = read(tmp_path, FORMATS["burstgpt"] + "10,ChatGPT,100,0,100,API log\n")
    assert len(trace) == 2
    assert "1 row dropped: no answer (failed requests) (of 3 in the file)" in trace.remarks


def test_lengths_without_times_are_read(tmp_path: Path) -> None:
    """Vidur's length files have no arrival column; that is said."""
    trace = read(tmp_path, "num_prefill_tokens,num_decode_tokens\n3,4\n5,6\n")
    assert trace.arrival_ps.tolist() == [0, 0]
    assert any("no arrival times" in remark for remark in trace.remarks)


@pytest.mark.parametrize(("block", "blocks"), [(512, 3), (16, 64)])
def test_the_hash_block_size_is_found(block: int, blocks: int, tmp_path: Path) -> None:
    """The number of hashes per prompt tells how many tokens a hash stands for."""
    row = {
        "timestamp": 0,
        "input_length": 1500 if block == 512 else 1020,
        "output_length": 1,
        "hash_ids": list(range(blocks)),
    }
    trace = read(tmp_path, json.dumps(row))
    assert trace.prefix_block_tokens == block
    assert trace.prefix_hashes is not None
    assert trace.prefix_hashes[0] == tuple(range(blocks))


def test_hashes_that_fit_no_block_size_are_ignored(tmp_path: Path) -> None:
    """Hashes whose number cannot be explained are left out, and that is said."""
    row = {"timestamp": 0, "input_length": 1500, "output_length": 1, "hash_ids": [1, 2, 3, 4, 5]}
    trace = read(tmp_path, json.dumps(row))
    assert trace.prefix_hashes is None
    assert any("hash_ids ignored" in remark for remark in trace.remarks)


def test_sharegpt_lengths_are_estimated_and_filtered(tmp_path: Path) -> None:
    """The first exchange counts, 4 characters are a token, and vLLM's length filter applies."""
    talk = [("a" * 40, "b" * 81), ("short", "b" * 400), ("a" * 5000, "b" * 400), ("a" * 400, "b" * 9000)]
    items = [{"conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": a}]} for p, a in talk]
    trace = read(tmp_path, json.dumps([*items, {"conversations": [{"from": "human", "value": "x"}]}]))
    assert trace.input_tokens.tolist() == [10]
    assert trace.output_tokens.tolist() == [21]
    assert trace.rows_read == 5
    assert sorted(trace.counts.values()) == [1, 3]
    assert any("4 characters per token" in remark for remark in trace.remarks)


def servegen(folder: Path, windows: str, pdf: str = "{100: 0.5, 200: 0.5}") -> Path:
    """A ServeGen pair; returns its trace file."""
    periods = {
        start: {"input_tokens": pdf, "output_tokens": "{7: 1.0}", "reason_ratio": "{}"} for start in ("0", "1200")
    }
    (folder / "c-dataset.json").write_text(json.dumps(periods, indent=1))
    (folder / "c-trace.csv").write_text(windows)
    return folder / "c-trace.csv"


def test_servegen_windows_have_their_number_of_requests(tmp_path: Path) -> None:
    """Every window gives rate x 600 requests inside it, whatever the burstiness; idle windows give none."""
    path = servegen(tmp_path, "0,0.5,6.7,Gamma,0.0223,73\n600,0,0,,0,0\n1200,0.25,1.1,Weibull,0.9,4\n")
    trace = read_trace(path)
    times = trace.arrival_ps / PS_PER_S
    assert len(trace) == 450
    assert (times < 600).sum() == 300
    assert times.max() < 1800
    assert set(trace.input_tokens.tolist()) == {100, 200}
    assert set(trace.output_tokens.tolist()) == {7}


def test_servegen_is_drawn_by_seed(tmp_path: Path) -> None:
    """The same seed gives the same draw, from either file of the pair; another seed another one."""
    path = servegen(tmp_path, "0,0.5,1,Gamma,1,2\n")
    again = read_trace(tmp_path / "c-dataset.json", seed=3)
    assert read_trace(path, seed=3).arrival_ps.tolist() == again.arrival_ps.tolist()
    assert read_trace(path, seed=4).arrival_ps.tolist() != again.arrival_ps.tolist()


@pytest.mark.parametrize(
    ("windows", "pdf", "message"),
    [
        ("0,0.5,1,Pareto,1,2\n", "{1: 1.0}", "c-trace.csv:1: pattern: 'Pareto,1': "),
        ("0,0.5,1,Gamma,1,2\n600,x,1,Gamma,1,2\n", "{1: 1.0}", "c-trace.csv:2: rate: 'x': is not a number"),
        ("0,0.5\n", "{1: 1.0}", "c-trace.csv:1: shape: is required but missing"),
        ("0,0.5,1,Gamma,1,2\n", "{}", "c-dataset.json: 0.input_tokens: has no lengths"),
        ("0,0.5,1,Gamma,1,2\n", "__import__('os')", "c-dataset.json: is not a ServeGen dataset"),
        ("0,0,0,,0,0\n", "{1: 1.0}", "holds no requests"),
    ],
)
def test_a_bad_servegen_pair_is_refused(windows: str, pdf: str, message: str, tmp_path: Path) -> None:
    """Mistakes in either file are named; a pdf is read as data, never run."""
    with pytest.raises(ConfigError, match=message):
        read_trace(servegen(tmp_path, windows, pdf))
