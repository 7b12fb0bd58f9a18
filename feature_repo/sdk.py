"""Faster import of the feature store's SDK."""

from __future__ import annotations

from thinktwice.imports import own_metrics, without, without_typeguard


def load_sdk() -> None:
    """Import Feast without run-time type checks of its own classes and, unless already loaded, without torch.

    Feast imports torch to return rows as tensors, which is not used here. All code that imports from Feast calls this first.
    """
    with own_metrics(), without_typeguard(), without("torch"):
        import feast  # noqa: F401
        import ibis  # noqa: F401  (its DuckDB store)
