"""The report of an experiment of the demonstration, with the true effect beside every interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from demo.experiment.loop import LookSeen
from thinktwice.experiment.report import report_of
from thinktwice.experiment.report_page import KnownEffect, PageExtras, render_report
from thinktwice.files import atomic_file

REMARK = (
    "Users are simulated. The true effect is that of the simulation: clicks expected by the true probabilities, over visits that "
    "both servers answered. It uses no click, no assignment and no log"
)
WITHOUT_DECISION = "The horizon has passed without a decision, so the experiment was stopped and control stays"


def write_page(looks: Sequence[LookSeen], path: Path) -> None:
    """Write the page."""
    known = tuple(_known(seen) for seen in looks)
    remarks = (WITHOUT_DECISION, REMARK) if looks[-1].state.ended == "stop" else (REMARK,)
    page = render_report(report_of([seen.record for seen in looks]), PageExtras(known=known, remarks=remarks))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _known(seen: LookSeen) -> KnownEffect | None:
    effect = seen.true_effect
    if effect is None or effect.relative is None or effect.relative_se is None:
        return None
    reach = 1.96 * effect.relative_se
    return KnownEffect(value=effect.relative, low=effect.relative - reach, high=effect.relative + reach)
