"""The command line: a tiny entry that finds each room's verbs through the entry points ``thinktwice.commands``."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import click
import typer

from thinktwice import __version__
from thinktwice.errors import ThinktwiceError

GROUP = "thinktwice.commands"


def build_app() -> typer.Typer:
    """Collect the verbs of all installed rooms. A verb is a ``typer.Typer`` (sub-verbs) or a function (one verb)."""
    app = typer.Typer(
        name="thinktwice",
        help="Train a click-through-rate model and serve it so that it thinks twice only when it is unsure.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if version:
            typer.echo(__version__)
            raise typer.Exit

    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        verb = point.load()
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=point.name)
        else:
            app.command(point.name)(verb)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one verb. A user's error prints one sentence and gives 1; Ctrl-C gives 130."""
    command = typer.main.get_command(build_app())
    try:
        result = command.main(args=arguments, prog_name="thinktwice", standalone_mode=False)
        return int(result) if isinstance(result, int) else 0
    except ThinktwiceError as error:
        print(f"thinktwice: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except click.exceptions.Abort:
        print("thinktwice: stopped", file=sys.stderr)  # noqa: T201
        return 130
    except KeyboardInterrupt:
        print("thinktwice: stopped", file=sys.stderr)  # noqa: T201
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
