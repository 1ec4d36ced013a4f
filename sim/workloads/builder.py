"""From what stands after `workload:` to a `Workload`."""

from __future__ import annotations

from pathlib import Path

from sim import catalog
from sim.documents import load_yaml, validate
from sim.errors import ConfigError
from sim.sequences import BeamSearch, neutral_switch_probability
from sim.workloads.arrivals import AllAtOnce, ClosedLoop
from sim.workloads.base import Workload
from sim.workloads.closed_loop import ClosedLoopClients
from sim.workloads.images import WithImages
from sim.workloads.lengths import law
from sim.workloads.queries import Queries
from sim.workloads.replay import TraceReplay, TraceRows
from sim.workloads.sessions import Sessions
from sim.workloads.several import SeveralSequences
from sim.workloads.sizes import RequestRows, Sizes
from sim.workloads.skeleton import SkeletonOfThought
from sim.workloads.spec import WorkloadSpec
from sim.workloads.synthetic import OpenLoop
from sim.workloads.tenants import SharedByTenants
from sim.workloads.trace_table import Trace, fit_context, head, scale, window
from sim.workloads.traces import read_trace

_YAML = (".yaml", ".yml", "")


def load_workload(name: str, *, beside: Path | None = None) -> tuple[WorkloadSpec, Path]:
    """The workload meant by a shipped name, a YAML file or a trace file, and the file in which it stands.

    Paths are looked for from the current directory, then beside the file that mentions them. Raises ConfigError.
    """
    path = catalog.find("workload", name, beside=beside)
    if path.suffix not in _YAML:
        return WorkloadSpec(trace=str(path)), path
    return validate(WorkloadSpec, load_yaml(path)), path


def build_workload(
    spec: WorkloadSpec,
    *,
    seed: int = 0,
    max_model_len: int | None = None,
    beside: Path | None = None,
    image_tokens: int | None = None,
) -> Workload:
    """The traffic a spec describes, drawn with `seed`.

    `image_tokens` are those of one of its images, as the model that is served makes of them; None: it sees none.
    `max_model_len` (tokens) decides which rows of a trace are too long; `beside` is the file that holds the spec, for
    relative paths. Raises ConfigError for what is wrong in the spec or in a row of its trace.
    """
    workload = _single(spec, seed, max_model_len, beside)
    if spec.images is not None:
        if image_tokens is None:
            raise ConfigError("need a model: what they become is up to its vision tower", key="images")
        workload = WithImages(workload, spec.images, image_tokens, seed=seed)
    if spec.tenants:
        workload = SharedByTenants(workload, spec.tenants, seed=seed)
    if spec.skeleton is not None:
        workload = SkeletonOfThought(workload, spec.skeleton, seed=seed)
    if spec.sequences == 1:
        return workload
    beams, width = None, spec.beam_width
    if width is not None:
        given = spec.beam_switch_probability
        beams = BeamSearch(width, neutral_switch_probability(width) if given is None else given, seed)
    lengths = None if spec.output_tokens is None else law(spec.output_tokens)
    return SeveralSequences(
        workload, spec.sequences, lengths=lengths, max_output_tokens=spec.max_output_tokens, beams=beams, seed=seed
    )


def _single(spec: WorkloadSpec, seed: int, max_model_len: int | None, beside: Path | None) -> Workload:
    """The traffic with one answer to every prompt."""
    if spec.trace is not None:
        return _replay(spec, _trace(spec, seed, max_model_len, beside), seed)
    if spec.input_tokens is None or spec.output_tokens is None:
        raise ConfigError("is required but missing", key="input_tokens")
    sizes = Sizes(spec.input_tokens, spec.output_tokens, spec.max_output_tokens, spec.shared_prefix)
    ends = spec.num_requests, spec.duration_s
    if spec.application is not None and spec.arrival is not None:
        return Queries(spec.arrival, sizes, spec.application, seed=seed, ends=ends, max_model_len=max_model_len)
    if spec.sessions is not None and spec.arrival is not None:
        return Sessions(spec.arrival, sizes, spec.sessions, seed=seed, ends=ends, max_model_len=max_model_len)
    return _driven(spec, sizes, seed, spec.num_requests)


def find_trace(path: str, *, beside: Path | None = None) -> Path:
    """A trace file, from the current directory or beside the file that mentions it. Raises ConfigError."""
    found = catalog.file_at("trace", path, beside=beside)
    if found is None:
        raise ConfigError("no such file", key="trace", value=path)
    return found


def _trace(spec: WorkloadSpec, seed: int, max_model_len: int | None, beside: Path | None) -> Trace:
    trace = read_trace(find_trace(str(spec.trace), beside=beside), seed=seed)
    trace = scale(window(trace, spec.start_s, spec.end_s), spec.time_scale, spec.scale_input, spec.scale_output)
    if spec.on_too_long == "drop":
        # Before the cut: `max_requests` counts requests that are sent.
        return head(fit_context(trace, max_model_len, "drop"), spec.max_requests)
    return fit_context(head(trace, spec.max_requests), max_model_len, spec.on_too_long)


def _replay(spec: WorkloadSpec, trace: Trace, seed: int) -> Workload:
    if spec.arrival is None:
        return TraceReplay(trace, spec.max_output_tokens)
    return _driven(spec, TraceRows(trace.untimed(), spec.max_output_tokens), seed, len(trace))


def _driven(spec: WorkloadSpec, rows: RequestRows, seed: int, num_requests: int | None) -> Workload:
    """Requests sent by an arrival process or by clients that wait."""
    arrival = AllAtOnce() if spec.arrival is None else spec.arrival
    if isinstance(arrival, ClosedLoop):
        return ClosedLoopClients(arrival, rows, seed=seed, num_requests=num_requests, duration_s=spec.duration_s)
    return OpenLoop(arrival, rows, seed=seed, num_requests=num_requests, duration_s=spec.duration_s)
