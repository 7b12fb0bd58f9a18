"""Words in the names of columns that say what a column is. A name is cut into words at ``_``, other signs and capital letters."""

from __future__ import annotations

import re

USER = (
    "user",
    "uid",
    "customer",
    "client",
    "visitor",
    "member",
    "reader",
    "shopper",
    "buyer",
    "account",
    "cookie",
    "person",
)
ITEM = (
    *("item", "iid", "product", "sku", "movie", "video", "ad", "creative", "article", "news", "song", "track", "book"),
    *("listing", "hotel", "doc", "document", "content", "offer", "post", "app", "game", "recipe", "restaurant", "film"),
)
KEY = ("id", "key", "uid", "iid", "sku", "no", "nr", "code", "hash", "uuid", "guid")
#: Best first.
LABEL = (
    "click",
    "clicked",
    "label",
    "target",
    "y",
    "bought",
    "purchased",
    "converted",
    "conversion",
    "purchase",
    "ordered",
    "order",
    "like",
    "liked",
)
RATING = ("rating", "stars", "score")
TIME = ("timestamp", "datetime", "time", "ts", "at", "date", "day", "hour", "when", "ms", "us")
#: Things that happen after an impression: no feature of it.
OUTCOME = (
    *(
        "click",
        "clicked",
        "like",
        "liked",
        "follow",
        "comment",
        "forward",
        "share",
        "shared",
        "hate",
        "view",
        "dwell",
        "stay",
    ),
    *(
        "play",
        "watch",
        "watched",
        "purchase",
        "purchased",
        "bought",
        "conversion",
        "converted",
        "revenue",
        "rating",
        "stars",
    ),
    *("order", "ordered", "cart", "enter", "feedback", "outcome", "label", "target"),
)
NUMBER = (
    *("num", "number", "count", "counts", "cnt", "days", "age", "price", "cost", "duration", "amount", "size", "width"),
    *(
        "height",
        "score",
        "rate",
        "length",
        "income",
        "distance",
        "ratio",
        "share",
        "pct",
        "percent",
        "total",
        "avg",
        "mean",
    ),
    *(
        "sum",
        "bid",
        "seconds",
        "minutes",
        "hours",
        "ms",
        "weight",
        "lat",
        "lon",
        "latitude",
        "longitude",
        "visits",
        "views",
    ),
)
CATEGORY = (
    *(
        "id",
        "type",
        "code",
        "category",
        "cat",
        "class",
        "group",
        "kind",
        "level",
        "status",
        "zip",
        "zipcode",
        "postcode",
    ),
    *("tab", "slot", "position", "pos", "index", "flag", "is", "has", "bucket", "segment", "version", "region", "city"),
)
TITLE = ("title", "name", "headline", "caption", "description", "product")
PROPENSITY = ("propensity", "pscore", "probability")
SPLIT = ("train", "training", "valid", "validation", "val", "dev", "test", "testing")


def words(name: str) -> list[str]:
    """``userId`` and ``USER_ID`` are ``user``, ``id``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


def glued(name: str) -> list[str]:
    """The words, and ``user`` and ``id`` for names such as ``userid``."""
    out = words(name)
    for word in list(out):
        if len(word) > 3 and word.endswith("id"):
            out += [word[:-2], "id"]
    return out


def rank(name: str, known: tuple[str, ...]) -> int | None:
    """Position of the first word of ``known`` that the name contains; None if it contains none."""
    found = glued(name)
    return next((n for n, word in enumerate(known) if word in found), None)


def family(name: str) -> str | None:
    """``I`` for I1, I2, ...; None for a name that does not end with a number."""
    match = re.fullmatch(r"(.*?[A-Za-z_])[0-9]+", name)
    return match[1] if match else None
