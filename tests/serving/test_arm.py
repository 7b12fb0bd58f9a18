"""The arm of a predictor: from its settings, or from the environment where arms share their settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import load_config
from thinktwice.errors import ServerError


@pytest.mark.parametrize(
    ("settings", "variable", "arm"),
    [
        (None, None, ""),
        (None, "treatment", "treatment"),
        ("arm: control\n", None, "control"),
        ("arm: control\n", "", "control"),
        ("arm: control\n", "treatment", "treatment"),
        ("threads: 2\n", "treatment", "treatment"),
    ],
)
def test_the_environment_comes_first(
    settings: str | None, variable: str | None, arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THINKTWICE_SERVING", raising=False)
    monkeypatch.delenv("THINKTWICE_ARM", raising=False)
    if settings is not None:
        (tmp_path / "serving.yaml").write_text(settings)
        monkeypatch.setenv("THINKTWICE_SERVING", str(tmp_path / "serving.yaml"))
    if variable is not None:
        monkeypatch.setenv("THINKTWICE_ARM", variable)
    config = load_config()
    assert config.arm == arm
    assert config.threads == (2 if settings and "threads" in settings else 1)


def test_an_arm_that_is_no_label_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINKTWICE_SERVING", raising=False)
    monkeypatch.setenv("THINKTWICE_ARM", "a b")
    with pytest.raises(ServerError, match="THINKTWICE_ARM are wrong at arm"):
        load_config()
