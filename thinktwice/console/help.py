"""The text of `--help` at any width, without cutting names or breaking words as Typer's help does in a narrow terminal."""

from __future__ import annotations

import io
import sys
from functools import partial
from inspect import cleandoc
from typing import Any

from rich.console import Console

from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.console.terminal import Terminal, console_here

COLUMNS = (Column("", right=False), Column("", right=False, wraps=True))


def with_plain_help(command: Any) -> Any:
    """Give the command and all its subcommands this help."""
    command.format_help = partial(_format_help, command)
    for subcommand in getattr(command, "commands", {}).values():
        with_plain_help(subcommand)
    return command


def _format_help(command: Any, context: Any, formatter: Any) -> None:
    out = io.StringIO()
    console = Terminal(file=out, width=console_here().width, force_terminal=sys.stdout.isatty())
    say(console, " ".join(["Usage:", context.command_path, *command.collect_usage_pieces(context)]))
    for paragraph in cleandoc(command.help or "").split("\n\n"):
        say(console, "\n" + " ".join(paragraph.split()))
    parameters = command.get_params(context)
    _print_list(console, "Arguments", [_record(p, context) for p in parameters if p.param_type_name == "argument"])
    _print_list(console, "Options", [_record(p, context) for p in parameters if p.param_type_name == "option"])
    if hasattr(command, "list_commands"):
        commands = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
        _print_list(
            console,
            "Commands",
            [Record((name, (c.short_help or (c.help or "").split("\n\n")[0]))) for name, c in commands],
        )
    formatter.write(out.getvalue())


def _record(parameter: Any, context: Any) -> Record:
    names, text = parameter.get_help_record(context) or (parameter.make_metavar(context), "")
    return Record((names, text))


def _print_list(console: Console, title: str, records: list[Record]) -> None:
    if records:
        say(console, f"\n{title}:")
        print_table(console, COLUMNS, [Record([" ".join(str(c).split()) for c in r.cells]) for r in records])
