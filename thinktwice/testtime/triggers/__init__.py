"""Which rows are unsure: one file per trigger."""

from __future__ import annotations

from collections.abc import Callable

from thinktwice.testtime.config import TestTimeConfig, TriggerKind
from thinktwice.testtime.triggers import always, budget, decision, dual, entropy, never, random
from thinktwice.testtime.triggers.seen import Marked, Seen

Trigger = Callable[[TestTimeConfig, Seen], Marked]

TRIGGERS: dict[TriggerKind, Trigger] = {
    "never": never.mark,
    "always": always.mark,
    "dual": dual.mark,
    "entropy": entropy.mark,
    "random": random.mark,
    "budget": budget.mark,
    "decision": decision.mark,
}

#: Triggers whose choice depends on the other rows of the request.
OF_REQUESTS: frozenset[TriggerKind] = frozenset({"budget", "decision"})

__all__ = ["OF_REQUESTS", "TRIGGERS", "Marked", "Seen", "Trigger"]
