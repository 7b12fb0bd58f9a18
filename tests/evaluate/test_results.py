import io

import pytest
from rich.console import Console

from tests.evaluate import samples
from thinktwice.evaluate.evaluation import Cost
from thinktwice.evaluate.table import print_results

FOUND = samples.EVALUATION.model_copy(
    update={
        "verdict": ("The pre-trained + gate model ships.",),
        "columns": (
            samples.column("plain", "plain", 0.75),
            samples.column("test_time", "gate", None).model_copy(update={"cost": Cost(passes=1.8)}),
        ),
        "slices": (samples.part("cold user", 0.25, 0.61), samples.part("seen user and item", 0.5)),
    }
)


def test_the_table_shows_every_model_its_cold_start_and_its_cost():
    console = Console(record=True, width=100, force_terminal=False)
    print_results(console, FOUND)
    shown = console.export_text()
    plain = next(line for line in shown.splitlines() if line.lstrip().startswith("plain"))
    ships = next(line for line in shown.splitlines() if line.startswith("→"))
    assert plain.split() == ["plain", "0.7500", "0.5000", "0.6100", "×", "1.00"]
    assert ships.split() == ["→", "gate", "–", "0.5000", "0.6100", "×", "1.80"]
    assert "AUC cold user" in shown and "(25% of rows)" in shown and "seen user" not in shown
    assert "The pre-trained + gate model ships." in shown
    assert "  – not defined (one class)" in shown.splitlines()


@pytest.mark.parametrize("width", [40, 80, 110])
def test_no_name_is_cut_at_any_width(width: int):
    label = "pre-trained + filter of combinations of values"
    columns = (FOUND.columns[0], FOUND.columns[1].model_copy(update={"label": label}))
    verdict = ("One sentence of many words about what ships." * 3,)
    out = io.StringIO()
    console = Console(width=width, file=out)
    print_results(console, FOUND.model_copy(update={"columns": columns, "verdict": verdict}))
    lines = out.getvalue().splitlines()
    shown = " ".join(out.getvalue().split())
    assert label in shown and "AUC cold user" in shown and "(25% of rows)" in shown and "…" not in shown
    assert max(len(line.rstrip()) for line in lines) <= width
