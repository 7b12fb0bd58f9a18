"""One demonstration: train a model, serve it, and run live experiments on simulated users, with a real gateway and real servers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from demo.experiment.crowd import Crowd, CrowdPlan
from demo.experiment.loop import LookSeen, Place, run_experiment
from demo.experiment.page import write_page
from demo.experiment.plan import Pace, plan_demo
from demo.experiment.planted import forget, plant_worse
from demo.experiment.screen import Screen, effect_text, true_text
from demo.experiment.world import LOG, SCHEMA, DemoWorld
from demo.server import free_port
from serving.config import load_config
from serving.local.processes import free_ports
from serving.rollout.servers import ArmServers, ServerKind, reload_gateway
from thinktwice.choices import ChallengerMode
from thinktwice.cli import QUIET_STOP
from thinktwice.console.options import LAST_RUN
from thinktwice.console.output import say, shown
from thinktwice.console.processes import POLITE, python_command, start, stop, terminated_like_interrupted, wait
from thinktwice.console.stages import seconds_text
from thinktwice.console.stop import on_stop
from thinktwice.console.terminal import console_here
from thinktwice.data.simulator.config import SimConfig
from thinktwice.errors import PipelineError, ServerError
from thinktwice.experiment.outcomes import Window
from thinktwice.files import read_json
from thinktwice.release.challenger import version_named, versions
from thinktwice.release.champion import require_champion
from thinktwice.release.rollout_local import LocalRollout

ALPHA = 0.01
RATE_SECONDS = 4.0  # for which the rate of requests is measured before an experiment is planned
Run = Literal["better", "worse", "same"]
TITLES: dict[Run, str] = {
    "better": "a model with fresh evidence against one without",
    "worse": "a planted worse model",
    "same": "the same model twice (A/A)",
}
WORLD = SimConfig(rows=60_000, users=20_000, items=300, drift=2.0, click_rate=0.3, id_variance=3.0, shared_variance=0.3)


@dataclass(frozen=True)
class Demo:
    """Everything that the three experiments share."""

    console: Console
    work: Path
    world: DemoWorld
    crowd: CrowdPlan
    pace: Pace
    seed: int

    @property
    def state(self) -> Path:
        return self.work / "state"


def run_demo(
    runs: Sequence[Run], *, treatment: str, rate: float, seed: int, work: Path, server: ServerKind
) -> dict[Run, LookSeen]:
    """Train, serve, and run experiments one after another. Returns their last looks.

    Args:
        treatment: of the run ``better``: a test-time mode, or the bundle of a version in the state folder.
        rate: visits per second.
        work: folder of everything it writes; removed first.
    """
    begin = time.monotonic()
    console = console_here()
    world = DemoWorld(WORLD.model_copy(update={"seed": seed}))
    settings = Demo(console, work, world, CrowdPlan(rate=rate), Pace(), seed)
    on_stop("servers, gateway and feedback stopped")
    forget(work)
    ends: dict[Run, LookSeen] = {}
    with terminated_like_interrupted(), ExitStack() as stack:
        say(console, f"thinktwice experiment demo; everything it writes is under {work}\n")
        world.write_log(work)
        say(
            console,
            f"simulated {world.config.rows:,} past impressions of a world that drifts: the validation below will say so "
            "(drift:psi, drift:ks), as it should",
        )
        _train(settings, treatment if "better" in runs and treatment in get_args(ChallengerMode) else "")
        place = _serve(stack, settings, server)
        port = free_ports(1)[0]
        url = stack.enter_context(_feedback(settings, place.events, port))
        say(console, f"gateway at {place.servers.url}, feedback at {url}")
        crowd = stack.enter_context(Crowd(world.traffic(seed + 1), settings.crowd, place.servers.url, url))
        for run in runs:
            ends[run] = _run(run, settings, place, crowd, treatment)
    say(
        console,
        f"\ndone in {seconds_text(time.monotonic() - begin)}; serve the champion: thinktwice serve --state {shown(settings.state)}",
    )
    return ends


def _train(settings: Demo, challenger: str) -> None:
    """Train the champion on the simulated log, with a challenger of this mode beside it."""
    command = python_command("thinktwice", "pipeline", "run", "--source", "parquet", "--recipe", "ml-100k")
    command += ["--path", str(settings.work / LOG), "--schema", str(settings.work / SCHEMA), "--test-time", "off"]
    command += ["--work", str(settings.work), "--state", str(settings.state)]
    if challenger:
        command += ["--challenger", challenger]
    process = start(command, environment={**os.environ, QUIET_STOP: "1"})
    try:
        code = wait(process)
    finally:
        stop(process, polite=2 * POLITE)
    if code != 0:
        raise PipelineError("the training failed for the reason above: remove it, and run the demo again")
    require_champion(settings.state, "--work")


def _serve(stack: ExitStack, settings: Demo, server: ServerKind) -> Place:
    """Start the champion and the gateway, and take the training log as events."""
    config = load_config()
    logged = config.prediction_log.model_copy(update={"sample": 1.0, "part_seconds": 2.0})
    config = config.model_copy(update={"prediction_log": logged, "deadline_ms": 2000.0})
    folder = settings.state / "rollout"
    events = settings.work / "events"
    servers_of: list[ArmServers] = []

    def reload() -> None:
        if servers_of and not servers_of[0].follow():
            reload_gateway(folder)

    target = LocalRollout(settings.state, folder, reload)
    target.serve_champion()
    with settings.console.status("starting servers and gateway") as status, _imported(settings, events) as imported:
        servers = ArmServers(
            folder,
            free_port(),
            config,
            kind=server,
            settings={"per_try_timeout": 3.0, "timeout": 6.0},
            progress=status.update,
        )
        stack.enter_context(servers)
        servers_of.append(servers)
        status.update("counting the events of the past")
        imported()
    window = Window(seconds=settings.crowd.click_within + 1.0)
    return Place(settings.work / "experiments", folder, events, window, servers, target)


@contextmanager
def _imported(settings: Demo, events: Path) -> Iterator[Callable[[], None]]:
    """The training log as first events, in a process beside the start of the servers. The result waits for its end."""
    log = settings.work / "import.log"
    clean = read_json(settings.work / LAST_RUN)["tasks"]["validate"]["outputs"]["clean"]
    command = python_command("thinktwice", "feedback", "import", clean)
    command += ["--log", str(events), "--state", str(settings.state)]
    with log.open("wb") as output:
        process = start(command, environment={**os.environ, QUIET_STOP: "1"}, output=output)

        def done() -> None:
            if wait(process) != 0:
                raise ServerError(f"the training log was not taken as events: see {log}")

        try:
            yield done
        finally:
            stop(process)


@contextmanager
def _feedback(settings: Demo, events: Path, port: int) -> Iterator[str]:
    """The feedback service, which writes to the store that the servers read."""
    log = settings.work / "feedback.log"
    command = python_command("thinktwice", "feedback", "run", "--log", str(events))
    command += ["--state", str(settings.state), "--port", str(port)]
    with log.open("wb") as output:
        process = start(command, environment={**os.environ, QUIET_STOP: "1"}, output=output)
        try:
            end = time.monotonic() + 60
            while True:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                if ready := [line for line in lines if line.startswith("ready ")]:
                    break
                if process.poll() is not None or time.monotonic() > end:
                    raise ServerError(f"the feedback service did not start: see {log}")
                time.sleep(0.1)
            yield ready[0].removeprefix("ready ").strip()
        finally:
            stop(process)


def _run(run: Run, settings: Demo, place: Place, crowd: Crowd, treatment: str) -> LookSeen:
    """One experiment."""
    console = settings.console
    control, version = _arms(run, settings, treatment)
    name = f"demo-{run}"
    rate = crowd.measured_rate(RATE_SECONDS)
    plans = replace(settings.crowd, rate=min(settings.crowd.rate, rate))
    file, plan = plan_demo(name, control, version, settings.world, plans, settings.pace, ALPHA, settings.seed)
    horizon = file.horizon
    assert horizon is not None
    say(console, f"\n{TITLES[run]}: control {control[:12]}, treatment {version[:12]}", style="bold")
    chance = (
        f"with a probability of {plan.wanted_power:.0%}"
        if plan.days_needed
        else "(less surely: requests are too slow here)"
    )
    say(
        console,
        f"{plans.rate:.0f} requests/s; planned to find an effect of {settings.pace.effect:.0%} {chance}: at most "
        f"{horizon.days * 86_400:.0f} s, {horizon.looks} looks, at least {file.minimum.units:,} users an arm",
    )
    looks: list[LookSeen] = []
    with Screen(console, file, crowd) as screen:

        def on_look(seen: LookSeen) -> None:
            looks.append(seen)
            screen.look(seen)

        run_experiment(file, place, crowd, settings.pace.look, on_look)
    _say_end(console, looks[-1])
    page = settings.work / "reports" / f"{name}.html"
    write_page(looks, page)
    say(console, f"report {shown(page)}")
    return looks[-1]


def _say_end(console: Console, seen: LookSeen) -> None:
    words = {"promote": "promoted", "roll_back": "rolled back", "stop": "no decision", None: "running"}
    result = seen.record.verdict.primary[0]
    say(
        console,
        f"{words[seen.state.ended]}: effect {effect_text(result.relative, result.relative_low, result.relative_high)}, "
        f"true {true_text(seen.true_effect)}",
        style="bold",
    )


def _arms(run: Run, settings: Demo, treatment: str) -> tuple[str, str]:
    """Bundle hashes of control and treatment."""
    champion = require_champion(settings.state, "--work")
    control = champion.info.bundle_hash
    if run == "same":
        return control, control
    if run == "worse":
        trained = versions(settings.state)[0]  # a promoted champion may repair the defect by fresh evidence
        version = plant_worse(
            settings.state, trained.bundle_dir, champion.feature_store_dir, share=1.0, seed=settings.seed
        )
        return control, version.bundle_hash
    modes = [v for v in versions(settings.state) if v.challenger is not None and v.challenger.mode == treatment]
    return control, modes[-1].bundle_hash if modes else version_named(settings.state, treatment).bundle_hash
