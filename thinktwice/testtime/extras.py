"""Files that some modes need in addition to a model and its counts."""

from __future__ import annotations

from dataclasses import dataclass

from thinktwice.combinations.counts import CombinationCounts
from thinktwice.models.backbone import Backbone
from thinktwice.testtime.evidence.correction import CorrectionNetwork
from thinktwice.testtime.evidence.retrieval import Retrieval
from thinktwice.testtime.heads import FieldHeads


@dataclass(frozen=True)
class Extras:
    """Combination counts (matt, uttsi's pair support), denoiser heads (sgctr), further trunks (members), and networks over
    evidence (corrected, retrieve).

    A member whose ``table`` is the model's object uses the model's field vectors instead of looking up its own.
    """

    combinations: CombinationCounts | None = None
    heads: FieldHeads | None = None
    members: tuple[Backbone, ...] = ()
    correction: CorrectionNetwork | None = None
    retrieval: Retrieval | None = None
