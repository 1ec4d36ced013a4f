"""`roofserve plan SCENARIO`: the smallest and the cheapest fleet for a rate, or the highest rate of a fleet."""

from __future__ import annotations

from typing import Any

import click

from sim.cli.places import output_directory
from sim.cli.plan_options import carry_out, overrides_of, planning_options, request_of, show
from sim.errors import ConfigError
from sim.planner.trial import Base


@click.command()
@click.argument("scenario")
@click.option("--hardware", metavar="GPU,...", help="Profiles to choose from [default: the scenario's]")
@click.option("--trace", metavar="FILE", help="Plan for this traffic, a trace or a workload, at its busiest.")
@click.option("--replicas", type=click.IntRange(1), metavar="N",
              help="The other way round: the highest rate that N replicas hold.")  # fmt: skip
@planning_options
def plan(scenario: str, hardware: str | None, trace: str | None, replicas: int | None, **options: Any) -> int:
    """Find the smallest and the cheapest fleet that holds a rate within objectives, by simulation.

    Every configuration asked for is sized: the fewest replicas that hold with every seed. Exits with 3 where no fleet
    holds, and says which objectives one would.

    \b
    Examples:
      roofserve plan quickstart --rate 50 --slo ttft_p99=500ms,tpot_p99=50ms --hardware h100-sxm,l40s
      roofserve plan quickstart --rate 50 --hardware h100-sxm,a100-sxm-80gb --search tp,quantization --spare 1
      roofserve plan quickstart --replicas 2
      roofserve plan quickstart --trace AzureLLMInferenceTrace_conv.csv --headroom 20
    """
    if replicas is not None and (options["spare"] or options["headroom"]):
        raise ConfigError("asks what a given fleet holds: --spare and --headroom are for sizing one", key="--replicas",
                          value=replicas)  # fmt: skip
    overrides = overrides_of(options) | ({"workload": trace} if trace is not None else {})
    base = Base(scenario, overrides)
    directory = output_directory(options["out"], base.load({}).scenario.name)
    request = request_of(base, hardware, options, vary=replicas is None)
    made = carry_out(request, replicas, options)
    show(made, directory, options, inverse=replicas is not None)
    return 0
