"""The tables of the study, from the stored scores only."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.testtime import study
from benchmarks.testtime.compare import Compared, Rows, methods_of, passes_of
from benchmarks.testtime.plan import Part, trunks_of
from benchmarks.testtime.ranking import ndcg_at, top_k_regret
from benchmarks.testtime.study import LIST, SHARE, SIGNAL, TOP_K, Scores
from thinktwice.data.training_set import TrainingSet
from thinktwice.stats.multiple import holm
from thinktwice.stats.uplift import area, uplift_curve
from thinktwice.testtime.reliability import Reliability

REFERENCE = "plain"
FULL_ENSEMBLE = "2 seeds"
MIN_SLICE = 300
METRICS = ("auc", "logloss")
SLICED = ("lean", "gate", "uttsi", "matt", "sgctr", "2 seeds", "members, 20% by entropy", "calibrated by support")
RIVALS = (REFERENCE, "uttsi", "matt")


def rows_of(data: TrainingSet) -> Rows:
    """The test rows of the study with their slices: unseen user, item and pair, and deciles of the smallest count."""
    test = study.test_rows(data)
    frame = data.rows("test")
    order = np.argsort(frame["event_time"].to_numpy(), kind="stable")
    rows = order[np.unique(np.linspace(0, len(order) - 1, len(test)).astype(np.int64))]
    truth = frame["truth"].to_numpy()[rows] if "truth" in frame.columns else None
    train = data.part("train")
    names = [f.name for f in data.encoder.fields]
    user, item = names.index("user_id"), names.index("item_id")
    reliability = Reliability.fit(train.ids, train.label, trunks_fields(data))
    least = reliability.counts_of(test.ids)[:, reliability.maskable_fields].min(axis=1)
    of = names.index("author_id") if "author_id" in names else names.index("genre")
    pairs_of_train = set(zip(train.ids[:, user].tolist(), train.ids[:, of].tolist(), strict=True))
    pairs = zip(test.ids[:, user].tolist(), test.ids[:, of].tolist(), strict=True)
    slices = {
        "cold user": test.ids[:, user] == 0,
        "cold item": test.ids[:, item] == 0,
        f"unseen pair of user and {names[of].removesuffix('_id')}": np.array([p not in pairs_of_train for p in pairs]),
    }
    bounds = np.unique(np.quantile(least, np.linspace(0, 1, 11)[1:-1], method="lower"))
    group = np.searchsorted(bounds, least, side="right")
    for g in np.unique(group):
        low, high = least[group == g].min(), least[group == g].max()
        slices[f"least count {low:,.0f}" + ("" if low == high else f" to {high:,.0f}")] = group == g
    large_slices = {name: mask for name, mask in slices.items() if mask.sum() >= MIN_SLICE}
    return Rows(test.label.astype(np.float64), test.user, truth, large_slices)


def trunks_fields(data: TrainingSet) -> Any:
    from thinktwice.models import FieldSpace

    return FieldSpace.of(data.schema, data.encoder)


def table(part: Part, regime: str, compared: Compared) -> dict[str, Any]:
    """Every method against ``plain``: changes with intervals, Holm-adjusted p over the methods, levels, passes."""
    runs = compared.runs
    methods = [m for m in methods_of(runs[0]) if m != REFERENCE]
    out = []
    for method in methods:
        out.append(
            {
                "method": method,
                "passes": passes_of(runs, method),
                "logloss": compared.logloss(method, REFERENCE).to_json(),
                "auc": compared.auc(method, REFERENCE).to_json(),
                "level": compared.level(method),
            }
        )
    for metric in ("logloss", "auc"):
        for row, p in zip(out, holm(np.array([row[metric]["p"] for row in out])), strict=True):
            row[metric]["p_holm"] = float(p)
    return {
        "block_against_loo": {
            words: {
                metric: getattr(compared, metric)(f"mask_block{words}", f"mask_loo{words}").to_json()
                for metric in METRICS
            }
            for words in ("", " alone")
            if f"mask_block{words}" in methods
        },
        "gate_against_shuffled": {
            metric: getattr(compared, metric)("gate", "control: gate refitted, shuffled counts").to_json()
            for metric in METRICS
        },
        "data": part.data,
        "backbone": part.backbone,
        "regime": regime,
        "seeds": len(runs),
        "rows": len(compared.rows.label),
        "loss": "label" if compared.rows.truth is None else "expected under the true probability",
        "plain": compared.level(REFERENCE),
        "methods": out,
        "lean": [run.facts["lean"]["mode"] for run in runs],
        "sentence": runs[0].facts["lean"]["sentence"],
        "count_auc": runs[0].facts["count_auc"],
        "warnings": runs[0].facts["warnings"],
    }


def slice_table(part: Part, regime: str, compared: Compared) -> list[dict[str, Any]]:
    """Change of logloss against ``plain`` in every slice, and ``lean`` against each rival in it."""
    out = []
    for name, mask in {"all rows": np.ones(len(compared.rows.label), bool), **compared.rows.slices}.items():
        row: dict[str, Any] = {"data": part.data, "backbone": part.backbone, "regime": regime, "slice": name}
        row["share"] = float(mask.mean())
        row["change"] = {m: compared.logloss(m, REFERENCE, mask).to_json() for m in SLICED}
        row["lean_against"] = {m: compared.logloss("lean", m, mask).to_json() for m in RIVALS}
        out.append(row)
    return out


def uplift_table(compared: Compared) -> dict[str, Any]:
    """Mean change of logloss when rows get the second opinion of one more trunk, in the order of each signal."""
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for seed, run in enumerate(compared.runs):
        change = (compared.losses(seed, FULL_ENSEMBLE) - compared.losses(seed, REFERENCE))[0]
        signals = {n.removeprefix(SIGNAL): v for n, v in run.logits.items() if n.startswith(SIGNAL)}
        signals["chance"] = np.random.default_rng(seed).random(len(change))
        signals["oracle (cannot be built)"] = -change
        for name, signal in signals.items():
            curves.setdefault(name, []).append(uplift_curve(signal, change))
    out = {}
    for name, seed_curves in curves.items():
        shares, mean = seed_curves[0][0], np.mean([c for _, c in seed_curves], axis=0)
        out[name] = {
            "shares": shares.tolist(),
            "change": mean.tolist(),
            "area": float(np.mean([area(c) for c in seed_curves])),
        }
    return out


def oracle_table(compared: Compared) -> dict[str, float]:
    """Upper bounds: the fifth of the rows that a second opinion improves most, known only after the click."""
    out = {}
    for method in (FULL_ENSEMBLE, "uttsi, all rows"):
        gains = []
        for seed in range(len(compared.runs)):
            change = (compared.losses(seed, method) - compared.losses(seed, REFERENCE)).mean(axis=0)
            best = np.sort(change)[: int(SHARE * len(change))]
            gains.append(float(np.minimum(best, 0).sum() / len(change)))
        out[method] = float(np.mean(gains))
    return out


def list_table(compared: Compared) -> list[dict[str, Any]]:
    """NDCG and regret of the best ``TOP_K`` of lists of ``LIST`` rows; measured by the truth if it is known."""
    target = compared.rows.target
    group = np.arange(len(target)) // LIST
    whole = group < len(target) // LIST
    out = []
    for name in (
        REFERENCE,
        *(f"lists: members by {t}" for t in ("decision", "entropy", "budget", "chance")),
        "2 seeds",
    ):
        ndcg, regret = [], []
        for run in compared.runs:
            z = run.logits[name].astype(np.float64)[whole]
            ndcg.append(float(np.mean(ndcg_at(TOP_K, target[whole], z, group[whole]))))
            regret.append(float(np.mean(top_k_regret(TOP_K, target[whole], z, group[whole]))))
        base = out[0] if out else None
        row = {"method": name, "passes": passes_of(compared.runs, name), "ndcg": ndcg, "regret": regret}
        row["ndcg_change"] = _paired(ndcg, base["ndcg"]) if base else None
        row["regret_change"] = _paired(regret, base["regret"]) if base else None
        out.append(row)
    return out


def _paired(values: list[float], base: list[float]) -> dict[str, float]:
    change = np.subtract(values, base)
    sd = float(change.std(ddof=1)) if len(change) > 1 else 0.0
    return {"value": float(change.mean()), "sd_over_seeds": sd}


def recovered(plain_tuned: Compared, over: Compared, method: str) -> list[float]:
    """Share of the AUC gap between the over-trained and the tuned trunk that a method closes, per seed."""
    out = []
    for seed in range(len(over.runs)):
        bottom, top = over.areas(seed, REFERENCE)[0].mean(), plain_tuned.areas(seed, REFERENCE)[0].mean()
        out.append(float((over.areas(seed, method)[0].mean() - bottom) / (top - bottom)))
    return out


def share_of_gain(compared: Compared, method: str, whole: str) -> dict[str, float]:
    """Share of the logloss gain of ``whole`` that ``method`` achieves, ratio of the means over seeds, with a jackknife
    error."""
    part = np.array(compared.logloss(method, REFERENCE).seeds)
    full = np.array(compared.logloss(whole, REFERENCE).seeds)
    value = float(part.mean() / full.mean())
    n = len(part)
    if n < 2:
        return {"value": value, "se": 0.0}
    leave_one_out = np.array([np.delete(part, i).mean() / np.delete(full, i).mean() for i in range(n)])
    return {"value": value, "se": float(np.sqrt((n - 1) / n * np.sum((leave_one_out - leave_one_out.mean()) ** 2)))}


def gain_shares(compared: Compared) -> dict[str, Any]:
    """Shares of the gain of an ensemble on all rows that cheaper forms achieve."""
    all_methods = methods_of(compared.runs[0])
    forms = {
        FULL_ENSEMBLE: [m for m in all_methods if m.startswith(("members", "control: members"))],
        "3 seeds": [m for m in all_methods if m.startswith(("distilled", "3 trunks", "3 rank-one", "2 seeds"))],
    }
    return {
        whole: {m: share_of_gain(compared, m, whole) | {"passes": passes_of(compared.runs, m)} for m in methods}
        for whole, methods in forms.items()
    }


def scores_of(part: Part, regime: str) -> list[Scores]:
    """The scores of every seed. If ``lean`` ships off, it is ``plain``, whose calibration is fitted on the same rows as the
    other methods'."""
    trunks = trunks_of(part.data)
    scores = [study.run(trunks, run) for run in part.runs() if run.regime == regime]
    return [
        Scores(s.logits | {"lean": s.logits[REFERENCE]}, s.facts) if s.facts["lean"]["mode"] == "off" else s
        for s in scores
    ]
