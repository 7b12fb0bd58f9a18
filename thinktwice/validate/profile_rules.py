"""The rules on a log as a whole: limits of the numbers in its profile table (:mod:`thinktwice.validate.profile`)."""

from __future__ import annotations

from thinktwice.frozen import Frozen
from thinktwice.validate.column_rules import Severity

MIN_JUDGED_ROWS = 1_000  # with fewer rows in a slice PSI and KS are only noise
MIN_JUDGED_LABELS = 50  # clicks and non-clicks required for a single-field AUC


class ProfileRule(Frozen):
    """One rule on the profile table: every non-null value of ``column`` is within ``minimum`` .. ``maximum``."""

    id: str
    column: str
    description: str
    severity: Severity
    minimum: float | None = None
    maximum: float | None = None
    fix: str  # what a user can do


def profile_rules() -> tuple[ProfileRule, ...]:
    """The rules on the profile table. Their columns are null if not applicable.

    Drift between two parts of one log is a warning: logs drift, and the model is trained on both parts. Drift against
    an earlier log's profile beyond the usual limits is critical.
    """
    return (
        ProfileRule(
            id="log:click_rate",
            column="both_labels",
            description="the log has clicks and non-clicks",
            severity="critical",
            minimum=1.0,
            fix="check the label's column and threshold in the schema: a click model needs clicks and non-clicks",
        ),
        ProfileRule(
            id="field:leak",
            column="judged_auc",
            description="no field alone separates clicks from non-clicks (held-out AUC), as only a copy of the label would",
            severity="critical",
            maximum=0.99,
            fix="leave the field out: it repeats the label, or is known only after the click",
        ),
        ProfileRule(
            id="drift:psi_from_reference",
            column="psi_from_reference",
            description="the field is distributed as in the reference log (population stability index)",
            severity="critical",
            maximum=0.25,
            fix="find out what changed at the source; if the change is intended, compare with a newer reference",
        ),
        ProfileRule(
            id="volume:from_reference",
            column="volume_ratio",
            description="the log has between a fifth and five times the rows of the reference log",
            severity="critical",
            minimum=0.2,
            maximum=5.0,
            fix="check that the log is complete, or compare with a newer reference",
        ),
        ProfileRule(
            id="field:suspicious",
            column="judged_auc",
            description="no field alone predicts clicks suspiciously well (held-out AUC)",
            severity="warning",
            maximum=0.9,
            fix="check that the field is known before the impression; if it is not, leave it out",
        ),
        ProfileRule(
            id="field:constant",
            column="judged_distinct",
            description="the field has at least two values",
            severity="warning",
            minimum=2.0,
            fix="leave the field out of the schema: a constant carries no information",
        ),
        ProfileRule(
            id="field:identifier",
            column="judged_distinct_share",
            description="the values of an attribute repeat; a field that differs in nearly every row carries no information",
            severity="warning",
            maximum=0.9,
            fix="leave the field out of the schema, or declare it as the key of the user or the item",
        ),
        ProfileRule(
            id="drift:psi",
            column="judged_psi",
            description="the field is distributed as in the first half of the log (population stability index)",
            severity="warning",
            maximum=0.25,
            fix="find out what changed: repair a fault at the source; if the change is permanent, train on the later part only; for values that come and go, such as campaigns and new products, do nothing",
        ),
        ProfileRule(
            id="drift:ks",
            column="judged_ks",
            description="the numbers are distributed as in the first half of the log, or as in the reference log if one is given (Kolmogorov-Smirnov distance)",
            severity="warning",
            maximum=0.2,
            fix="check whether a unit or a source changed; for numbers that grow with time, such as prices and counts, do nothing",
        ),
        ProfileRule(
            id="drift:nulls",
            column="null_share_change",
            description="the share of missing values is as in the first half of the log, or as in the reference log if one is given",
            severity="warning",
            maximum=0.1,
            fix="find out when the values disappeared or first appeared, and train on the part of the log that has them",
        ),
        ProfileRule(
            id="drift:click_rate",
            column="click_rate_ratio",
            description="the click rate is between half and twice that of the first half of the log, or of the reference log if one is given",
            severity="warning",
            minimum=0.5,
            maximum=2.0,
            fix="find out whether the label or the traffic changed; with a split by time the model is evaluated at the later rate",
        ),
        ProfileRule(
            id="time:unit",
            column="first_year",
            description="the log starts after 1995; earlier is usually a wrong time.format",
            severity="warning",
            minimum=1995.0,
            fix="check time.format in the schema (s, ms or us)",
        ),
    )
