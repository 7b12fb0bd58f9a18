"""The page of the study: text, plots and tables, from the result only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training import plots
from benchmarks.training.recipe_cost import BEFORE, NOW
from thinktwice.files import atomic_file

NOT_MEASURED = """## Not measured

A data-centre GPU: the machine has none."""


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write ``name``.md and its plots into ``folder``."""
    drawn = plots.all_of(result)
    for plot, svg in drawn.items():
        with atomic_file(folder / f"{name}-{plot}.svg") as temporary:
            temporary.write_text(svg, encoding="utf-8")
    parts = [
        _head(result),
        _bars(result),
        _quality(result, name, drawn),
        _recipe(result),
        _pretraining(result, name, drawn),
        _unknown(result),
        _days(result),
        _roof(result),
    ]
    parts += [NOT_MEASURED, _how(result)]
    with atomic_file(folder / f"{name}.md") as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def change(difference: dict[str, Any], scale: float = 1e4) -> str:
    """A difference with its interval and the number of seeds it rests on."""
    text = f"{difference['value'] * scale:+.1f}"
    if difference["low"] is not None:
        text += f" ({difference['low'] * scale:+.1f}, {difference['high'] * scale:+.1f})"
    return text


def _head(result: dict[str, Any]) -> str:
    return f"""# Training: quality and cost

Repeat it with `make bench-training`; it continues with the units that are not done (`ONLY=report` writes what is there). Differences of AUC
and logloss are in units of 1e-4, with 95 % intervals that are paired by row, clustered by user, and include the spread between seeds.
**{result["seeds_asked"]} seeds are asked for; every figure says how many it rests on.** With one seed, an interval does not know how much
another seed would differ."""


def _bars(result: dict[str, Any]) -> str:
    out = [
        "## The figures asked for",
        "",
        "| figure | value | bound | seeds | holds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for b in result["bars"]:
        value = "not measured" if b["value"] is None else f"{b['value']:.4g}"
        out.append(
            f"| {b['name']} | {value} | {b['bound']} | {b['seeds'] or '–'} | {'yes' if b['holds'] else '**no**'} |"
        )
    return "\n".join(out)


def _quality(result: dict[str, Any], name: str, drawn: dict[str, str]) -> str:
    if not result["quality"]:
        return ""
    out = [
        "## Quality against peers",
        "",
        "Ten categorical fields, embeddings of 16, an MLP of 128 and 64, batches of 1,024. L2 by validation logloss with the first seed, from the",
        "values tried; *end*: the chosen one is at an end of what was tried, so the model may be better than it looks.",
    ]
    if "quality" in drawn:
        out += ["", f"![AUC by model and library]({name}-quality.svg)"]
    for log, table in result["quality"].items():
        out += [
            "",
            f"### {log}: {table['words']}",
            "",
            "| library | model | L2 | schedule | tried | seeds | AUC | logloss | validation logloss | rows per CPU second |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for r in sorted(table["models"], key=lambda r: -r["auc"]):
            tried = ", ".join(f"{value:g}" for value in r["tried"]) + (" (end)" if r["at_an_end"] else "")
            out.append(
                f"| {r['side']} | {r['model']} | {r['table_l2']:g} | {r['schedule'] or '–'} | {tried} | {r['seeds']} | {r['auc']:.4f} | {r['logloss']:.4f} | "
                f"{r['valid_logloss']:.5f} | {r['rows_per_cpu_s']:,.0f} |"
            )
        if table["same_model"] or table["best"]:
            out.append("")
        for c in table["same_model"]:
            out.append(f"- our {c['model']} against {c['peer']}'s: AUC {change(c['auc'])}, {c['auc']['seeds']} seeds")
        if (best := table["best"]) is not None:
            out.append(
                f"- our best by validation ({best['ours']}) against the best peer model by test AUC ({best['peer']}): AUC "
                f"{change(best['auc'])}, {best['auc']['seeds']} seeds"
            )
    return "\n".join(out)


def _recipe(result: dict[str, Any]) -> str:
    if not result["recipe"]:
        return ""
    out = [
        f"## The recipe `default` against commit {BEFORE}",
        "",
        "Fine-tuning without pre-training, each commit with its own code on the same rows, one after the other, CPU time of the process on one",
        "thread. Below 0 a logloss is better now.",
        "",
        "| log | seeds | CPU s before | now | ratio | validation logloss | test AUC | test logloss | AUC over one-hot logistic regression |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for t in result["recipe"].values():
        over = change(t["over_logistic_regression"]) if "over_logistic_regression" in t else "–"
        out.append(
            f"| {t['words']} | {t['seeds']} | {t[BEFORE]['cpu_s']:.0f} | {t[NOW]['cpu_s']:.0f} | {t['ratio']:.3f} | "
            f"{change(t['valid_logloss'])} | {change(t['test_auc'])} | {change(t['test_logloss'])} | {over} |"
        )
    return "\n".join(out)


def _pretraining(result: dict[str, Any], name: str, drawn: dict[str, str]) -> str:
    table = result["pretraining"]
    if not table["rows"]:
        return ""
    slices = list(dict.fromkeys(name for row in table["rows"] for name in row["slices"]))
    out = [
        "## What pre-training adds",
        "",
        "AUC over the same training without pre-training. All rows take part in pre-training; the labels of a share are known to it and to",
        "fine-tuning. Slices: test rows of users or items that no training row has, and the tenth of the others whose user or item is rarest.",
    ]
    if "pretraining" in drawn:
        out += ["", f"![AUC over no pre-training by the share of labels]({name}-pretraining.svg)"]
    out += [
        "",
        "| form | labels | seeds | AUC | logloss | " + " | ".join(slices) + " | pre-training, CPU s |",
        "| --- | --- | --- | --- | --- |" + " --- |" * (len(slices) + 1),
    ]
    for r in table["rows"]:
        settings = ", ".join(f"{key} {value}" for key, value in r["settings"].items())
        cells = [change(r["slices"][s]["auc"]) if s in r["slices"] else "–" for s in slices]
        out.append(
            f"| {r['mode']}{': ' + settings if settings else ''} | {r['share']:.0%} | {r['seeds']} | {change(r['auc'])} | "
            f"{change(r['logloss'])} | " + " | ".join(cells) + f" | {r['pretrain_cpu_s']:.0f} |"
        )
    for b in table["behaviours"]:
        out += [
            "",
            f"One behaviour of a sequence restored per row and step, against {b['restored']:g}: AUC {change(b['auc'])}, "
            f"{b['auc']['seeds']} seeds, × {b['cpu_ratio']:.2f} of the CPU time of pre-training.",
        ]
    return "\n".join(out)


def _unknown(result: dict[str, Any]) -> str:
    if not result["unknown"]:
        return ""
    out = [
        "## The vector of unknown users and items",
        "",
        "The first candidate of the recipe `default`, eight epochs at most, with different ways to come to a vector for users and items that are not in",
        "the training rows. *none*: no value is made unknown in training, and L2 moves their vectors to 0. *share*: of values, of users and of items,",
        "made unknown at random. *rare* and *new in earlier blocks*: in a quarter of the rows, ids that were rare or absent in the blocks of time",
        "before. *mean* and *fields* are set after the training of *none*: the mean vector of the known users or items, or a regression on their other",
        "fields. Differences from *none* on all test rows and on slices of them, whose share is in brackets.",
    ]
    for t in result["unknown"].values():
        slices = list(dict.fromkeys(title for row in t["rows"] for title in row["over_none"]))
        titles = ["all rows" if title == "all" else f"{title} ({t['shares'][title]:.1%})" for title in slices]
        out += [
            "",
            f"### {t['words']}",
            "",
            "| handling | seeds | AUC | logloss | validation logloss | CPU s |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {r['handling']} | {r['seeds']} | {r['auc']:.4f} | {r['logloss']:.4f} | {r['valid_logloss']:.5f} | {r['cpu_s']:.0f} |"
                for r in t["rows"]
            ),
        ]
        for key, words in (("auc", "AUC"), ("logloss", "logloss")):
            out += ["", f"| {words} over none | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(slices)]
            for r in t["rows"][1:]:
                cells = [change(r["over_none"][title][key]) if title in r["over_none"] else "–" for title in slices]
                out.append(f"| {r['handling']} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _days(result: dict[str, Any]) -> str:
    if not result["days"]:
        return ""
    out = [
        "## Warm start against training anew",
        "",
        "The latest 22 % of the rows in equal pieces, called days here. After each day the recipe `default` trains: *continued* from the model of the",
        "day before on what came since, *anew* on all rows so far; *first* is the model before the first day. The next day's rows are the test.",
    ]
    for t in result["days"].values():
        over = t["continued_over"]
        cpu = {side: sum(values) for side, values in t["cpu_s"].items()}
        out += [
            "",
            f"### {t['words']} ({t['seeds']} seeds)",
            "",
            "| day | AUC continued | anew | first | CPU s continued | anew |",
            "| --- | --- | --- | --- | --- | --- |",
            *(
                f"| {day + 1} | {t['auc']['continued'][day]:.4f} | {t['auc']['anew'][day]:.4f} | {t['auc']['first'][day]:.4f} | "
                f"{t['cpu_s']['continued'][day]:.1f} | {t['cpu_s']['anew'][day]:.1f} |"
                for day in range(len(t["auc"]["first"]))
            ),
            "",
            *(
                f"- continued against {side}, all days: AUC {change(over[side]['auc'])}, logloss {change(over[side]['logloss'])}"
                for side in over
            ),
            f"- CPU time of training and its training set, continued over anew: {cpu['continued'] / cpu['anew']:.3f}",
        ]
    return "\n".join(out)


def _roof(result: dict[str, Any]) -> str:
    if not result["roof"]:
        return ""
    out = [
        "## Share of the machine's speed at matrix products",
        "",
        "A training step of a DeepFM with 26 fields, embeddings of 16 and an MLP of 400, 400, 400, 4,096 rows, ids by Zipf's law, one thread: the time of",
        "the MLP's multiplications at the speed of a float32 product of size 2,048, taken between the steps, over the CPU time of the whole step.",
        "",
        "| ids | share, median | least and largest round | rows per CPU second | GFLOP/s of the product |",
        "| --- | --- | --- | --- | --- |",
    ]
    for t in result["roof"]:
        low, high = t["range"]
        out.append(
            f"| {t['words']} | {t['share']:.2f} | {low:.2f} to {high:.2f} | {t['rows_per_cpu_s']:,.0f} | {t['gflops']:.0f} |"
        )
    return "\n".join(out)


def _how(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
    peers = ", ".join(result["settings"]["peers"])
    return f"""## How it was measured

Peers: {peers}, each in an environment of its own with the same build of torch, Adam at 1e-3, at most 20 epochs, early stopping after two
epochs without a better validation logloss, and FuxiCTR's reduction of the rate. Ours: the rate
of the recipe `default` with averaged weights, or that of `ml-1m` with its fall to 0, whichever had the lower validation logloss; 8 epochs.
Other work may have run on the machine: CPU time, not wall time, is compared. Commit {result["commit"]}.

{versions}; {result["machine"]["cores"]} cores, {result["machine"]["system"]}."""
