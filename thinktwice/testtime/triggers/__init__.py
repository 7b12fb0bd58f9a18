"""Which rows are unsure: one file per trigger."""

from __future__ import annotations

from collections.abc import Callable

from thinktwice.testtime.config import TestTimeConfig, TriggerKind
from thinktwice.testtime.triggers import always, budget, decision, dual, entropy, never, random
from thinktwice.testtime.triggers.seen import Marked, Seen

TRIGGERS: dict[TriggerKind, Callable[[TestTimeConfig, Seen], Marked]] = {
    "never": never.mark,
    "always": always.mark,
    "dual": dual.mark,
    "entropy": entropy.mark,
    "random": random.mark,
    "budget": budget.mark,
    "decision": decision.mark,
}

__all__ = ["TRIGGERS", "Marked", "Seen"]
