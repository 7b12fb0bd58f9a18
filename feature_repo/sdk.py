"""Loading the SDK of the feature store at half its price."""

from __future__ import annotations

from thinktwice.imports import own_metrics, without, without_typeguard


def load_sdk() -> None:
    """Import Feast without run-time type checks of its own classes and, unless it is loaded already, without torch.

    Feast looks for torch to offer its rows as tensors, which nothing here asks for. Everything that imports from Feast
    calls this first.
    """
    with own_metrics(), without_typeguard(), without("torch"):
        import feast  # noqa: F401
        import ibis  # noqa: F401  (its DuckDB store)
