"""What an import costs, and what it must not take along."""

from __future__ import annotations

import subprocess
import sys

import pytest

from thinktwice.imports import without


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_library_is_missing_within_and_there_afterwards() -> None:
    sys.modules.pop("wave", None)
    with without("wave", "json"):
        with pytest.raises(ModuleNotFoundError):
            import wave
        import json  # loaded before: stays
    import wave

    assert json.dumps(wave.WAVE_FORMAT_PCM) == "1"


def test_the_names_come_back_after_an_error() -> None:
    sys.modules.pop("wave", None)
    with pytest.raises(ZeroDivisionError), without("wave"):
        _ = 1 // 0
    import wave

    assert wave.__name__ == "wave"


def test_the_sdk_of_the_feature_store_comes_without_torch_and_leaves_it_usable() -> None:
    said = python(
        "import sys; from feature_repo.sdk import load_sdk; load_sdk(); print('torch' in sys.modules);"
        "from feast import FeatureStore, FeatureView; from feast.infra.offline_stores.duckdb import DuckDBOfflineStore;"
        "print('torch' in sys.modules); import torch; load_sdk(); print(torch.ones(2).sum().item())"
    )
    assert said.split() == ["False", "False", "2.0"]


def test_the_sdk_takes_torch_where_it_is_there_already() -> None:
    said = python(
        "import torch; from feature_repo.sdk import load_sdk; load_sdk();"
        "from feast.torch_wrapper import get_torch; print(get_torch() is torch)"
    )
    assert said.split() == ["True"]


@pytest.mark.parametrize(
    "load",
    [
        "from feature_repo.sdk import load_sdk; load_sdk()",
        "from serving.features.feast_source import _import_feast; _import_feast()",
    ],
)
def test_the_sdk_of_the_feature_store_changes_no_metrics_of_this_process(load: str) -> None:
    said = python(
        f"import os; before = dict(os.environ); {load}; print('feast.metrics' in __import__('sys').modules,"
        "{n for n in os.environ if n.startswith('PROM') and os.environ[n] != before.get(n)});"
        "from prometheus_client import values; print(values.ValueClass.__name__)"
    )
    assert said.split() == ["True", "set()", "MutexValue"]


@pytest.mark.parametrize(
    "module",
    [
        "thinktwice.cli",
        "thinktwice.data.training_set",
        "thinktwice.release.bundle",
        "thinktwice.release.champion",
        "thinktwice.evaluate.cli",
        "feature_repo.retrieve",
        "feature_repo.store",
        "components.data.validate.run",
        "components.deployment.package.archive",
        "components.deployment.deploy.deployment",
        "pipelines.run",
        "pipelines.check",
        "pipelines.warm_steps",
        "serving.cli",
    ],
)
def test_what_computes_no_model_does_not_wait_for_torch(module: str) -> None:
    heavy = ("torch", "feast", "great_expectations", "pandas")
    assert python(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])").strip() == "[]"
