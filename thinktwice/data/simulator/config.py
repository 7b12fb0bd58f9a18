"""Settings of a simulated log."""

from __future__ import annotations

from pydantic import Field

from thinktwice.frozen import Frozen


class SimConfig(Frozen):
    """Sizes and laws of a simulated ad log. Variances are of the logit over the items a visitor could have been shown.

    The true logit of a row is ``bias + id part + shared part + behaviour``:

    - the *id part* depends on mostly rare values (user, item, user x item taste, site x author): a model's uncertainty
      about it is epistemic, and shrinks with more rows of that value;
    - the *shared part* depends on frequent values (device, slot, hour, scenario, age, topic, price, load time);
    - ``behaviour`` is added when all of the user's last three clicked topics are the item's topic (a third for each).

    The meaning of ids may change. ``drift`` turns the effects of users and items (their own effect and their taste) from
    one independent draw towards another, effect(t) = cos(drift t) e0 + sin(drift t) e1 for t in 0..1 over the log, so that
    their variance stays constant; ``reuse`` is the share of users and items whose id passes, at one moment of the log after
    its birth, to a new owner with its own effects and drift (other properties of the id stay: age, topic, author, price,
    vector, fame, last clicks). A frequent value may then be uninformative about its present owner. The true probability is
    that of the row's block, which is at most 1/256 of a log of 262,144 rows or more.

    ``noise`` is the aleatoric part that no model can learn: that share of the clicks is drawn at the base rate.
    """

    rows: int = Field(default=200_000, ge=1)
    users: int = Field(default=20_000, ge=100)
    items: int = Field(default=5_000, ge=100)
    seed: int = Field(default=0, ge=0)
    days: int = Field(default=14, ge=1, le=365)
    click_rate: float = Field(default=0.2, gt=0, lt=1, description="clicks over impressions, about")
    id_variance: float = Field(default=1.2, ge=0, description="of the logit's id part")
    shared_variance: float = Field(default=0.75, ge=0, description="of the logit's shared part")
    behaviour: float = Field(default=0.8, ge=0, description="logit for a full match with the last clicks")
    drift: float = Field(default=0.0, ge=0, le=3.2, description="radians by which effects of ids turn over the log")
    reuse: float = Field(default=0.0, ge=0, le=1, description="share of user and item ids that pass to a newcomer")
    noise: float = Field(default=0.05, ge=0, le=1, description="share of clicks that are a coin of the base rate")
    slate: int = Field(default=4, ge=1, le=64, description="candidates among which the logging policy chooses")
    sharpness: float = Field(
        default=1.0, ge=0, description="inverse temperature of the logging policy; 0 shows at random"
    )
    vector_dim: int = Field(default=8, ge=1, le=256, description="length of an item's vector")
