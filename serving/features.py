"""What a predictor asks of an online feature store, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Features:
    """Looked-up values by field name; a value the store does not have is None.

    Attributes:
        user: values of the user's fields.
        items: values of the item's fields, by item id.
        cold_user: the store knows nothing about this user.
        cold_items: ids the store knows nothing about.
    """

    user: Mapping[str, Any]
    items: Mapping[str, Mapping[str, Any]]
    cold_user: bool
    cold_items: frozenset[str]


class OnlineFeatureReader(Protocol):
    """Reads the features of one request."""

    def read(self, user_id: str | None, item_ids: Sequence[str]) -> Features:
        """Features of one user and of some items (ids may repeat).

        Raises:
            FeatureStoreError: the store does not answer.
        """
        ...
