"""The page and the figure of the scheduler ladder, from what its runs measured."""

# ruff: noqa: E501 - table rows are one line each
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from sim.report.style import COLOURS, axes_of, house_style, new_figure, png_bytes, three_digits

_DRAWN = {
    "static, reserved": (COLOURS["weights"], "o", "-"),
    "decode-first, paged": (COLOURS["waiting"], "v", "--"),
    "prefill-first, paged (vLLM V0)": (COLOURS["tpot"], "s", "-."),
    "Orca, reserved": (COLOURS["prefill"], "^", ":"),
    "Orca, paged": (COLOURS["e2el"], "D", "--"),
    "SGLang 2048": (COLOURS["itl"], "P", ":"),
    "chunked 2048 (vLLM V1)": (COLOURS["output"], "X", "-"),
    "chunked 512 (Sarathi)": ("#1a1a1a", "*", "-"),
}
_PANELS = (
    ("mean_ttft_ms", "mean TTFT (ms)", True),
    ("p99_itl_ms", "p99 gap between tokens (ms)", True),
    ("mean_tpot_ms", "mean TPOT (ms)", True),
    ("output_throughput", "output tokens/s", False),
)


@dataclass(frozen=True)
class Study:
    """What was measured: one curve and three capacities per rung, one run per queue order, and how."""

    names: list[str]
    curves: list[list[dict[str, Any]]]
    capacities: list[dict[str, float]]
    orders: list[dict[str, Any]]
    setting: dict[str, Any]

    def at(self, name: str, rate: float) -> dict[str, Any]:
        """The run of a rung at a rate."""
        return next(point for point in self.curves[self.names.index(name)] if point["rate"] == rate)

    def gain(self, name: str, over: str, measure: str) -> str:
        """How many times the rate of another rung it sustains."""
        numbers = [self.capacities[self.names.index(one)][measure] for one in (name, over)]
        return f"{numbers[0] / numbers[1]:.2g}x"


def write(study: Study, folder: Path) -> None:
    """scheduler-ladder.png and scheduler-ladder.md."""
    (folder / "scheduler-ladder.png").write_bytes(_figure(study))
    (folder / "scheduler-ladder.md").write_text("\n".join(_page(study)) + "\n", encoding="utf-8")


def _figure(study: Study) -> bytes:
    with house_style():
        figure = new_figure(6.4)
        panels = axes_of(figure, 2, 2)
        for axes, (key, label, logarithmic) in zip(panels, _PANELS, strict=True):
            _panel(axes, study, key)
            axes.set(ylabel=label, xlabel="requests/s")
            if logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: three_digits(value)))
        lines, names = panels[0].get_legend_handles_labels()
        figure.tight_layout(rect=(0, 0.1, 1, 1))
        figure.legend(lines, names, loc="lower center", ncols=3, fontsize=8.5, handlelength=3.2)
        return png_bytes(figure)


def _panel(axes: Axes, study: Study, key: str) -> None:
    for name, (colour, marker, line) in _DRAWN.items():
        curve = study.curves[study.names.index(name)]
        axes.plot([point["rate"] for point in curve], [point[key] for point in curve], color=colour, marker=marker,
                  linestyle=line, label=name, markersize=6, linewidth=1.3, markerfacecolor="none", markeredgewidth=1.3)  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(study.setting["rates"][1:]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _page(study: Study) -> list[str]:
    return [
        *_head(study), "", *_capacity_table(study), "", "![latency and throughput](scheduler-ladder.png)", "",
        *_why(study), "", *_papers(study), "", *_orders(study), "", *_curve_table(study),
    ]  # fmt: skip


def _head(study: Study) -> list[str]:
    set_ = study.setting
    host, slo = set_["host"], set_["slo"]
    tokens = study.at("Orca, paged", set_["common"])["kv_tokens"]
    return [
        "<!-- Regenerate: python reports/scheduler_ladder.py -->",
        "# The scheduler ladder",
        "",
        f"One traffic under every scheduler: {set_['model']} on one {set_['hardware']}, the shipped workload `chat` with "
        f"Poisson arrivals, {set_['requests']} requests a run, the same requests at every rate and on every rung. "
        f"Context {set_['context']:,}, 256 seats, no prefix cache, and about {tokens:,} tokens of KV memory. Host costs "
        f"are the same for all ({host['step_s'] * 1e6:.0f} us per step, {host['token_s'] * 1e6:.1f} per token, {host['request_s'] * 1e3:.1f} ms per request "
        "and more: `engine.host` of the preset vllm-v1), so that only the rules differ; the last rung alone has others. "
        "*Reserved* is the whole context per request in buddy pieces (the vLLM paper's Orca (Max)), *paged* is blocks "
        "of 16.",
        "",
        f"Three capacities, each the highest rate, to {set_['finest'] - 1:.0%}, at which",
        "",
        f"* *SLO*: {set_['attainment']:.0%} of the requests have TTFT <= {slo['ttft_p99_ms']} ms and TPOT <= "
        f"{slo['tpot_p99_ms']} ms (DistServe's measure);",
        f"* *normalised*: the median of E2E latency over output tokens is <= {set_['normalised_ms']:g} ms (Orca's);",
        f"* *gaps*: p99 of the gaps between tokens is <= {set_['gap_ms']:.0f} ms, 5 simulated decode steps of 32 sequences "
        "at 4k, with a median wait <= 2 s (Sarathi-Serve's).",
        "",
        f"Runs are short: {set_['requests']} requests at 20 per second are {set_['requests'] / 20:.0f} s, and a queue that "
        "would grow without end may not have grown far; the median over whole answers forgives a wait of seconds most, so that "
        "*normalised* may exceed what could be sustained for long. Read ratios, not the last digit. In a batch that drains "
        "together an answer ends with its batch, and its TPOT counts that wait; its gaps between tokens do not.",
    ]


def _capacity_table(study: Study) -> list[str]:
    common = study.setting["common"]
    lines = [
        f"| rung | SLO, req/s | most goodput on the curve, req/s | normalised, req/s | gaps, req/s | at {common:g} req/s: mean TTFT, ms "
        "| p99 TTFT, ms | mean TPOT, ms | p99 gap, ms | mean E2E, s | output tok/s | SLO met |",
        "|---|" + "---:|" * 11,
    ]
    for name, found in zip(study.names, study.capacities, strict=True):
        at = study.at(name, common)
        goodput = max(point["slo_attainment"] * point["rate"] for point in study.curves[study.names.index(name)])
        lines.append(
            f"| {name} | {found['slo']:.2f} | {goodput:.2f} | {found['normalised']:.2f} | {found['gaps']:.2f} | "
            f"{at['mean_ttft_ms']:,.0f} | {at['p99_ttft_ms']:,.0f} | {at['mean_tpot_ms']:.1f} | {at['p99_itl_ms']:.1f} | "
            f"{at['mean_e2el_ms'] / 1e3:.1f} | {at['output_throughput']:,.0f} | {at['slo_attainment']:.0%} |"
        )
    return lines


def _why(study: Study) -> list[str]:
    common, last = study.setting["common"], study.setting["rates"][-1]
    at = {name: study.at(name, common) for name in study.names}
    full = {name: study.at(name, last) for name in study.names}
    static, dynamic, orca = full["static, reserved"], full["dynamic 50 ms, reserved"], full["Orca, reserved"]
    drained, v0 = full["decode-first, paged"], at["prefill-first, paged (vLLM V0)"]
    paged, plain = at["Orca, paged"], at["chunked 2048 (vLLM V1)"]
    v1, sarathi = full["chunked 2048 (vLLM V1)"], full["chunked 512 (Sarathi)"]
    sglang, ahead, inline = at["SGLang 2048"], at["chunked 2048, async"], at["chunked 2048, host in line"]
    return [
        "## Why each rung differs",
        "",
        f"Measured at {common:g} requests/s, or under overload at {last:g}.",
        "",
        f"* **static**: under overload {static['wasted_rows']:.0%} of the decode rows belong to answers that are already "
        f"complete and {static['padded']:.0%} of the prompt tokens computed are padding.",
        f"* **dynamic**: up to 50 ms for company before a batch begins: under overload, where a queue always stands, {dynamic['output_throughput']:,.0f} "
        f"against {static['output_throughput']:,.0f} output tokens/s.",
        f"* **decode-first**: nothing is padded and {drained['wasted_rows']:.0%} of the rows are wasted, but nobody joins "
        f"while anybody decodes, and what joins is one step's prompts: {drained['mean_decodes']:.1f} sequences decode "
        f"together on average, static's rows are {static['mean_decodes']:.1f}.",
        f"* **prefill-first** (V0): whoever fits joins at once; at {common:g} requests/s the decodes stand still "
        f"{v0['decodes_stopped']:.0%} of the busy time for the prompts of others, and the p99 gap is {v0['p99_itl_ms']:.0f} ms "
        f"where the mean TPOT is {v0['mean_tpot_ms']:.1f} ms.",
        f"* **Orca**: prompts share the decodes' step, {paged['decodes_stopped']:.0%} of the time the decodes stand still, "
        f"yet the shared step is as long as its prompts: p99 gap {paged['p99_itl_ms']:.0f} ms, under overload {full['Orca, paged']['p99_itl_ms']:.0f}.",
        f"* **paged** instead of reserved: under overload Orca decodes {full['Orca, paged']['mean_decodes']:.0f} sequences "
        f"together instead of {orca['mean_decodes']:.0f}; of the KV memory in use "
        f"{full['Orca, paged']['kv']['mean_filled_share_of_used']:.0%} holds tokens instead of "
        f"{orca['kv']['mean_filled_share_of_used']:.0%}.",
        f"* **chunked**: no step holds more tokens than the budget: under overload the p99 gap is {v1['p99_itl_ms']:.0f} ms "
        f"at 2048 tokens and {sarathi['p99_itl_ms']:.0f} ms at 512, Orca's {full['Orca, paged']['p99_itl_ms']:.0f}. "
        f"Small chunks need more steps ({sarathi['num_steps']:,} against {v1['num_steps']:,}): mean TTFT {sarathi['mean_ttft_ms']:,.0f} ms at 512, "
        f"{v1['mean_ttft_ms']:,.0f} at 2048; output {sarathi['output_throughput']:,.0f} against {v1['output_throughput']:,.0f} tokens/s.",
        f"* **SGLang**: chunks apart from the decodes ({sglang['decodes_stopped']:.0%} of the time they stand still): p99 "
        f"gap {sglang['p99_itl_ms']:.0f} ms.",
        f"* **async**: with equal host costs the rule itself gives {ahead['mean_tpot_ms']:.2f} ms TPOT against "
        f"{plain['mean_tpot_ms']:.2f}, because {ahead['wasted_rows']:.1%} of the rows are of sequences that had already "
        "ended. What it is for is to hide host work: with the costs fitted to synchronous vLLM (preset vllm-0.9, "
        f"*host in line*) TPOT is {inline['mean_tpot_ms']:.2f} ms.",
    ]


def _papers(study: Study) -> list[str]:
    slots = study.at("Orca, paged", study.setting["common"])["kv_tokens"]
    chunks, v0, v1 = "chunked 512 (Sarathi)", "prefill-first, paged (vLLM V0)", "chunked 2048 (vLLM V1)"
    return [
        "## Beside the papers",
        "",
        "| claim | its setting | here | measure |",
        "|---|---|---|---|",
        "| Orca 36.9x FasterTransformer (Yu et al., OSDI 2022, section 6.2) | GPT-3 175B, prompts 32 to "
        "512, outputs 1 to 128, median normalised latency 190 ms | "
        f"{study.gain('Orca, reserved', 'static, reserved', 'normalised')} | normalised |",
        "| vLLM 2.7 to 8x Orca (Max), up to 22x FasterTransformer (Kwon et al., SOSP 2023, figure 12) | OPT-13B to 175B "
        f"on A100, ShareGPT, context 2048 | {study.gain('Orca, paged', 'Orca, reserved', 'normalised')}, "
        f"{study.gain('Orca, paged', 'static, reserved', 'normalised')} | normalised |",
        "| Sarathi-Serve 2.6x vLLM (Agrawal et al., OSDI 2024, abstract); 3.5x at a 100 ms objective | Mistral-7B, one "
        f"A100, p99 TBT | {study.gain(chunks, v0, 'gaps')} (512), {study.gain(v1, v0, 'gaps')} (2048) | gaps |",
        "| the same over V0 | as above, TTFT and TPOT instead of gaps | "
        f"{study.gain(chunks, v0, 'slo')} (512), {study.gain(v1, v0, 'slo')} (2048) | SLO |",
        "",
        "Why ours differ. Orca's factor compares at one latency that request-level batching can barely meet, for a "
        "system whose memory held batches of 8 and that adds pipeline stages; by our arithmetic length variance alone explains less than "
        "2x of it (0.56 of the slots of 8 sequences with outputs uniform in 1 to 128 are useful). Ours moves with the "
        "limit in the same way, since static batching only meets it while the GPU is mostly idle. Paging gains less "
        f"here: OPT-13B on an A100-40G has 15.7K KV slots, seven contexts of 2048; this GPU has {slots:,}, "
        f"{slots // study.setting['context']} contexts of {study.setting['context']:,}, because the model shares heads "
        "(GQA) and the GPU is larger. The gain of chunks lies in the tail of the gaps: how large it is depends on how tight "
        "the limit is against one prompt's prefill, and by TTFT and mean TPOT there is little of it.",
    ]


def _orders(study: Study) -> list[str]:
    set_ = study.setting
    lines = [
        "## Who goes first under overload",
        "",
        f"Chunked 2048 with {set_['overload_seats']} seats at {set_['overload']:g} requests/s; the tenant *large* sends "
        "three times the requests of *small*, which has the higher priority. Jain's index is that of the tenants' "
        "service (input + 2 x output tokens of requests begun before the last arrival): 1 if both received the same, 0.5 "
        "if one received all.",
        "",
        "| order | mean TTFT, s | p99 TTFT, s | longest wait, s | small: mean TTFT, s | large: mean TTFT, s | small's share "
        "| Jain |",
        "|---|" + "---:|" * 7,
    ]
    for run in study.orders:
        large, small = run["tenants"]
        seconds = [run["mean_ttft_ms"], run["p99_ttft_ms"], run["longest_wait_ms"], small["mean_ttft_ms"],
                   large["mean_ttft_ms"]]  # fmt: skip
        cells = " | ".join(f"{value / 1e3:.1f}" for value in seconds)
        lines.append(f"| {run['order']} | {cells} | {run['small_share']:.0%} | {run['jain']:.3f} |")
    return [*lines, "", "`shortest_predicted` knows the output lengths (oracle): a bound, not a forecast."]


def _curve_table(study: Study) -> list[str]:
    lines = [
        "## All points",
        "",
        "| rung | req/s | mean TTFT, ms | p99 TTFT, ms | mean TPOT, ms | p99 gap, ms | mean E2E, s | output tok/s | mean batch "
        "| SLO met | goodput, req/s |",
        "|---|" + "---:|" * 10,
    ]
    for name, curve in zip(study.names, study.curves, strict=True):
        lines += [
            f"| {name} | {at['rate']:g} | {at['mean_ttft_ms']:,.0f} | {at['p99_ttft_ms']:,.0f} | {at['mean_tpot_ms']:.1f} | "
            f"{at['p99_itl_ms']:.1f} | {at['mean_e2el_ms'] / 1e3:.1f} | {at['output_throughput']:,.0f} | "
            f"{at['mean_batch_size']:.1f} | {at['slo_attainment']:.1%} | {at['slo_attainment'] * at['rate']:.2f} |"
            for at in curve
        ]
    return lines
