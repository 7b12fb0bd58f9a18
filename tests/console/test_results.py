import io

import pytest
from rich.console import Console

from thinktwice.console.results import print_results

EVALUATION = {
    "rows": 10_000,
    "shipped": "test_time",
    "verdict": ["The pre-trained + gate model ships."],
    "columns": [
        {"key": "plain", "label": "plain", "metrics": {"auc": 0.75, "logloss": 0.5}, "cost": {"passes": 1.0}},
        {"key": "test_time", "label": "gate", "metrics": {"auc": None, "logloss": 0.49}, "cost": {"passes": 1.8}},
    ],
    "slices": [
        {
            "name": "cold user",
            "share": 0.25,
            "columns": {"plain": {"auc": {"value": 0.61}}, "test_time": {"auc": {"value": None}}},
        },
        {"name": "seen user and item", "share": 0.5, "columns": {}},
    ],
}


def test_the_table_shows_every_model_its_cold_start_and_its_cost():
    console = Console(record=True, width=100, force_terminal=False)
    print_results(console, EVALUATION)
    shown = console.export_text()
    plain = next(line for line in shown.splitlines() if line.lstrip().startswith("plain"))
    ships = next(line for line in shown.splitlines() if line.startswith("→"))
    assert plain.split() == ["plain", "0.7500", "0.5000", "0.6100", "×", "1.00"]
    assert ships.split() == ["→", "gate", "–", "0.4900", "–", "×", "1.80"]
    assert "AUC cold user" in shown and "(25% of rows)" in shown and "seen user" not in shown
    assert "The pre-trained + gate model ships." in shown
    assert "  – not defined (one class)" in shown.splitlines()


@pytest.mark.parametrize("width", [40, 80, 110])
def test_no_name_is_cut_at_any_width(width: int):
    label = "pre-trained + filter of combinations of values"
    columns = [EVALUATION["columns"][0], EVALUATION["columns"][1] | {"label": label}]
    out = io.StringIO()
    console = Console(width=width, file=out)
    print_results(
        console, EVALUATION | {"columns": columns, "verdict": ["One sentence of many words about what ships." * 3]}
    )
    lines = out.getvalue().splitlines()
    shown = " ".join(out.getvalue().split())
    assert label in shown and "AUC cold user" in shown and "(25% of rows)" in shown and "…" not in shown
    assert max(len(line.rstrip()) for line in lines) <= width
