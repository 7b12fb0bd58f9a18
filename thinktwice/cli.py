"""The command line: a tiny entry that finds each package's commands through the entry points ``thinktwice.commands``.

An entry point ``GROUP.COMMAND`` adds one command of another package to a group.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from thinktwice import __version__
from thinktwice.console.help import with_plain_help
from thinktwice.console.stop import on_stop, stop_sentence
from thinktwice.errors import ResourceError, ThinktwiceError
from thinktwice.explain import error_record
from thinktwice.printable import printable

GROUP = "thinktwice.commands"
PROGRAM = "thinktwice"
TYPER_COMPLETION = (
    "install_completion",
    "show_completion",
)  # options of typer, which know nothing of the whole command line
COMPLETE = "_THINKTWICE_COMPLETE"  # environment variable: what a shell asks for, see `thinktwice completion`
LINE_BREAKS = "\n"  # of messages that list several things
INTERRUPTED = 130  # exit status after Ctrl-C
QUIET_STOP = "THINKTWICE_QUIET_STOP"  # set by a caller that prints the message about stopping itself


class LazyCommands(TyperGroup):
    """Loads a package only when one of its commands is called: ``predict`` must not wait for the imports of ``pipeline``."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = {point.name for point in entry_points(group=GROUP) if "." not in point.name}
        return sorted({*found, *super().list_commands(ctx)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        points = [point for point in entry_points(group=GROUP) if point.name == cmd_name]
        return _command_of(points[0]) if points else super().get_command(ctx, cmd_name)


def _command_of(point: EntryPoint) -> Any:
    """The command behind an entry point: a ``typer.Typer`` with subcommands, or a function that is one command."""
    try:
        loaded = point.load()
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"the command {point.name!r} needs the package {error.name!r}, which is not installed: run `make setup`"
        ) from error
    name = point.name.rpartition(".")[2]
    if isinstance(loaded, typer.Typer):
        command: Any = typer.main.get_command(loaded)
        command.params = [p for p in command.params if p.name not in TYPER_COMPLETION]
        for added in entry_points(group=GROUP):
            if added.name.rpartition(".")[0] == point.name:
                command.add_command(_command_of(added))
    else:
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name)(loaded)
        command = typer.main.get_command(single)
    command.name = name
    return with_plain_help(command)


app = typer.Typer(
    cls=LazyCommands,
    name="thinktwice",
    help="Train a click-through-rate model and serve it so that it thinks twice only when it is unsure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Train a click-through-rate model and serve it so that it thinks twice only when it is unsure."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Your shell.", show_default=False)],
) -> None:
    """Print a script that completes commands and options in your shell: `source <(thinktwice completion bash)` in ~/.bashrc or, with zsh,
    ~/.zshrc; for fish `thinktwice completion fish > ~/.config/fish/completions/thinktwice.fish`."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE, shell=shell).strip())


def _prepare_completion() -> None:
    """Register the forms in which the scripts of `completion` ask, when a shell does."""
    if COMPLETE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for an error (one sentence on stderr), 2 for wrong usage, 130 for Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # so that a background job can be stopped too
    on_stop()
    _prepare_completion()
    try:
        with_plain_help(typer.main.get_command(app)).main(args=arguments, prog_name=PROGRAM, complete_var=COMPLETE)
    except ThinktwiceError as error:
        _print_error(str(error))
        return 1
    except BrokenPipeError:
        # The reader of our output (a pager, `head`) closed the pipe: this is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        if code == INTERRUPTED and QUIET_STOP not in os.environ:
            _print_error(stop_sentence())
        return code
    except KeyboardInterrupt:
        _print_error(stop_sentence())
        return INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - the panics of Rust libraries are no Exception
        _print_error(_unexpected_error_message(error))
        return 1
    return 0


def _unexpected_error_message(error: BaseException) -> str:
    """The message of an unexpected error. The traceback goes to a file and is not shown."""
    record = error_record(error)
    if record.own:
        return record.message
    message = f": {record.message}" if record.message else ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="thinktwice-error-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"failed with {record.type}{message}"
    return f"failed with {record.type}{message}; what led to it is in {file.name}"


def _print_error(sentence: str) -> None:
    """Print one line on stderr; a terminal breaks it between words."""
    text = f"thinktwice: {printable(sentence, LINE_BREAKS)}"
    if sys.stderr.isatty():
        from thinktwice.console.output import say
        from thinktwice.console.terminal import console_here

        say(console_here(stderr=True), text)
    else:
        print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
