"""The screen of the demonstration: what is known after each look, redrawn in place on a terminal, line by line elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.experiment.crowd import Crowd, TrueEffect
from demo.experiment.loop import LookSeen
from thinktwice.console.output import say
from thinktwice.experiment.metrics import RATIOS
from thinktwice.experiment.remaining import standing
from thinktwice.stats.difference import arm_estimate

REFRESH = 2  # a second


class Screen:
    """Shows one experiment while the block runs."""

    def __init__(self, console: Console, crowd: Crowd) -> None:
        self._console, self._crowd = console, crowd
        self._seen: LookSeen | None = None
        self._looks = 0
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=REFRESH)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def look(self, seen: LookSeen) -> None:
        """Show the state after a look."""
        self._seen = seen
        self._looks += 1
        if self._live is None:
            say(self._console, line_of(seen, self._looks), indent=2)
        else:
            self._live.refresh()

    def _draw(self) -> Group:
        traffic = Text(
            f"  live: {self._crowd.rate:.0f} requests/s, {self._crowd.requests:,} requests, {self._crowd.clicks:,} clicks, "
            f"{self._crowd.failed} failed"
        )
        if self._seen is None:
            return Group(traffic, Text("  first look soon"))
        return Group(traffic, arms_table(self._seen), *lines_below(self._seen))


def line_of(seen: LookSeen, number: int) -> str:
    """A look in one line, for a log."""
    record, result = seen.record, seen.record.verdict.primary[0]
    decision = record.verdict.decision
    seconds = record.evidence.days * 86_400
    units = " / ".join(f"{arm.units:,}" for arm in record.evidence.arms)
    ratio = next((c.value for c in record.verdict.checks if c.name == "sample_ratio"), None)
    shown_ratio = "–" if ratio is None else f"{ratio:.2f}"
    outcome = f"{decision.action.replace('_', ' ')} ({standing_of(seen)})"
    return (
        f"{number:>2}. {seconds:4.0f} s, coverage {record.evidence.coverage:.0%}, users {units}: "
        f"effect {effect_text(result.relative, result.relative_low, result.relative_high)}, true {true_text(seen.true_effect)}, "
        f"sample ratio p {shown_ratio}, guardrails {guardrail_text(seen)}: {outcome}"
    )


def arms_table(seen: LookSeen) -> Table:
    """Users, click rate and latency of each arm."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for name in ("  arm", "users", "candidates", "clicks", "clicks per candidate", "p90 latency"):
        table.add_column(name, justify="left" if name == "  arm" else "right")
    for arm in seen.record.evidence.arms:
        moments = arm.sums.moments()
        if not moments.names or not moments.num_units:
            table.add_row(f"  {arm.arm}", "0", "–", "–", "–", "–")
            continue
        total = {name: moments.num_units * mean for name, mean in zip(moments.names, moments.mean, strict=True)}
        rate = arm_estimate(moments, RATIOS["ctr"])
        latency = next((q.value for q in arm.quantiles), None)
        table.add_row(
            f"  {arm.arm}",
            f"{arm.units:,}",
            f"{total['impressions']:,.0f}",
            f"{total['clicks']:,.0f}",
            f"{rate.value:.4f} ± {1.96 * rate.se:.4f}",
            "–" if latency is None else f"{latency:.1f} ms",
        )
    return table


def lines_below(seen: LookSeen) -> list[Text]:
    """The effect beside the truth, the checks and the decision."""
    record, result = seen.record, seen.record.verdict.primary[0]
    decision, evidence = record.verdict.decision, record.evidence
    units = sum(arm.units for arm in evidence.arms)
    ratio = next((c for c in record.verdict.checks if c.name == "sample_ratio"), None)
    failed = [c.name.replace("_", " ") for c in record.verdict.checks if c.passed is False]
    action = decision.action.replace("_", " ") + (f" {decision.arm}" if decision.arm else "")
    coverage = "" if decision.coverage is None else f" to {decision.coverage:.0%}"
    style = {"promote": "bold green", "roll_back": "bold red"}.get(decision.action, "")
    return [
        Text(
            f"  effect        {effect_text(result.relative, result.relative_low, result.relative_high)}", style="bold"
        ),
        Text(f"  true effect   {true_text(seen.true_effect)}"),
        Text(
            f"  sample ratio  {'–' if ratio is None or ratio.value is None else f'p {ratio.value:.3f}'}"
            f"   guardrails  {guardrail_text(seen)}   checks  {', '.join(failed) if failed else 'all passed'}"
        ),
        Text(
            f"  {evidence.days * 86_400:.0f} s, {units:,} users, coverage {evidence.coverage:.0%}: {standing_of(seen)}"
        ),
        Text(f"  → {action}{coverage}: {decision.reasons[0]}", style=style),
    ]


def standing_of(seen: LookSeen) -> str:
    """The status in words, or what is left of the plan."""
    record = seen.record
    units = [arm.units for arm in record.evidence.arms]
    return standing(record.file, record.verdict.decision.status, record.evidence.days, units)


def effect_text(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "–"
    if low is None or high is None:
        return f"{value:+.1%} (no interval yet)"
    return f"{value:+.1%} ({low:+.1%} to {high:+.1%})"


def true_text(effect: TrueEffect | None) -> str:
    if effect is None or effect.relative is None or effect.relative_se is None:
        return "–"
    return f"{effect.relative:+.1%} ± {1.96 * effect.relative_se:.1%}"


def guardrail_text(seen: LookSeen) -> str:
    words = []
    for g in seen.record.verdict.guardrails:
        state = "breached" if g.breached else "ok" if g.safe else "open" if g.judged else "no data"
        words.append(f"{g.metric.replace('_', ' ')} {state}")
    return ", ".join(words)
