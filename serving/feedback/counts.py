"""Descriptions of the counts of events and outcomes."""

from __future__ import annotations

#: Name of a count -> description. Every event is counted once, under one name that begins with its kind.
TEXT = {
    "impressions": "impressions joined",
    "impressions_twice": "impressions that came again",
    "impressions_too_late": "impressions that came after their window was closed, left out",
    "impressions_in_future": "impressions of the future, left out",
    "clicks": "clicks joined",
    "clicks_twice": "clicks that came again",
    "clicks_too_late": "clicks after the window of their impression was closed, left out",
    "clicks_in_future": "clicks of the future, left out",
    "clicks_before_impression": "clicks before their impression, left out",
    "clicks_waiting": "clicks that wait, or waited in vain, for their impression",
    "clicks_unmatched": "of these, clicks whose impression never came",
    "outcomes_clicked": "clicks known within the delay that training assumed",
    "outcomes_clicked_late": "clicks known later than training assumed",
    "outcomes_not_clicked": "windows closed without a click",
}
