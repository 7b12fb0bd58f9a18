"""`thinktwice demo`: train on real data, serve the result, send a request, show the response."""

# Annotations stay real objects here: typer reads them.
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from demo.answer import print_answer, print_call
from demo.fresh import EventFeed, choose_clicks, print_moves
from demo.question import Question, choose_question
from demo.server import ask, free_port, serving
from thinktwice.choices import RecipeName
from thinktwice.cli import QUIET_STOP
from thinktwice.console.options import LAST_RUN
from thinktwice.console.output import say
from thinktwice.console.processes import POLITE, python_command, running, wait
from thinktwice.console.stages import StageBoard, seconds_text
from thinktwice.console.stop import NOTHING_HALF_WRITTEN, on_stop
from thinktwice.console.terminal import console_here
from thinktwice.errors import PipelineError
from thinktwice.files import read_json
from thinktwice.interrupts import interruptible
from thinktwice.release.champion import read_champion, verify_archive

WORK = Path(".thinktwice/demo")
SIMULATED_ROWS = 200_000
COUNTERS = "counters"  # key of the answers of a model that reads counters
TITLES = {"serve": "start the model server", "ask": "ask it a question"}
FEED = {"log": "feed it the log up to its last day", "day": "feed it the last day", "before": "ask it a question"}
CLICKS = {"clicks": "click some items", "after": "ask the same question again"}


Dataset = Literal["ml-1m", "ml-100k", "sim"]
RECIPES: dict[Dataset, RecipeName] = {"ml-1m": "ml-1m", "ml-100k": "ml-100k", "sim": "ml-100k"}


def demo(
    dataset: Annotated[
        Dataset, typer.Option(help="MovieLens with 1,000,209 or 100,000 ratings, or a simulated ad log.")
    ] = "ml-1m",
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Keep the server running at the end, until Ctrl-C.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Delete results of earlier demos of this data set and compute everything again."),
    ] = False,
) -> None:
    """Train a model on public data, serve it, and print the top items for one user."""
    start_time = time.monotonic()
    console = console_here()
    work = WORK / dataset
    state = work / "state"
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    on_stop(NOTHING_HALF_WRITTEN)
    with interruptible():
        say(console, f"thinktwice demo on {dataset}; everything it writes is under {work}\n")
        code = _run_pipeline(dataset, work, state)
        if code != 0:
            raise typer.Exit(code)  # the pipeline has printed the reason on the same terminal
        _serve_and_ask(console, work, state, keep_serving)
    console.print(f"\ndone in {seconds_text(time.monotonic() - start_time)}")


def _run_pipeline(dataset: Dataset, work: Path, state: Path) -> int:
    command = python_command(
        "thinktwice", "pipeline", "run", "--source", dataset, "--recipe", RECIPES[dataset], "--work", str(work)
    )
    command += ["--state", str(state)]
    if dataset == "sim":
        command += ["--limit", str(SIMULATED_ROWS)]
    # The pipeline draws its own stages on the same terminal.
    # It stops its own runner first.
    with running(command, environment={**os.environ, QUIET_STOP: "1"}, polite=2 * POLITE) as process:
        code = wait(process)
    return code if code >= 0 else 1


def _check_champion(state: Path, run: dict[str, Any]) -> None:
    """Check that there is a model to serve before the server is started.

    Raises:
        PipelineError: no model has been blessed.
        BundleError: the champion is damaged.
    """
    champion = read_champion(state)
    if champion is None:
        raise PipelineError(
            "the model was not blessed and there is no earlier one, so nothing is served: read the reasons above and the "
            f"report {os.path.relpath(run['model_report'])}, or start over with --fresh"
        )
    verify_archive(champion)


def _serve_and_ask(console: Console, work: Path, state: Path, keep_serving: bool) -> None:
    run = read_json(work / LAST_RUN)
    _check_champion(state, run)
    question = choose_question(Path(run["training_set"]))
    port = free_port()
    with ExitStack() as stack:
        with StageBoard(console, TITLES) as board:
            with board.stage("serve"):
                server = stack.enter_context(serving(state, port, work / "serve.log"))
            with board.stage("ask"):
                sent_at = time.perf_counter()
                prediction = ask(port, question.request)
                board.note(f"{len(question.titles)} items scored in {1000 * (time.perf_counter() - sent_at):.0f} ms")
        if COUNTERS in prediction:
            clean = Path(run["tasks"]["validate"]["outputs"]["clean"])
            _feed_and_ask(console, EventFeed(clean, work / "feedback", "--state", str(state)), clean, question, port)
        else:
            print_answer(console, question, prediction)
        print_call(console, question, port, state, running=keep_serving)
        if keep_serving:
            on_stop("server stopped")
            wait(server)


def _feed_and_ask(console: Console, feed: EventFeed, clean: Path, question: Question, port: int) -> None:
    """Bring the counters of the server up to the end of the log, and ask before and after some clicks of the user."""
    with StageBoard(console, FEED) as board:
        with board.stage("log"):
            board.note(f"{feed.begin():,} impressions")
        with board.stage("day"):
            board.note(f"{feed.last_day():,} impressions")
        with board.stage("before"):
            first = ask(port, question.at(feed.now).request)
    clicks = choose_clicks(feed, clean, question, first)
    asked = question.among(clicks.candidates)
    before = ask(port, asked.at(feed.now).request)
    print_answer(console, asked, before)
    with StageBoard(console, CLICKS) as board:
        with board.stage("clicks"):
            feed.clicks(question, clicks)
            board.note(f"{len(clicks.items)} clicks, counted after {seconds_text(feed.window.total_seconds())}")
        with board.stage("after"):
            after = ask(port, asked.at(feed.now).request)
    print_moves(console, question, clicks, before, after)
