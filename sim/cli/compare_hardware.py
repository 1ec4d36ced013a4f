"""`roofserve compare hardware`: which GPU to serve a model on."""

from __future__ import annotations

from typing import Any

import click

from sim.cli.places import output_directory
from sim.cli.plan_options import carry_out, executor_from, overrides_of, planning_options, request_of, show
from sim.errors import ConfigError
from sim.planner.plan import at_equal_load
from sim.planner.trial import Base

_OBJECTIVES = {"ttft_p99_ms": 500, "tpot_p99_ms": 50}


@click.command("hardware")
@click.option("--hardware", required=True, metavar="GPU,...", help="Profiles to compare.")
@click.option("--model", required=True, help="Hugging Face id from the catalogue, or a config.json.")
@click.option("--workload", default="chat", show_default=True, help="A shipped workload, a file, or a trace.")
@click.option("--preset", default="vllm-v1", show_default=True, help="Engine preset.")
@planning_options
def hardware(hardware: str, model: str, workload: str, preset: str, **options: Any) -> int:
    """Compare GPUs for a model: for each the best configuration, its fleet, cost, energy, speed, and what limits it.

    Each GPU is sized as `plan` does it, for the workload's rate or --rate, and [default: ttft_p99=500ms,tpot_p99=50ms].
    A model too large for one node is spread over several, as pipeline stages. Latencies at equal load are those of one
    replica each at the same rate per GPU.

    \b
    Examples:
      roofserve compare hardware --hardware h100-sxm,a100-sxm-80gb,h200-sxm,l40s --model meta-llama/Llama-3.1-8B
      roofserve compare hardware --hardware h200-sxm,h100-sxm --model bigscience/bloom --search tp,quantization \\
          --slo ttft_p99=2s,tpot_p99=100ms --rate 4
    """
    short = model.rstrip("/").rpartition("/")[2].removesuffix(".json")
    scenario = {
        "name": f"hardware-for-{short}", "model": model, "hardware": hardware.split(",")[0].strip(),
        "workload": workload, "engine": {"preset": preset}, "slo": dict(_OBJECTIVES),
    }  # fmt: skip
    if not scenario["hardware"]:
        raise ConfigError("names no GPU", key="--hardware", value=hardware)
    base = Base(scenario, overrides_of(options))
    directory = output_directory(options["out"], base.load({}).scenario.name)
    plan = carry_out(request_of(base, hardware, options), None, options)
    show(at_equal_load(plan, executor_from(options)), directory, options)
    return 0
