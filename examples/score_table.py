"""Score a table: polars, pyarrow, pandas or a list of dictionaries.

    python examples/score_table.py OUT [BUNDLE ROWS.parquet]

Without a bundle, a small model is trained first. The rows contain their features; ``thinktwice score`` can look them up instead.
"""

import sys
from pathlib import Path

import polars as pl

import thinktwice


def train(out: Path, rows: int) -> tuple[Path, Path]:
    thinktwice.ingest_log(None, out / "raw", source="sim", limit=rows)
    checked = thinktwice.validate_log(out / "raw", out / "checked")
    trained = thinktwice.train_model(checked.clean_dir, out / "model", recipe="tiny", test_time="off")
    return trained.bundle_dir, trained.training_set_dir / "rows.parquet"


def main(out: Path, bundle_dir: Path | None = None, rows_path: Path | None = None, rows: int = 2000) -> pl.DataFrame:
    """Return the rows, most likely clicks first."""
    if bundle_dir is None or rows_path is None:
        bundle_dir, rows_path = train(out, rows)
    bundle = thinktwice.open_bundle(bundle_dir)
    table = pl.read_parquet(rows_path).tail(200)

    scores = thinktwice.score_table(bundle, table)
    ranked = table.with_columns(
        probability=scores.probability, uncertainty=scores.uncertainty, num_paths=scores.num_paths
    ).sort("probability", descending=True)
    ranked.write_parquet(out / "scores.parquet")
    print(f"{len(scores)} rows scored by {scores.model_version}, mean probability {scores.probability.mean():.3f}")

    # A single row as a dictionary: unknown fields are None or left out.
    row = {f.name: table[f.name][0] for f in bundle.schema.model_fields_in_order()}
    (alone,) = thinktwice.score_table(bundle, [row]).probability
    print(f"the first row alone: {alone:.6f}, in the table: {scores.probability[0]:.6f}")
    return ranked


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]] or [Path(".thinktwice/examples/score-table")]
    main(*arguments)
