"""Rules broken by a validated log: the decisions of the pipeline's validation step, without Great Expectations.

The pipeline reads the clean rows a second time with Great Expectations and writes a report; both apply the same catalogue
(:mod:`thinktwice.validate.rules`), and a test compares their findings.
"""

from __future__ import annotations

import polars as pl

from thinktwice.frozen import Frozen
from thinktwice.schema import LogSchema
from thinktwice.validate.column_rules import Severity
from thinktwice.validate.profile import LogProfile, profiled
from thinktwice.validate.profile_rules import ProfileRule, profile_rules
from thinktwice.validate.rules import noted_rules, row_rules
from thinktwice.validate.split import SplitResult


class BrokenRule(Frozen):
    """A rule that a log breaks. A critical one fails the log; warnings do not."""

    rule: str
    severity: Severity
    sentence: str  # the expected and the actual value


def broken_rules(split: SplitResult, profile: LogProfile, schema: LogSchema) -> tuple[BrokenRule, ...]:
    """The rules that a log breaks, critical ones first.

    Args:
        split: result of splitting its rows.
        profile: of the clean rows.
    """
    out: list[BrokenRule] = []
    share, budget = split.rows_quarantined / split.rows_in, schema.quarantine_budget
    if not split.rows_clean:
        out.append(BrokenRule(rule="ledger:clean", severity="critical", sentence="no row is clean"))
    if share > budget:
        sentence = f"{share:.3%} of the rows are quarantined, quarantine_budget allows {100 * budget:g}%"
        out.append(BrokenRule(rule="ledger:budget", severity="critical", sentence=sentence))
    for row_rule in row_rules(schema):
        if rows := split.reasons.get(row_rule.id, 0):
            example = f", for example {split.examples[row_rule.id]}" if split.examples.get(row_rule.id) else ""
            sentence = f"{rows:,} rows quarantined: expected that {row_rule.description}{example}"
            out.append(BrokenRule(rule=row_rule.id, severity="warning", sentence=sentence))
    for note in noted_rules(schema):
        if rows := split.notes.get(note.id, 0):
            sentence = f"{rows:,} clean rows break it: {note.description}"
            out.append(BrokenRule(rule=note.id, severity=note.severity, sentence=sentence))
    out += [rule_broken for rule in profile_rules() if (rule_broken := _profile_rule(rule, profile.table)) is not None]
    order = ("critical", "warning", "info")
    return tuple(sorted(out, key=lambda rule_broken: order.index(rule_broken.severity)))


def _profile_rule(rule: ProfileRule, table: pl.DataFrame) -> BrokenRule | None:
    column = pl.col(rule.column)
    low = pl.lit(False) if rule.minimum is None else column < rule.minimum
    high = pl.lit(False) if rule.maximum is None else column > rule.maximum
    violations = table.filter(column.is_not_null() & (low | high))
    if not violations.height:
        return None
    worst = violations.sort(
        (column - (rule.minimum if rule.maximum is None else rule.maximum)).abs(), descending=True
    ).row(0, named=True)
    bounds = (("at least", rule.minimum), ("at most", rule.maximum))
    limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    about = profiled(worst["feature"], worst["kind"])
    sentence = f"expected that {rule.description} ({limits}), found {worst[rule.column]:.4g} for {about}"
    return BrokenRule(rule=rule.id, severity=rule.severity, sentence=sentence)
