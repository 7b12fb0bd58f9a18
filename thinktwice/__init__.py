"""thinktwice: train a click-through-rate model and serve it so that it thinks twice only when it is unsure.

The public API, in the order of use; see ``docs/api.md``.

>>> import thinktwice
>>> schema = thinktwice.load_schema("shop.yaml")                                        # doctest: +SKIP
>>> thinktwice.ingest_log("impressions.parquet", "raw", schema=schema)                  # doctest: +SKIP
>>> checked = thinktwice.validate_log("raw", "checked")                                 # doctest: +SKIP
>>> trained = thinktwice.train_model(checked.clean_dir, "model", recipe="default")      # doctest: +SKIP
>>> bundle = thinktwice.open_bundle(trained.bundle_dir)                                 # doctest: +SKIP
>>> thinktwice.score_table(bundle, rows).probability                                    # doctest: +SKIP

Names are imported when they are first used: ``import thinktwice`` itself loads no submodules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from thinktwice.api import (
        Report,
        Training,
        Validation,
        ingest_log,
        open_bundle,
        read_report,
        train_model,
        validate_log,
    )
    from thinktwice.data.ingest import Snapshot
    from thinktwice.errors import ThinktwiceError
    from thinktwice.recipes import Recipe
    from thinktwice.release.bundle import Bundle
    from thinktwice.schema import LogSchema, load_schema
    from thinktwice.scoring import Scores, score_table

__all__ = [
    "Bundle",
    "LogSchema",
    "Recipe",
    "Report",
    "Scores",
    "Snapshot",
    "ThinktwiceError",
    "Training",
    "Validation",
    "__version__",
    "ingest_log",
    "load_schema",
    "open_bundle",
    "read_report",
    "score_table",
    "train_model",
    "validate_log",
]

_API = "thinktwice.api"
_WHERE = {
    **dict.fromkeys(("Report", "Training", "Validation"), _API),
    **dict.fromkeys(("ingest_log", "open_bundle", "read_report", "train_model", "validate_log"), _API),
    **dict.fromkeys(("LogSchema", "load_schema"), "thinktwice.schema"),
    **dict.fromkeys(("Scores", "score_table"), "thinktwice.scoring"),
    "Bundle": "thinktwice.release.bundle",
    "Recipe": "thinktwice.recipes",
    "Snapshot": "thinktwice.data.ingest",
    "ThinktwiceError": "thinktwice.errors",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'thinktwice' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
