"""Whatever a user gets wrong is answered by one line that says where and what instead, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from sim import catalog

WORKLOAD = """\
num_requests: 5
arrival: {kind: poisson, rate: 12}
input_tokens: 100
output_tokens: 10
"""
INLINE = "".join(f"  {line}\n" for line in WORKLOAD.splitlines())
HEAD = "model: meta-llama/Llama-3.1-8B\nhardware: h100-sxm\n"
GOOD = f"{HEAD}workload:\n{INLINE}"
TRACE = f"{HEAD}workload: {{trace: t.jsonl}}\n"
NAMED = f"{HEAD}workload: chat\n"
MOONCAKE = '{"timestamp": 0, "input_length": 700, "output_length": 9}\n'
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"

Refused = Callable[..., str]


@pytest.fixture
def refused(roofserve: Callable[..., SimpleNamespace], tmp_path: Path) -> Refused:
    """`refused(text, *arguments, files)`: the one line with which `run s.yaml` refuses; nothing was written."""

    def run(text: str | bytes, *arguments: str, files: Mapping[str, str | bytes] | None = None) -> str:
        for name, content in {"s.yaml": text, **(files or {})}.items():
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        before = sorted(tmp_path.rglob("*"))
        answer = roofserve("run", "s.yaml", *arguments)
        assert answer.code == 2
        assert answer.out == ""
        assert answer.err.count("\n") == 1 and answer.err.startswith("Error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return answer.err.removeprefix("Error: ").rstrip()

    return run


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("sede: 3", "s.yaml:8: sede: unknown key (valid, nearest first: seed, "),
        (
            "engine:\n  max_num_sequences: 3",
            "s.yaml:9: engine.max_num_sequences: unknown key (valid, nearest first: max_num_seqs, ",
        ),
        (
            "engine: {kv_cache: {blok_size: 3}}",
            "s.yaml:8: engine.kv_cache.blok_size: unknown key (valid, nearest first: block_size, ",
        ),
        ("engine: {host: {stp_s: 1}}", "s.yaml:8: engine.host.stp_s: unknown key (valid, nearest first: step_s, "),
        ("replicas: {cuont: 2}", "s.yaml:8: replicas.cuont: unknown key (valid, nearest first: count, router)"),
        ("engine: {scheduler: {kind: chunked, x: 1}}", "s.yaml:8: engine.scheduler.x: unknown option of chunked"),
        ("slo:\n  ttft_p99: 500", "s.yaml:9: slo.ttft_p99: is not an objective (valid, nearest first: ttft_p99_ms, "),
        (
            "engine: {quantization: {weight: fp8}}",
            "s.yaml:8: engine.quantization.weight: unknown key (valid, nearest first: weights, ",
        ),
        ("3: 4", "s.yaml:8: 3: a key must be text"),
    ],
)
def test_an_unknown_key(more: str, told: str, refused: Refused) -> None:
    """A misspelt key is answered with file, line and the key that was meant."""
    assert refused(GOOD + more + "\n").startswith(told)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "input_tokens",
            "inptu_tokens",
            ":{line}: {at}inptu_tokens: unknown key (valid, nearest first: input_tokens, ",
        ),
        ("rate: 12", "rat: 12", ":{arrival}: {at}arrival.rat: unknown key (valid, nearest first: rate, kind)"),
        (
            "poisson",
            "poison",
            ":{arrival}: {at}arrival.kind: 'poison': is not a valid choice (valid, nearest first: poisson, ",
        ),
        ("rate: 12", "rate: 0", ":{arrival}: {at}arrival.rate: 0: input should be greater than 0"),
        ("rate: 12", "rate: .nan", ":{arrival}: {at}arrival.rate: nan: input should be a finite number"),
        ("rate: 12", "rate: -.inf", ":{arrival}: {at}arrival.rate: -inf: input should be"),
        ("rate: 12", "rate: fast", ":{arrival}: {at}arrival.rate: 'fast': input should be a valid number"),
        ("rate: 12", "rate: 1e-300", ":{arrival}: {at}arrival.rate: 1e-300: the traffic lasts longer than 53 days"),
        (
            "input_tokens: 100",
            "input_tokens: -100",
            ":{line}: {at}input_tokens: -100: input should be greater than or equal to 1",
        ),
        ("input_tokens: 100", "input_tokens: 1.5", ":{line}: {at}input_tokens: 1.5: input should be a valid integer"),
        (
            "input_tokens: 100",
            "input_tokens: {kind: lognormal, std: 3}",
            ":{line}: {at}input_tokens.mean: is required but missing",
        ),
        (
            "input_tokens: 100",
            "input_tokens: 1000000",
            ":{line}: {at}input_tokens: the shortest request has 1000010 tokens, but max_model_len is 131072",
        ),
        ("num_requests: 5", f"num_requests: {'9' * 40}", ":{first}: {at}num_requests: 999"),
        ("num_requests: 5", "num_requests: true", ":{first}: {at}num_requests: True: input should be a valid integer"),
    ],
)
@pytest.mark.parametrize("inline", [True, False])
def test_a_mistake_in_the_workload(old: str, new: str, told: str, inline: bool, refused: Refused) -> None:
    """The answer points at the file in which the workload stands: the scenario, or a file of its own."""
    lines = {"first": 4, "arrival": 5, "line": 6, "at": "workload."}
    if inline:
        assert refused(GOOD.replace(old, new)).startswith(("s.yaml" + told).format(**lines))
    else:
        lines = {"first": 1, "arrival": 2, "line": 3, "at": ""}
        answer = refused(f"{HEAD}workload: w.yaml\n", files={"w.yaml": WORKLOAD.replace(old, new)})
        assert answer.startswith(("w.yaml" + told).format(**lines))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "3350 GB/s",
            "3350 GB",
            r"g.yaml:\d+: memory_bandwidth_bytes_per_s: expected bytes/s such as '3350 GB/s', got the unit 'GB'",
        ),
        ("80 GiB", "80 GB/s", r"g.yaml:\d+: memory_bytes: expected bytes such as '80 GiB', got the unit 'GB/s'"),
        ("sm_count", "smcount", r"g.yaml:\d+: smcount: unknown key \(valid, nearest first: sm_count, "),
        ("value: 132", "value: -132", r"g.yaml:\d+: sm_count: must be positive and finite, got -132"),
    ],
)
def test_a_mistake_in_a_hardware_file(old: str, new: str, told: str, refused: Refused) -> None:
    """Wrong units and keys are shown where they stand in the profile."""
    profile = catalog.find("hardware", "h100-sxm").read_text()
    assert old in profile
    answer = refused(GOOD.replace("h100-sxm", "g.yaml"), files={"g.yaml": profile.replace(old, new)})
    assert re.match(told, answer)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("engine: {max_num_seqs: many}", "engine.max_num_seqs: 'many': input should be a valid integer"),
        ("engine: {max_num_seqs: '64'}", "engine.max_num_seqs: '64': input should be a valid integer"),
        ("engine: {max_num_seqs: true}", "engine.max_num_seqs: True: input should be a valid integer"),
        ("engine: {max_num_seqs: 0}", "engine.max_num_seqs: 0: input should be greater than 0"),
        (f"engine: {{max_num_seqs: {'9' * 500}}}", "engine.max_num_seqs: '9999"),
        (f"engine: {{num_gpu_blocks_override: {'9' * 40}}}", "engine.num_gpu_blocks_override: 999"),
        ("engine: {gpu_memory_utilization: .nan}", "engine.gpu_memory_utilization: nan: "),
        ("engine: {gpu_memory_utilization: 1.5}", "engine.gpu_memory_utilization: 1.5: "),
        ("engine: vllm", "engine: 'vllm': expected a mapping"),
        ("engine:", "engine: is empty; expected a mapping"),
        ("engine: {scheduler: [chunked]}", "engine.scheduler: expected a mapping"),
        ("engine: {scheduler: {x: 1}}", "engine.scheduler.kind: is required but missing"),
        ("engine: {dtype: fp8}", "engine.dtype: 'fp8': is not a 16-bit type; choose auto, bfloat16 or float16"),
        (
            "engine: {kv_cache_dtype: fp9}",
            "engine.kv_cache_dtype: 'fp9': is not a known number format (valid, nearest first: fp8, ",
        ),
        (
            "engine: {quantization: fp9}",
            "engine.quantization: 'fp9': is not a known scheme (valid, nearest first: fp8, ",
        ),
        (
            "engine: {host: {step_s: 3 GB}}",
            "engine.host.step_s: '3 GB': expected seconds such as '500 ms', got the unit 'GB'",
        ),
        ("engine: {host: {step_s: -1 ms}}", "engine.host.step_s: '-1 ms': input should be greater than or equal to 0"),
        ("slo: {ttft_p99_ms: fast}", "slo.ttft_p99_ms: 'fast': input should be a valid number"),
        ("slo: {ttft_p99_ms: 0}", "slo.ttft_p99_ms: 0: input should be greater than 0"),
        ("slo: [500]", "slo: expected a mapping"),
        ("seed: -1", "seed: -1: input should be greater than or equal to 0"),
        (f"seed: {'9' * 40}", "seed: 999"),
        ("replicas: {count: 0}", "replicas.count: 0: input should be greater than 0"),
        ("name: 2024-01-01", "name: datetime.date(2024, 1, 1): expected text"),
    ],
)
def test_a_wrong_value(more: str, told: str, refused: Refused) -> None:
    """Wrong types and impossible numbers are shown with key and value, on their line."""
    assert refused(GOOD + more + "\n").startswith(f"s.yaml:8: {told}")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "meta-llama/Llama-3.1-8B",
            "meta-llama/Llama-3.1-8b-intsruct",
            "s.yaml:1: model: 'meta-llama/Llama-3.1-8b-intsruct': is not in the catalogue",
        ),
        ("meta-llama/Llama-3.1-8B", "./config.json", "s.yaml:1: model: './config.json': no such config.json"),
        ("meta-llama/Llama-3.1-8B", "~nosuchuser/x", "s.yaml:1: model: '~nosuchuser/x': cannot be looked for"),
        ("h100-sxm", "h100_sxm", "s.yaml:2: hardware: 'h100_sxm': unknown hardware (valid, nearest first: h100-sxm, "),
        ("h100-sxm", "gpu.yaml", "s.yaml:2: hardware: 'gpu.yaml': no such file"),
        ("h100-sxm", "h" * 300, "s.yaml:2: hardware: "),
    ],
)
def test_a_name_that_does_not_exist(old: str, new: str, told: str, refused: Refused) -> None:
    """Misspelt models and GPUs are answered with the nearest ones, and with the line that names them."""
    assert refused(GOOD.replace(old, new)).startswith(told)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "engine: {preset: vllm-v2}",
            "engine.preset: 'vllm-v2': unknown preset (valid, nearest first: vllm-v1, vllm-v0",
        ),
        ("engine: {scheduler: chunkd}", "engine.scheduler: 'chunkd': unknown policy (valid, nearest first: chunked, "),
        (
            "engine: {kv_cache: {allocator: pagd}}",
            "engine.kv_cache.allocator: 'pagd': unknown policy (valid, nearest first: paged",
        ),
        (
            "replicas: {router: round_robbin}",
            "replicas.router: 'round_robbin': unknown policy (valid, nearest first: round_robin, ",
        ),
    ],
)
def test_a_policy_that_does_not_exist(more: str, told: str, refused: Refused) -> None:
    """Misspelt presets, schedulers, allocators and routers are answered with the nearest ones."""
    assert refused(GOOD + more + "\n").startswith(f"s.yaml:8: {told}")


def test_a_workload_that_does_not_exist(refused: Refused) -> None:
    """A misspelt workload is answered with the nearest one, and a trace that is missing is named."""
    assert refused(f"{HEAD}workload: chta\n").startswith(
        "s.yaml:3: workload: 'chta': unknown workload (valid, nearest first: chat, "
    )
    assert refused(f"{HEAD}workload: t.csv\n").startswith("s.yaml:3: workload: 't.csv': no such file")
    assert refused(TRACE).startswith("s.yaml:3: workload.trace: 't.jsonl': no such file")
    in_a_file = refused(f"{HEAD}workload: w.yaml\n", files={"w.yaml": "# traffic\ntrace: nope.csv\n"})
    assert in_a_file == "w.yaml:2: trace: 'nope.csv': no such file"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("engine: {tensor_parallel_size: 3}", "engine.tensor_parallel_size: 3: must divide the 32 attention heads"),
        (
            "engine: {pipeline_parallel_size: 33}",
            "engine.pipeline_parallel_size: 33: exceeds the 32 layers of the model",
        ),
        ("engine: {data_parallel_size: 2}", "engine.data_parallel_size: 2: is for mixture-of-experts models"),
        (
            "engine: {max_num_batched_tokens: 16, max_num_seqs: 32}",
            "engine.max_num_batched_tokens: 16: must be at least max_num_seqs (32)",
        ),
        (
            "engine: {scheduler: continuous, max_num_batched_tokens: 2048}",
            "engine.max_num_batched_tokens: 2048: must be at least max_model_len",
        ),
        (
            "engine: {max_model_len: 1000000}",
            "engine.max_model_len: 1000000: exceeds the model's context of 131072 tokens",
        ),
        ("engine: {kv_cache_memory_bytes: 999999999999}", "engine.kv_cache_memory_bytes: 999999999999: only "),
    ],
)
def test_settings_that_contradict(more: str, told: str, refused: Refused) -> None:
    """What each key allows but the model, the GPU or another key does not is refused before anything runs."""
    assert refused(GOOD + more + "\n").startswith(f"s.yaml:8: {told}")


def test_a_request_longer_than_max_model_len(refused: Refused) -> None:
    """A server whose longest context is shorter than every request has nothing to serve."""
    told = "s.yaml:6: workload.input_tokens: the shortest request has 110 tokens, but max_model_len is 64"
    assert refused(GOOD + "engine: {max_model_len: 64}\n").startswith(told)


def test_a_model_that_does_not_fit(refused: Refused) -> None:
    """70 billion parameters on one GPU: the line says what is needed, what there is and what would help."""
    told = refused(GOOD.replace("3.1-8B", "3.1-70B"))
    assert re.match(r"s\.yaml:1: model: the model does not fit: one GPU needs 13\d\.\d GiB", told)
    assert "available are 71.2 GiB (gpu_memory_utilization 0.9 of 79.1)" in told
    assert "would help: tensor_parallel_size 2 or quantised weights of less than" in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "t.jsonl: is empty"),
        (MOONCAKE + '{"timestamp": 1, "inp', "t.jsonl:2: is not valid JSON"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 7}\n', "t.jsonl:2: output_length: is required but missing"),
        (MOONCAKE.replace("700", "-700"), "t.jsonl:1: input_length: -700: is negative"),
        (AZURE + "2023-11-16 18:15:5", "t.jsonl:3: ContextTokens: '': is not a number"),
        (AZURE.split("\n")[0] + "\n", "t.jsonl: holds no requests"),
        (bytes(range(256)), "t.jsonl: "),
    ],
)
def test_a_broken_trace(content: str | bytes, told: str, refused: Refused) -> None:
    """An empty, truncated, binary or wrong trace is refused with file, line and column, before anything runs."""
    assert refused(TRACE, files={"t.jsonl": content}).startswith(told)


def test_a_trace_that_does_not_suit(refused: Refused) -> None:
    """Keys that do not go with a trace, and traces of which no row is left, are refused."""
    more = {"t.jsonl": MOONCAKE.replace("700", "700000")}
    assert refused(TRACE.replace("}", ", num_requests: 3}"), files=more) == (
        "s.yaml:3: workload: num_requests does not go with a trace: say max_requests"
    )
    assert "1 of 1 rows exceed max_model_len" in refused(TRACE.replace("}", ", on_too_long: fail}"), files=more)
    assert "no request is left to replay" in refused(TRACE.replace("}", ", on_too_long: drop}"), files=more)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"model: \xff\xfe\n", "s.yaml: cannot be read (not UTF-8 text)"),
        (bytes(range(256)), "s.yaml: cannot be read (not UTF-8 text)"),
        (b"model: a\x00b\n", "s.yaml: is not valid YAML: special characters are not allowed"),
        ("", "s.yaml: is empty; expected a mapping of keys"),
        ("# nothing yet\n", "s.yaml: is empty; expected a mapping of keys"),
        ("- model\n", "s.yaml:1: must be a mapping of keys to values"),
        (GOOD + "seed: 1\nseed: 2\n", "s.yaml:9: seed: is written twice"),
        (GOOD + "engine:\n  max_num_seqs: 1\n  max_num_seqs: 2\n", "s.yaml:10: engine.max_num_seqs: is written twice"),
        (GOOD + "engine: {a: [\n", "s.yaml:9: is not valid YAML: "),
        ("model:\tx\n", "s.yaml:1: is not valid YAML: found character '\\t'"),
        (GOOD + "---\nmodel: x\n", "s.yaml:8: is not valid YAML: "),
        (GOOD + "name: 2024-13-45\n", "s.yaml: is not valid YAML: month must be in 1..12"),
        (GOOD + f"seed: {'9' * 5000}\n", "s.yaml: is not valid YAML: Exceeds the limit"),
        (GOOD + 'name: "\\ud800"\n', "s.yaml: is not valid YAML: "),
        ("a: &a {b: *a}\n", "s.yaml: is nested too deeply, or refers to itself"),
        ("a: " + "[" * 3000, "s.yaml: is nested too deeply, or refers to itself"),
        ("model: !!python/object:os.system x\n", "s.yaml:1: is not valid YAML: could not determine a constructor"),
        (HEAD, "s.yaml: workload: is required but missing"),
    ],
)
def test_unreadable_yaml(content: str | bytes, told: str, refused: Refused) -> None:
    """A file that is no YAML mapping, or says something twice, is refused with the line where reading stopped."""
    assert refused(content).startswith(told)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nope.yaml", "scenario: 'nope.yaml': no such file (valid, nearest first: "),
        ("quickstrat", "scenario: 'quickstrat': unknown scenario (valid, nearest first: quickstart"),
        (".", "scenario: '.': is a directory, not a file"),
        ("a" * 300 + ".yaml", "scenario: 'aaa"),
    ],
)
def test_a_scenario_that_does_not_exist(name: str, told: str, roofserve: Callable[..., SimpleNamespace]) -> None:
    """A misspelt scenario is answered with the shipped ones."""
    answer = roofserve("run", name)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith(f"Error: {told}")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("engine", "--set: engine: expected KEY=VALUE, such as engine.max_num_seqs=64"),
        ("=1", "--set: =1: expected KEY=VALUE"),
        ("engine..x=1", "--set: engine..x=1: expected KEY=VALUE"),
        ("model.x=1", "--set: model.x: model is 'meta-llama/Llama-3.1-8B', which has no key 'x'"),
        ("engin.max_num_seqs=1", "--set: engin: unknown key (valid, nearest first: engine, "),
        ("engine.max_num_seq=1", "--set: engine.max_num_seq: unknown key (valid, nearest first: max_num_seqs, "),
        ("workload.arrival.rte=1", "--set: workload.arrival.rte: unknown key (valid, nearest first: rate, kind)"),
        ("workload.arrival.rate=-1", "--set: workload.arrival.rate: -1: input should be greater than 0"),
        ("engine.max_num_seqs=[1", "--set: engine.max_num_seqs: '[1': the value is not valid YAML"),
        ("hardware=h100", "--set: hardware: 'h100': unknown hardware (valid, nearest first: h100-sxm, "),
        ("engine.tensor_parallel_size=3", "--set: engine.tensor_parallel_size: 3: must divide the 32 attention heads"),
        ("workload.trace=no.csv", "s.yaml:3: workload: num_requests does not go with a trace"),
        (f"seed={'9' * 5000}", "--set: seed: '9999"),
    ],
)
def test_a_wrong_setting(setting: str, told: str, refused: Refused) -> None:
    """An override is blamed itself, not the line of the file that it replaces."""
    assert refused(GOOD, "--set", setting).startswith(told)


def test_a_wrong_setting_of_a_named_workload(refused: Refused) -> None:
    """Keys below a workload that is only named are checked like those of one that is written out."""
    told = refused(NAMED, "--set", "workload.arrival.rate=fast")
    assert told == "--set: workload.arrival.rate: 'fast': input should be a valid number"
    told = refused(NAMED.replace("chat", "chta"), "--set", "workload.arrival.rate=2")
    assert told.startswith("s.yaml:3: workload: 'chta': unknown workload (valid, nearest first: chat, ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--out", "s.yaml"), "--out: s.yaml: s.yaml is not a directory"),
        (("--out", "s.yaml/x"), "--out: s.yaml/x: "),
        (("--out", "a" * 300), "--out: aaa"),
        (("--seed", "-1"), "Invalid value for '--seed': -1 is not in the range x>=0."),
        (("--format", "xml"), "Invalid value for '--format': 'xml' is not one of 'table', 'json'."),
        (("--sett", "a=1"), "No such option"),
        (("--from-log", "no.log"), "no.log: cannot be read"),
        (("--from-log", "s.yaml"), "s.yaml: is not the start-up log of a vLLM server"),
    ],
)
def test_a_wrong_option(arguments: tuple[str, ...], told: str, refused: Refused) -> None:
    """Options are refused in one line, too, and before anything is simulated."""
    assert refused(GOOD, *arguments).startswith(told)


def test_a_directory_that_may_not_be_written_to(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hour of simulation is lost because its results cannot be stored: the place is looked at first."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert refused(GOOD, "--out", "deep/er").endswith(f"{tmp_path} may not be written to")


def test_values_of_a_log_are_blamed_on_the_log(refused: Refused) -> None:
    """When a server's flags contradict the scenario's hardware, the log is named, not the scenario."""
    log = "INFO non-default args: {'tensor_parallel_size': 3}\nINFO # GPU blocks: 1000, # CPU blocks: 0\n"
    assert refused(GOOD, "--from-log", "v.log", files={"v.log": log}).startswith(
        "v.log: engine.tensor_parallel_size: 3: "
    )


def test_an_unknown_command(roofserve: Callable[..., SimpleNamespace]) -> None:
    """The command line itself answers in one line."""
    answer = roofserve("rnu", "quickstart")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "rnu" in answer.err
