"""The `roofserve` command: one file per subcommand; each parses, calls and prints.

Exit codes: 0; 2 for anything the user wrote; 3 when a gate failed; 130 when interrupted; 1 otherwise.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from sim.errors import SimError

_COMMANDS = {
    "run": "Simulate a scenario and report latency, throughput and memory.",
    "plan": "How many GPUs of which kind hold a rate within objectives, and at what cost.",
    "sweep": "Run many variations of a scenario: one table, resumable.",
    "explain": "What a kernel, or a step of a scenario, costs and what bounds it.",
    "compare": "Hold results, or GPUs, against each other.",
    "validate": "Hold predictions against measurements.",
    "calibrate": "Fit a GPU's kernel constants to measurements.",
    "measure": "Time kernels, and a small engine, on this machine's GPU.",
    "trace": "Recorded traffic: look at it, convert it, generate it.",
    "list": "What can be named in a scenario.",
    "schema": "JSON Schema of the YAML files, for editors.",
}


class _LazyGroup(click.Group):
    """Imports a subcommand when it is called, so that `--help` and small commands answer at once."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The subcommand, imported now; None when there is none of that name."""
        if name not in _COMMANDS:
            return None
        module = "list_" if name == "list" else name
        command: click.Command = getattr(importlib.import_module(f"sim.cli.{module}"), module)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="roofserve")
def cli() -> None:
    """Simulate LLM inference serving without a GPU: latency, throughput, memory, and what bounds them.

    \b
    Start with:
      roofserve run quickstart
      roofserve run quickstart --set hardware=a100-sxm-80gb --set workload.arrival.rate=20
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code; every error is one line on stderr."""
    sys.exit(call(arguments))


def call(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        typed = sys.argv[1:] if arguments is None else arguments
        result: Any = cli.main(args=arguments, prog_name="roofserve", standalone_mode=False, obj=tuple(typed))
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        click.echo(f"Error: {' '.join(error.format_message().split())}{hint}", err=True)
        return error.exit_code
    except SimError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
