"""The tables of the units that are done. A comparison uses the seeds that both of its sides have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import logistic_regression_logits
from benchmarks.training import data, plan, pretraining, recipe_cost
from benchmarks.training.choice import GRID, best_training, described
from benchmarks.training.days import SIDES, Days
from benchmarks.training.paired import Rows
from benchmarks.training.peers.environment import PEERS
from benchmarks.training.quality import BACKBONES, OURS, SHARED, Training
from benchmarks.training.recipe_cost import BEFORE, NOW, Recipe
from benchmarks.training.roof import BATCH, Roof
from benchmarks.training.units import Arrays, Unit, Units
from benchmarks.training.unknown import HANDLINGS, NONE, TRAINED, Handling, slices_of
from thinktwice.stats.metrics import auc, logloss
from thinktwice.train.measure import fit_calibration

Table = dict[str, Any]


class Done:
    """The units of a folder, and the rows they are measured on."""

    def __init__(self, work: Path, seeds: int) -> None:
        self.work, self.seeds, self.units = work, seeds, Units(work)

    def found(self, unit: Unit) -> Arrays | None:
        return self.units.found(unit)

    def by_seed(self, units: dict[int, Unit]) -> dict[int, Arrays]:
        """The results by seed of those that are done."""
        return {seed: found for seed, unit in units.items() if (found := self.found(unit)) is not None}

    def rows(self, log: str) -> Rows:
        test = data.load(log, self.work).part("test")
        return Rows.of(test.label, test.user)


def pairs(first: dict[int, Arrays], second: dict[int, Arrays], name: str = "test") -> list[tuple[Any, Any]]:
    """Scores of both sides by the seeds that both have."""
    return [(first[seed][name], second[seed][name]) for seed in sorted(first.keys() & second.keys())]


def quality_table(done: Done, log: str) -> Table | None:
    """Every model of every side with the L2 that validation chose, and each of ours against the best peers; None if nothing is done."""
    sides = [(OURS, model) for model in BACKBONES] + [(peer, model) for peer in PEERS for model in SHARED]
    results: dict[tuple[str, str], dict[int, Arrays]] = {}
    rows: list[Table] = []
    for side, model in sides:
        best_of = best_training(done.units, done.work, side, model, log)
        if best_of is None:
            continue
        units = {s: replace(best_of, seed=s).unit(done.work) for s in range(done.seeds)}
        results[side, model] = found = done.by_seed(units)
        rows.append(_quality_row(done, best_of, found))
    if not rows:
        return None
    measured = done.rows(log)
    out: Table = {"words": data.LOGS[log].words, "models": rows, "same_model": [], "best": None}
    peers = [row for row in rows if row["side"] != OURS]
    for model in SHARED:
        best = max((r for r in peers if r["model"] == model), key=lambda r: float(r["auc"]), default=None)
        if best is not None and (OURS, model) in results:
            compared = pairs(results[OURS, model], results[best["side"], model])
            if compared:
                out["same_model"].append({"model": model, "peer": best["side"], "auc": measured.auc(compared)})
    ours = min((r for r in rows if r["side"] == OURS), key=lambda r: float(r["valid_logloss"]), default=None)
    best = max(peers, key=lambda r: float(r["auc"]), default=None)
    if ours is not None and best is not None:
        compared = pairs(results[OURS, ours["model"]], results[best["side"], best["model"]])
        if compared:
            out["best"] = {
                "ours": ours["model"],
                "peer": f"{best['side']} {best['model']}",
                "auc": measured.auc(compared),
            }
    return out


def _quality_row(done: Done, training: Training, found: dict[int, Arrays]) -> Table:
    training_set = data.load(training.log, done.work)
    valid, test = training_set.part("valid").label, training_set.part("test").label
    facts = np.array([result["facts"] for result in found.values()])
    tried = [l2 for l2 in GRID if done.found(replace(training, table_l2=l2).unit(done.work)) is not None]
    losses = []
    for result in found.values():
        calibration = fit_calibration(result["valid"], valid)
        losses.append(logloss(test, calibration.a * result["test"] + calibration.b))
    return {
        "side": training.side,
        "model": training.model,
        "table_l2": training.table_l2,
        "schedule": training.schedule if training.side == OURS else None,
        "tried": sorted(tried),
        "at_an_end": len(tried) < len(GRID) or training.table_l2 in (min(GRID), max(GRID)),
        "seeds": len(found),
        "auc": float(np.mean([auc(test, result["test"]) for result in found.values()])),
        "logloss": float(np.mean(losses)),
        "valid_logloss": logloss(valid, found[0]["valid"]),
        "epochs": float(facts[:, 2].mean()),
        "rows_per_cpu_s": float((facts[:, 1] / facts[:, 0]).mean()),
    }


def recipe_table(done: Done, log: str) -> Table | None:
    """The recipe ``default`` now against the commit before, by the seeds that both have."""
    sides = {}
    for side in (BEFORE, NOW):
        units = {s: recipe_cost.unit(Recipe(log, side, s), done.work) for s in range(done.seeds)}
        sides[side] = done.by_seed(units)
    seeds = sorted(sides[BEFORE].keys() & sides[NOW].keys())
    if not seeds:
        return None
    first = sides[NOW][seeds[0]]
    for side in sides.values():
        for seed in seeds:
            if not np.array_equal(side[seed]["valid_label"], first["valid_label"]):
                raise SystemExit(f"{log}: the two commits have other validation rows")
    valid = Rows.of(first["valid_label"], first["valid_user"])
    test = Rows.of(first["label"], first["user"])
    names = recipe_cost.FACTS
    facts = {side: np.array([found[s]["facts"] for s in seeds]) for side, found in sides.items()}
    ratio = facts[NOW][:, 0] / facts[BEFORE][:, 0]
    out: Table = {
        "words": data.LOGS[log].words,
        "seeds": len(seeds),
        "ratio": float(np.median(ratio)),
        "ratios": ratio.tolist(),
        **{side: dict(zip(names, facts[side].mean(axis=0).tolist(), strict=True)) for side in facts},
        "valid_logloss": valid.logloss(pairs(sides[NOW], sides[BEFORE], "valid")),
        "test_auc": test.auc(pairs(sides[NOW], sides[BEFORE])),
        "test_logloss": test.logloss(pairs(sides[NOW], sides[BEFORE])),
    }
    if log.startswith("ml_100k"):
        base = logistic_regression_logits(data.load(log, done.work))
        out["over_logistic_regression"] = test.auc([(sides[NOW][s]["test"], base) for s in sorted(sides[NOW])])
    return out


def days_table(done: Done, run: Days) -> Table | None:
    """Models that continue against models trained anew and the first one, day by day; None if one side has no seed."""
    sides = {
        side: done.by_seed({s: replace(run, side=side, seed=s).unit(done.work) for s in range(done.seeds)})
        for side in SIDES
    }
    seeds = sorted(sides["continued"].keys() & sides["anew"].keys())
    if not seeds:
        return None
    some = sides["continued"][seeds[0]]
    rows, day = Rows.of(some["label"], some["user"]), some["day"]

    def scores(side: str, seed: int) -> np.ndarray:
        return sides["continued"][seed]["first"] if side == "first" else sides[side][seed]["test"]

    return {
        "words": data.LOGS[run.log].words,
        "seeds": len(seeds),
        "cpu_s": {side: np.mean([sides[side][s]["cpu_s"] for s in seeds], axis=0).tolist() for side in SIDES},
        "auc": {
            side: [
                float(np.mean([auc(some["label"][day == d], scores(side, s)[day == d]) for s in seeds]))
                for d in range(run.days)
            ]
            for side in (*SIDES, "first")
        },
        "continued_over": {
            side: {
                "auc": rows.auc([(scores("continued", s), scores(side, s)) for s in seeds]),
                "logloss": rows.logloss([(scores("continued", s), scores(side, s)) for s in seeds]),
            }
            for side in ("anew", "first")
        },
    }


def unknown_table(done: Done, log: str) -> Table | None:
    """Every handling of unknown values against none, overall and in slices, by the seeds that both have; None if there is no seed."""
    trained = {n: done.by_seed({s: Handling(log, n, s).unit(done.work) for s in range(done.seeds)}) for n in TRAINED}
    base = trained[NONE]
    if not base:
        return None
    training_set, measured = data.load(log, done.work), done.rows(log)
    valid, test = training_set.part("valid").label, training_set.part("test")
    unknown = {name: test.ids[:, column] == 0 for name, column in slices_of(training_set).items()}
    slices = {"all": np.ones(len(test), bool), **unknown, "both known": ~np.any(list(unknown.values()), axis=0)}
    rows = []
    for name in HANDLINGS:
        found = trained.get(name, base)
        seeds = sorted(base.keys() & found.keys())
        if not seeds:
            continue
        row: Table = {
            "handling": name,
            "seeds": len(seeds),
            "auc": float(np.mean([auc(test.label, found[s][f"{name}:test"]) for s in seeds])),
            "logloss": float(np.mean([logloss(test.label, found[s][f"{name}:test"]) for s in seeds])),
            "valid_logloss": float(np.mean([logloss(valid, found[s][f"{name}:valid"]) for s in seeds])),
            "cpu_s": float(np.mean([found[s]["facts"][0] for s in seeds])),
            "over_none": {},
        }
        for title, chosen in slices.items():
            part = measured.take(chosen)
            if name == NONE or not 0 < part.label.sum() < len(part.label):
                continue
            compared = [(found[s][f"{name}:test"][chosen], base[s][f"{NONE}:test"][chosen]) for s in seeds]
            row["over_none"][title] = {"auc": part.auc(compared), "logloss": part.logloss(compared)}
        rows.append(row)
    shares = {title: float(chosen.mean()) for title, chosen in slices.items()}
    return {"words": data.LOGS[log].words, "shares": shares, "rows": rows}


def roof_table(done: Done, roof: Roof) -> Table | None:
    """The share of the roof that a step reaches, with the least and the largest of the rounds; None if it is not done."""
    found = done.found(roof.unit())
    if found is None:
        return None
    share = found["share"]
    return {
        "values": roof.values,
        "words": roof.words,
        "share": float(np.median(share)),
        "range": [float(share.min()), float(share.max())],
        "rows_per_cpu_s": float(np.median(BATCH / found["step_s"])),
        "gflops": float(np.median(found["flops"]) / 1e9),
    }


def pretraining_table(done: Done) -> Table:
    """What every mode, ablation and setting adds over training without pre-training, by the share of labels; overall and in slices."""
    rows: list[Table] = []
    runs = [*plan.MODES[1:], *plan.ABLATIONS, *plan.RESTORED]
    slices: dict[str, np.ndarray] | None = None
    for share in plan.SHARES:
        base = _runs(done, replace(plan.MODES[0], share=share))
        for run in runs:
            found = _runs(done, replace(run, share=share))
            if not base.keys() & found.keys():
                continue
            measured = done.rows(run.log)
            if slices is None:
                slices = pretraining.cold(data.load(run.log, done.work))
            facts = np.array([result["facts"] for result in found.values()])
            compared = pairs(found, base)
            row: Table = {
                "log": run.log,
                "mode": run.mode,
                "settings": dict(run.settings),
                "share": share,
                "seeds": len(compared),
                "auc": measured.auc(compared),
                "logloss": measured.logloss(compared),
                "pretrain_cpu_s": float(facts[:, 0].mean()),
                "finetune_cpu_s": float(facts[:, 1].mean()),
                "slices": {},
            }
            for name, chosen in slices.items():
                part = measured.take(chosen)
                if 0 < part.label.sum() < len(part.label):
                    row["slices"][name] = {
                        "rows": len(part.label),
                        "auc": part.auc([(a[chosen], b[chosen]) for a, b in compared]),
                    }
            rows.append(row)
    sampled = _runs(done, plan.MODES[1])
    behaviours = []
    for run in plan.RESTORED:
        every = _runs(done, run)
        compared = pairs(sampled, every)
        if compared:
            seeds = sorted(sampled.keys() & every.keys())
            cost = [sampled[s]["facts"][0] / every[s]["facts"][0] for s in seeds]
            behaviours.append(
                {
                    "restored": dict(run.settings)["behaviours"],
                    "auc": done.rows(run.log).auc(compared),
                    "cpu_ratio": float(np.median(cost)),
                }
            )
    return {"rows": rows, "behaviours": behaviours}


def _runs(done: Done, run: pretraining.Run) -> dict[int, Arrays]:
    return done.by_seed({seed: replace(run, seed=seed).unit(done.work) for seed in range(done.seeds)})


def collect(work: Path, seeds: int, *, quick: bool) -> Table:
    """All tables of what is done; of the short form those of its logs."""
    done = Done(work, seeds)
    quality_logs = ("ml_100k_time",) if quick else plan.MOVIELENS
    recipe_logs = ("ml_100k_time",) if quick else ("ml_100k_random", *plan.RECIPE_LOGS)
    roofs = (plan.SHORT_ROOF,) if quick else plan.ROOFS
    unknown_logs = (plan.SHORT_UNKNOWN,) if quick else plan.UNKNOWN_LOGS
    days_runs = (plan.SHORT_DAYS,) if quick else plan.DAYS
    return {
        "quality": {log: t for log in quality_logs if (t := quality_table(done, log)) is not None},
        "recipe": {log: t for log in recipe_logs if (t := recipe_table(done, log)) is not None},
        "pretraining": pretraining_table(done),
        "unknown": {log: t for log in unknown_logs if (t := unknown_table(done, log)) is not None},
        "days": {run.log: t for run in days_runs if (t := days_table(done, run)) is not None},
        "roof": [t for roof in roofs if (t := roof_table(done, roof)) is not None],
        "settings": described(),
    }
