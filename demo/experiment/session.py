"""One demonstration: train a model, serve it, and run live experiments on simulated users, with a real gateway and real servers."""

from __future__ import annotations

import os
import shutil
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
from serving.rollout.collect import write_clicks
from serving.rollout.servers import ArmServers, ServerKind, reload_gateway
from thinktwice.choices import ChallengerMode
from thinktwice.cli import QUIET_STOP
from thinktwice.console.options import LAST_RUN
from thinktwice.console.output import say, shown
from thinktwice.console.processes import POLITE, python_command, running, wait
from thinktwice.console.stages import seconds_text
from thinktwice.console.stop import on_stop
from thinktwice.console.terminal import console_here
from thinktwice.data.simulator.config import SimConfig
from thinktwice.errors import PipelineError, ServerError
from thinktwice.experiment.outcomes import Window
from thinktwice.files import read_json
from thinktwice.interrupts import interruptible
from thinktwice.release.challenger import Version, version_named, versions
from thinktwice.release.champion import require_champion
from thinktwice.release.rollout import ServedArm
from thinktwice.release.rollout_local import LocalRollout, served_arm

RATE_SECONDS = 4.0  # for which the rate of requests is measured before the first experiment is planned
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
    users: int  # seed of visits, assignment and planted defect

    @property
    def state(self) -> Path:
        return self.work / "state"

    @property
    def events(self) -> Path:
        return self.work / "events"


def run_demo(
    runs: Sequence[Run],
    *,
    treatment: str,
    rate: float,
    seed: int,
    work: Path,
    server: ServerKind,
    prepared: Path | None = None,
    users: int | None = None,
) -> dict[Run, LookSeen]:
    """Train, serve, and run experiments one after another. Returns their last looks.

    Args:
        treatment: of the run ``better``: a test-time mode, or the bundle of a version in the state folder.
        rate: visits per second.
        seed: of the simulated world.
        work: folder of everything it writes; removed first.
        prepared: folder of :func:`prepare_demo` with this seed and treatment, which is copied: nothing is trained.
        users: seed of the visits, of the assignment to arms and of the planted defect; None: ``seed``.
    """
    begin = time.monotonic()
    console = console_here()
    world = DemoWorld(WORLD.model_copy(update={"seed": seed}))
    settings = Demo(console, work, world, CrowdPlan(rate=rate), Pace(), seed if users is None else users)
    on_stop("servers, gateway and feedback stopped")
    forget(work)
    ends: dict[Run, LookSeen] = {}
    with interruptible(), ExitStack() as stack:
        say(console, f"thinktwice experiment demo; everything it writes is under {work}\n")
        if prepared is None:
            _write_and_train(settings, _challenger(runs, treatment))
        else:
            shutil.copytree(prepared, work, symlinks=True)
        arm = _treatment(runs[0], settings, treatment)
        place = _serve(stack, settings, server, arm)
        url = stack.enter_context(_feedback(settings, free_ports(1)[0]))
        say(console, f"gateway at {place.servers.url}, feedback at {url}")
        write_clicks(place.events, place.clicks)  # of the past, once for all experiments
        crowd = stack.enter_context(Crowd(world.traffic(settings.users + 1), settings.crowd, place.servers.url, url))
        crowd.be_busy()
        time.sleep(RATE_SECONDS)
        for number, run in enumerate(runs):
            if number:
                crowd.be_quiet()
                arm = _treatment(run, settings, treatment)
                place.servers.prepare(arm)
            ends[run] = _run(run, settings, place, crowd, arm)
    say(
        console,
        f"\ndone in {seconds_text(time.monotonic() - begin)}; serve the champion: thinktwice serve --state {shown(settings.state)}",
    )
    return ends


def prepare_demo(folder: Path, *, treatment: str, seed: int) -> None:
    """Simulate the past, train on it and count its events, without any experiment: for several demonstrations of one world.

    Args:
        folder: new folder.
    """
    world = DemoWorld(WORLD.model_copy(update={"seed": seed}))
    settings = Demo(console_here(), folder, world, CrowdPlan(), Pace(), seed)
    _write_and_train(settings, _challenger(get_args(Run), treatment))
    with _imported(settings) as imported:
        imported()


def _challenger(runs: Sequence[str], treatment: str) -> str:
    """The test-time mode of the challenger that the training packages; empty if there is none."""
    return treatment if "better" in runs and treatment in get_args(ChallengerMode) else ""


def _write_and_train(settings: Demo, challenger: str) -> None:
    settings.world.write_log(settings.work)
    say(
        settings.console,
        f"simulated {settings.world.config.rows:,} past impressions of a world that drifts: the validation below will say so "
        "(drift:psi, drift:ks), as it should",
    )
    _train(settings, challenger)


def _train(settings: Demo, challenger: str) -> None:
    """Train the champion on the simulated log, with a challenger of this mode beside it."""
    command = python_command("thinktwice", "pipeline", "run", "--source", "parquet", "--recipe", "ml-100k")
    command += ["--path", str(settings.work / LOG), "--schema", str(settings.work / SCHEMA), "--test-time", "off"]
    command += ["--work", str(settings.work), "--state", str(settings.state)]
    if challenger:
        command += ["--challenger", challenger]
    with running(command, environment={**os.environ, QUIET_STOP: "1"}, polite=2 * POLITE) as process:
        code = wait(process)
    if code != 0:
        raise PipelineError("the training failed for the reason above: remove it, and run the demo again")
    require_champion(settings.state, "--work")


def _serve(stack: ExitStack, settings: Demo, server: ServerKind, first: ServedArm) -> Place:
    """Start the champion, the first treatment and the gateway, and take the training log as events."""
    config = load_config()
    logged = config.prediction_log.model_copy(update={"sample": 1.0, "part_seconds": 2.0})
    config = config.model_copy(update={"prediction_log": logged, "deadline_ms": 2000.0})
    folder = settings.state / "rollout"
    servers_of: list[ArmServers] = []

    def reload() -> None:
        if servers_of and not servers_of[0].follow():
            reload_gateway(folder)

    target = LocalRollout(settings.state, folder, reload)
    target.serve_champion()
    with settings.console.status("starting servers and gateway") as status, _imported(settings) as imported:
        servers = ArmServers(
            folder,
            free_port(),
            config,
            kind=server,
            settings={"per_try_timeout": 3.0, "timeout": 6.0},
            progress=status.update,
        )
        servers.prepare(first)
        stack.enter_context(servers)
        servers_of.append(servers)
        status.update("counting the events of the past")
        imported()
    window = Window(seconds=settings.crowd.click_within + 1.0)
    return Place(
        settings.work / "experiments", folder, settings.events, settings.work / "clicks", window, servers, target
    )


@contextmanager
def _imported(settings: Demo) -> Iterator[Callable[[], None]]:
    """The training log as first events, in a process beside the start of the servers. The result waits for its end.

    Does nothing if there are events already.
    """
    if settings.events.exists():
        yield lambda: None
        return
    log = settings.work / "import.log"
    clean = read_json(settings.work / LAST_RUN)["tasks"]["validate"]["outputs"]["clean"]
    command = python_command("thinktwice", "feedback", "import", clean)
    command += ["--log", str(settings.events), "--state", str(settings.state)]
    with (
        log.open("wb") as output,
        running(command, environment={**os.environ, QUIET_STOP: "1"}, output=output) as process,
    ):

        def done() -> None:
            if wait(process) != 0:
                raise ServerError(f"the training log was not taken as events: see {log}")

        yield done


@contextmanager
def _feedback(settings: Demo, port: int) -> Iterator[str]:
    """The feedback service, which writes to the store that the servers read."""
    log = settings.work / "feedback.log"
    command = python_command("thinktwice", "feedback", "run", "--log", str(settings.events))
    command += ["--state", str(settings.state), "--port", str(port)]
    with (
        log.open("wb") as output,
        running(command, environment={**os.environ, QUIET_STOP: "1"}, output=output) as process,
    ):
        end = time.monotonic() + 60
        while True:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            if ready := [line for line in lines if line.startswith("ready ")]:
                break
            if process.poll() is not None or time.monotonic() > end:
                raise ServerError(f"the feedback service did not start: see {log}")
            time.sleep(0.1)
        yield ready[0].removeprefix("ready ").strip()


def _run(run: Run, settings: Demo, place: Place, crowd: Crowd, arm: ServedArm) -> LookSeen:
    """One experiment against the champion."""
    console = settings.console
    control, name = require_champion(settings.state, "--work").info.bundle_hash, _name(run)
    users = replace(settings.crowd, rate=min(settings.crowd.rate, crowd.busy_rate))
    planned = plan_demo(name, control, arm.bundle_hash, settings.world, users, settings.pace, settings.users)
    file = planned.file
    assert file.horizon is not None
    say(console, f"\n{TITLES[run]}: control {control[:12]}, treatment {arm.bundle_hash[:12]}", style="bold")
    say(
        console,
        f"{users.rate:.0f} requests/s; planned to find an effect of {settings.pace.effect:.0%} with a probability of "
        f"{planned.plan.wanted_power:.0%}: at most {planned.users:,} users, which takes about {planned.seconds:.0f} s; up to "
        f"{file.horizon.looks} looks; no decision before {file.minimum.units:,} users an arm",
    )
    looks: list[LookSeen] = []
    with Screen(console, crowd) as screen:

        def on_look(seen: LookSeen) -> None:
            looks.append(seen)
            screen.look(seen)

        run_experiment(file, place, crowd, planned.look, on_look)
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


def _name(run: Run) -> str:
    return f"demo-{run}"


def _treatment(run: Run, settings: Demo, treatment: str) -> ServedArm:
    """The treatment of a run."""
    return served_arm(f"{_name(run)}/treatment", _version(run, settings, treatment))


def _version(run: Run, settings: Demo, treatment: str) -> Version:
    champion = require_champion(settings.state, "--work")
    if run == "same":
        return version_named(settings.state, champion.info.bundle_hash)
    if run == "worse":
        trained = versions(settings.state)[0]  # a promoted champion may repair the defect by fresh evidence
        return plant_worse(
            settings.state, trained.bundle_dir, champion.feature_store_dir, share=1.0, seed=settings.users
        )
    modes = [v for v in versions(settings.state) if v.challenger is not None and v.challenger.mode == treatment]
    return modes[-1] if modes else version_named(settings.state, treatment)
