"""The actions ``canary``, ``promote`` and ``roll_back`` of a service, with lock, record, and the way back after a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from components.cluster.client import UnreachableError
from components.deployment.rollout.gateway import CANARY, Gateway, canary_experiment
from components.deployment.rollout.knative import Knative
from components.deployment.rollout.lock import DURATION_S, Action, Lock, LostLockError, State, read_state
from components.deployment.rollout.objects import MODE, SERVICES, Form, Version
from components.deployment.rollout.probe import remove_probes
from components.deployment.rollout.standard import Standard
from components.deployment.rollout.target import Live, Session, Target
from thinktwice.errors import RolloutError, ThinktwiceError
from thinktwice.experiment.file import ExperimentFile
from thinktwice.frozen import Frozen

FORMS: dict[Form, Callable[[Session], Target]] = {"gateway": Gateway, "knative": Knative, "standard": Standard}
Choice = Literal["auto", "gateway", "knative", "standard"]


class Status(Frozen):
    """What is served and what a roll-out has done."""

    form: Form
    live: Live
    state: State | None


def chosen_form(session: Session, form: Choice) -> Form:
    """The form that was given, or the one that fits what is in the namespace.

    Raises:
        RolloutError: there is no InferenceService of that name.
    """
    if form != "auto":
        return form
    api, service = session.api, session.service
    found = api.get(SERVICES, service)
    if found is None:
        if api.get(SERVICES, f"{service}-control") is not None:
            return "gateway"
        raise RolloutError(
            f"namespace {api.namespace} has neither an InferenceService {service} nor {service}-control: apply an overlay of manifests/ "
            "first, or give --namespace and --service"
        )
    mode = found.get("status", {}).get("deploymentMode") or found["metadata"].get("annotations", {}).get(MODE, "")
    return "knative" if mode in ("Knative", "Serverless") else "standard"


def canary(
    session: Session, version: Version, percent: int, form: Choice = "auto", duration_s: int = DURATION_S
) -> None:
    """Serve a version beside the stable one with a share of the requests. A second call completes an interrupted one, or changes the share.

    Raises:
        RolloutError: the form has no effect here, another canary stands, or the version failed and was taken back.
    """
    kind = chosen_form(session, form)
    with _locked(session, kind, duration_s) as (lock, target, live, known):
        _check_action(known, "canary")
        standing = live.canary or (known.canary if known is not None else None)
        if standing is not None and standing.name != version.name:
            raise RolloutError(
                f"the canary {standing.name} stands beside {live.stable.name}: promote it or roll it back first (`thinktwice rollout promote`, "
                "`thinktwice rollout rollback`)"
            )
        if live.stable.name == version.name and standing is None:
            raise RolloutError(f"{version.name} is the stable version of {session.service} already: give another")
        resumed = known is not None and known.canary is not None
        state = State(
            form=kind,
            action="canary",
            stable=live.stable,
            canary=version if standing is None else standing,
            previous=known.previous if known is not None else None,
            percent=percent,
            min_replicas=known.min_replicas if known is not None and resumed else _min_replicas(live),
            experiment=canary_experiment(live.stable, version, percent) if kind == "gateway" else None,
        )
        lock.save(state)
        with _taken_back(session, lock, target, state, f"the canary {version.name}"):
            target.canary(state)
        lock.save(state.model_copy(update={"action": ""}))


def promote(session: Session, form: Choice = "auto", duration_s: int = DURATION_S) -> None:
    """Make the canary the stable version. A second call completes an interrupted one, and does nothing after a complete one.

    Raises:
        RolloutError: no canary stands, or it failed and the version before was restored.
    """
    kind = chosen_form(session, form)
    with _locked(session, kind, duration_s) as (lock, target, live, known):
        _check_action(known, "promote")
        version = live.canary or (known.canary if known is not None else None)
        if version is None:
            if known is not None and known.previous is not None and known.stable.name == live.stable.name:
                session.tell(f"{live.stable.name}: promoted already")
                return
            raise RolloutError(
                f"no canary stands beside {live.stable.name}: start one with `thinktwice rollout canary`"
            )
        before = known if known is not None and known.canary is not None else None
        state = State(
            form=kind,
            action="promote",
            stable=before.stable if before is not None else live.stable,
            canary=version,
            previous=before.previous if before is not None else None,
            percent=before.percent if before is not None else live.percent,
            min_replicas=before.min_replicas if before is not None else _min_replicas(live),
            experiment=before.experiment if before is not None else None,
        )
        lock.save(state)
        with _taken_back(session, lock, target, state, f"the promotion of {version.name}"):
            target.promote(state)
        lock.save(State(form=kind, stable=version, previous=state.stable))
        session.tell(f"{version.name}: promoted, {state.stable.name} is the version to roll back to")


def roll_back(session: Session, form: Choice = "auto", duration_s: int = DURATION_S) -> None:
    """Take back the canary; without one, restore the version before the last promotion. A second call completes an interrupted one.

    Raises:
        RolloutError: there is nothing to roll back to, or the old version does not become ready.
    """
    kind = chosen_form(session, form)
    with _locked(session, kind, duration_s) as (lock, target, live, known):
        _check_action(known, "rollback")
        if known is not None and (known.action or known.canary is not None):
            state = known.model_copy(update={"form": kind, "action": "rollback"})
        elif live.canary is not None:
            state = State(
                form=kind, action="rollback", stable=live.stable, canary=live.canary, min_replicas=live.min_replicas
            )
        elif known is not None and known.previous is not None:
            state = State(form=kind, action="rollback", stable=known.previous, min_replicas=live.min_replicas)
        else:
            raise RolloutError(
                f"there is nothing to roll back: {live.stable.name} serves all requests and no version before it is known; roll out an earlier bundle instead"
            )
        # An interrupted call has recorded what served; what is there now may be the version that does not start.
        served = state.served or live.stable
        state = state.model_copy(update={"served": served})
        lock.save(state)
        if served == state.stable:
            target.roll_back(state)
        else:
            kept = state.model_copy(update={"stable": served, "previous": state.stable})
            with _taken_back(session, lock, target, kept, f"the roll-back to {state.stable.name}"):
                target.roll_back(state)
        lock.save(State(form=kind, stable=state.stable))
        session.tell(f"{state.stable.name}: serves all requests, no canary is left")


def status(session: Session, form: Choice = "auto") -> Status:
    """What is served, and what roll-outs have done. Takes no lock."""
    kind = chosen_form(session, form)
    return Status(form=kind, live=FORMS[kind](session).live(), state=read_state(session.api, session.service))


def completes(state: State) -> str:
    """What to do about an action that was not finished."""
    experiment = state.experiment
    if experiment is None or experiment.name == CANARY:
        return f"`thinktwice rollout {state.action}` completes it"
    if state.action == "start":
        return "`thinktwice rollout start` completes it, or takes it back"
    return f"the same command completes it, or `thinktwice rollout stop {experiment.name}` ends the experiment"


@contextmanager
def locked_experiment(
    session: Session,
    gateway: Gateway,
    file: ExperimentFile,
    action: Literal["start", "weight", "promote", "rollback"],
) -> Iterator[State]:
    """The lock for a change of an experiment, recorded before and after. A start that fails is taken back; of what runs, the arms stay.

    Yields:
        What is recorded: as ``stable`` what control served before the change was begun, by this call or by one that was interrupted.

    Raises:
        RolloutError: a canary or another experiment stands.
    """
    with _locked(session, "gateway", DURATION_S) as (lock, _, live, known):
        running = known.experiment if known is not None else None
        if running is not None and running.name != file.name:
            raise RolloutError(f"{running.name} runs in this namespace: end it before {file.name}")
        if known is None or running is None:
            before = State(form="gateway", stable=live.stable, previous=known.previous if known else None)
        else:
            before = known
        started = running is not None and before.action != "start"
        if action in ("start", "weight"):
            action = "weight" if started else "start"
        changed = before.action in ("promote", "rollback")  # control, perhaps
        state = State(
            form="gateway",
            action=action,
            stable=before.stable if changed else live.stable,
            served=(before.served or live.stable) if action == "rollback" else None,
            previous=before.previous,
            experiment=file,
        )
        lock.save(state)
        try:
            yield state
        except (LostLockError, UnreachableError):
            raise
        except ThinktwiceError as error:
            if action == "promote" and not changed and gateway.live().stable == state.stable:
                lock.save(before)  # taken back already
            if action != "start":
                raise  # it runs, and has a record: the same command goes on, or `stop` ends it
            session.tell(f"the start of {file.name} failed, so its arms are removed: {error}")
            try:
                gateway.end(file)
                lock.save(State(form="gateway", stable=live.stable, previous=before.previous))
            except ThinktwiceError as second:
                raise RolloutError(
                    f"the start of {file.name} failed: {error}; taking it back failed too ({second}): run `thinktwice rollout start` again"
                ) from second
            raise
        stable, ended = gateway.live().stable, action in ("promote", "rollback")
        previous = state.stable if stable != state.stable else state.previous
        lock.save(State(form="gateway", stable=stable, previous=previous, experiment=None if ended else file))


@contextmanager
def _locked(session: Session, kind: Form, duration_s: int) -> Iterator[tuple[Lock, Target, Live, State | None]]:
    """Hold the lock; what is alive is read under it."""
    target = FORMS[kind](session)
    target.live()  # a form without an effect, or a missing service, is refused before anything is written
    with Lock(session.api, session.service, duration_s=duration_s) as lock:
        known = lock.state
        if known is not None and known.form != kind and (known.action or known.canary is not None):
            raise RolloutError(
                f"a roll-out of the form {known.form} is not finished: `thinktwice rollout rollback --form {known.form}` ends it"
            )
        if known is None:
            lock.save(State(form=kind, stable=target.live().stable))
            known = None
        session.renew = lock.renew
        remove_probes(session.api, session.service)
        try:
            yield lock, target, target.live(), known
        finally:
            session.renew = lambda: None


@contextmanager
def _taken_back(session: Session, lock: Lock, target: Target, state: State, what: str) -> Iterator[None]:
    """Restore the stable version if the block fails. An API server that is gone leaves everything as it is, for another call."""
    try:
        yield
    except (LostLockError, UnreachableError):
        raise
    except ThinktwiceError as error:
        session.tell(f"{what} failed, so {state.stable.name} is restored: {error}")
        back = state.model_copy(update={"action": "rollback", "served": state.stable})
        try:
            lock.save(back)
            target.roll_back(back)
            lock.save(State(form=state.form, stable=state.stable, previous=state.previous))
        except ThinktwiceError as second:
            raise RolloutError(
                f"{what} failed: {error}; taking it back failed too ({second}): run `thinktwice rollout rollback`"
            ) from second
        raise RolloutError(f"{what} failed and was taken back, {state.stable.name} keeps serving: {error}") from error


def _check_action(known: State | None, wanted: Action) -> None:
    """An interrupted action is completed, or rolled back, before another begins. An experiment is ended by its own commands."""
    if known is not None and known.experiment is not None and known.experiment.name != CANARY:
        name = known.experiment.name
        if known.action == "start":
            raise RolloutError(
                f"the start of the experiment {name} was interrupted: run `thinktwice rollout start` again, which completes it or takes it back"
            )
        raise RolloutError(
            f"the experiment {name} runs here: end it first (`thinktwice rollout stop {name}`, or `apply` after its decision)"
        )
    if wanted == "rollback":
        return
    if known is not None and known.action not in ("", wanted):
        other = "" if known.action == "rollback" else ", or `thinktwice rollout rollback`"
        raise RolloutError(
            f"the {known.action} of {(known.canary or known.stable).name} was interrupted: run `thinktwice rollout {known.action}` again to "
            f"complete it{other}"
        )


def _min_replicas(live: Live) -> int | None:
    """The stable minimum without the one that a canary in Standard mode adds."""
    if live.min_replicas is None or live.canary is None:
        return live.min_replicas
    return max(1, live.min_replicas - 1)
