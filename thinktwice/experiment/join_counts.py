"""What the exposure join counts: every line and every row, by outcome."""

from __future__ import annotations

from thinktwice.frozen import Frozen


class ArmCounts(Frozen):
    """Enrolled requests of one assigned arm of one experiment."""

    experiment: str
    arm: str
    requests: int
    answered: int  # 2xx
    joined: int
    lost: int  # answered, without a row in the prediction log
    fallbacks: int  # answered by another arm
    units: int
    versions: tuple[str, ...]  # model version and bundle of the rows served by the arm itself


class JoinCounts(Frozen):
    """Counts of all lines and rows by outcome of the join.

    ``lines = requests + open + repeated + broken + torn``;
    ``requests = unanswered + unnamed + lost + unlogged + joined + ambiguous_requests``;
    ``predicted = joined + superseded + shadow + direct + unexplained + ambiguous + open_predicted`` (prediction groups: a
    request at one server).
    """

    lines: int
    torn: int  # last lines truncated by a kill
    broken: int  # other lines that are not JSON or have no request id
    requests: int  # up to the watermark
    open: int = 0  # after the watermark: their rows may not be written yet, so a later run counts them
    repeated: int  # further lines of a request id; the first counts
    unanswered: int  # requests whose status is not 2xx
    unnamed: int  # answered, but the answer does not name an arm
    lost: int  # enrolled, answered by a named arm, without a row in the prediction log
    unlogged: int = 0  # the same of requests that are not enrolled: of those the log may be a sample
    predicted: int
    joined: int
    superseded: int  # computed, but another arm's answer reached the caller, or none did
    shadow: int
    direct: int = 0  # without a line in the access log and without headers of a gateway: sent to the server itself
    unexplained: int  # with the headers of a gateway, without a line in the access log
    ambiguous: int  # computed for a request id that different units use: none of its rows is kept
    ambiguous_requests: int = 0  # answered requests with such an id
    open_predicted: int = 0  # computed for an open request, or after the watermark and without a line yet
    wrong_arm: int  # gateway and server name different arms or experiments, or the bucket belongs to another arm
    wrong_bucket: int  # buckets that differ when recomputed
    skewed: int  # rows whose server time is outside the request by more than a minute
    doubled: int  # groups with several rows for one position (a request sent again, a part passed twice); the first row counts
    exposures: int  # rows written
    units_in_two_arms: int
    arms: tuple[ArmCounts, ...]
