"""The page of the study: text, plots and tables, from the result file only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.testtime import plots
from thinktwice.files import atomic_file

SHOWN = (
    "uncalibrated",
    "temperature",
    "calibrated by support",
    "gate",
    "gate by field",
    "gate without counts",
    "gate, s = 1",
    "filter",
    "uttsi",
    "uttsi, exact",
    "uttsi, exact, filler mean",
    "uttsi, exact, filler denoiser",
    "random masks",
    "matt",
    "sgctr",
    "members, 10% by entropy",
    "members, 20% by entropy",
    "members, 25% by entropy",
    "members, 20% by dual",
    "control: members, 20% at random",
    "2 seeds",
    "3 seeds",
    "lean",
    "control: gate, shuffled counts",
    "control: gate refitted, shuffled counts",
    "control: uttsi, shuffled counts",
    "control: uttsi, random trigger",
    "control: matt, shuffled counts",
    "unknown below 2",
    "unknown below 5",
    "unknown below 10",
    "field dropout",
    "dropout 0.1",
    "mc dropout",
    "wider, 2 x FLOPs",
    "mask_block",
    "mask_loo",
    "mask_block alone",
    "mask_loo alone",
    "nothing unknown in training",
    "3 trunks, one table",
    "3 trunks, one table: the first alone",
    "3 trunks, one table, the others for 20% by entropy",
    "3 rank-one members",
    "3 rank-one members: the first alone",
    "3 rank-one members, the others for 20% by entropy",
    "distilled from 3, soft 0.5",
    "distilled from 3, soft 1",
)


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write ``name``.md and its plots into ``folder``."""
    for plot, svg in plots.all_of(result).items():
        with atomic_file(folder / f"{name}-{plot}.svg") as temporary:
            temporary.write_text(svg, encoding="utf-8")
    parts = [_head(result, name), _bars(result), _main(result), _cost(result), _slices(result), _lists(result)]
    parts += [_shares(result), _data(result), _how(result)]
    with atomic_file(folder / f"{name}.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(result: dict[str, Any], name: str) -> str:
    return f"""# What thinking twice is worth

Every mode, baseline and control of the test-time engine on the same trunks; repeat it with `make bench-testtime`.
Changes are against `plain`: the same trunk, scored once, with a Platt calibration fitted on validation.
Logloss changes are in units of 1e-4 (below 0 is better), AUC changes in units of 1e-4 (above 0 is better), means over the
training seeds with 95 % intervals; **bold** where Holm's correction over the methods of a table leaves p < 0.05.

![Quality and cost of all modes]({name}-frontier.svg)

Each mark is a mode: forward passes per row to the right, change of logloss upwards is worse, downwards is better.

![Uplift of asking a second trunk, by trigger]({name}-uplift.svg)

The second trunk is asked for more and more rows, in the order of each signal: how much of the whole gain is there after how
many rows."""


def _bars(result: dict[str, Any]) -> str:
    rows = [
        f"| {b['name']} | {b['value']:.4g} | {b['bound']} | {'yes' if b['holds'] else '**no**'} |"
        for b in result["bars"]
    ]
    return "\n".join(
        ["## The figures asked for", "", "| figure | value | bound | holds |", "| --- | --- | --- | --- |", *rows]
    )


def _change(difference: dict[str, Any]) -> str:
    if difference["value"] is None:
        return "–"
    text = f"{difference['value'] * 1e4:+.1f}"
    if difference["low"] is not None:
        text += f" ({difference['low'] * 1e4:+.1f}, {difference['high'] * 1e4:+.1f})"
    return f"**{text}**" if difference.get("p_holm", 1.0) < 0.05 else text


def _main(result: dict[str, Any]) -> str:
    out = ["## Every method on the same trunk"]
    for table in result["tables"]:
        plain = table["plain"]
        truth = f", distance to the truth {plain['truth_distance']:.4f}" if "truth_distance" in plain else ""
        out += [
            "",
            f"### {table['data']}, {table['backbone']}, {table['regime']} trunk",
            "",
            f"{table['seeds']} seeds, {table['rows']:,} test rows; plain: AUC {plain['auc']:.4f}, logloss {plain['logloss']:.5f} "
            f"({table['loss']}), ECE {plain['ece']:.4f}{truth}. Lean shipped: {', '.join(table['lean'])}.",
            "",
            "> " + table["sentence"],
            *(f"> Warning: {w}." for w in table["warnings"]),
            "",
            "| method | passes | logloss, 1e-4 | AUC, 1e-4 | ECE |" + (" truth, 1e-4 |" if truth else ""),
            "| --- | --- | --- | --- | --- |" + (" --- |" if truth else ""),
        ]
        by_name = {m["method"]: m for m in table["methods"]}
        for name in SHOWN:
            if name in by_name:
                out.append(_method(by_name[name], plain if truth else None))
    return "\n".join(out)


def _method(method: dict[str, Any], truth: dict[str, float] | None) -> str:
    level = method["level"]
    cells = [
        method["method"],
        f"{method['passes']:.2f}",
        _change(method["logloss"]),
        _change(method["auc"]),
        f"{level['ece']:.4f}",
    ]
    if truth is not None:
        cells.append(f"{(level['truth_distance'] - truth['truth_distance']) * 1e4:+.1f}")
    return "| " + " | ".join(cells) + " |"


def _cost(result: dict[str, Any]) -> str:
    out = [
        "## Cost",
        "",
        "Engine time per request on one thread, relative to the plain model in the same run, taken in turns.",
        "",
        "| data, backbone, trunk | mode | rows | FLOPs | time | p99 | p50 ms | p99 ms | p99.9 ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in result["cost"]:
        ms = c["ms"]
        out.append(
            f"| {c['data']}, {c['backbone']}, {c['regime']} | {c['mode']} | {c['rows']} | × {c['flops_ratio']:.2f} "
            f"| × {c['ratio']:.2f} | × {c['p99_ratio']:.2f} | {ms['p50']:.2f} | {ms['p99']:.2f} | {ms['p99.9']:.2f} |"
        )
    return "\n".join(out)


def _slices(result: dict[str, Any]) -> str:
    out = ["## Slices", "", "Change of logloss against plain, 1e-4."]
    for table in result["tables"]:
        key = (table["data"], table["backbone"], table["regime"])
        if table["backbone"] != "deepfm":
            continue
        slices = [s for s in result["slices"] if (s["data"], s["backbone"], s["regime"]) == key]
        names = list(slices[0]["change"])
        out += [
            "",
            f"### {', '.join(key)}",
            "",
            "| slice | share | " + " | ".join(names) + " |",
            "| --- | --- |" + " --- |" * len(names),
        ]
        for s in slices:
            out.append(
                f"| {s['slice']} | {s['share']:.1%} | " + " | ".join(_change(s["change"][n]) for n in names) + " |"
            )
    return "\n".join(out)


def _lists(result: dict[str, Any]) -> str:
    out = [
        "## The best ten of a hundred",
        "",
        "A second trunk asked only where the order near the cut may change (`decision`), against other choices at the same rate.",
        "",
        "| data, backbone, trunk | asked | passes | NDCG@10, change 1e-4 | regret (clicks per list), change |",
        "| --- | --- | --- | --- | --- |",
    ]
    for lists in result["lists"]:
        for m in lists["methods"][1:]:
            ndcg, regret = m["ndcg_change"], m["regret_change"]
            out.append(
                f"| {lists['data']}, {lists['backbone']}, {lists['regime']} | {m['method'].removeprefix('lists: ')} "
                f"| {m['passes']:.2f} | {ndcg['value'] * 1e4:+.1f} ± {ndcg['sd_over_seeds'] * 1e4:.1f} "
                f"| {regret['value']:+.4f} ± {regret['sd_over_seeds']:.4f} |"
            )
    return "\n".join(out)


def _shares(result: dict[str, Any]) -> str:
    out = [
        "## Cheaper than an ensemble",
        "",
        "Share of an ensemble's gain in logloss that its cheaper forms keep (ratio of means over seeds ± jackknife error).",
        "",
        "| data, backbone, trunk | of the gain of | form | passes | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    for shares in result["shares"]:
        for whole in (k for k in shares if k.endswith("seeds")):
            for name, share in shares[whole].items():
                out.append(
                    f"| {shares['data']}, {shares['backbone']}, {shares['regime']} | {whole} | {name} "
                    f"| {share['passes']:.2f} | {share['value']:.2f} ± {share['se']:.2f} |"
                )
    return "\n".join(out)


def _data(result: dict[str, Any]) -> str:
    out = [
        "## The data",
        "",
        "| data | train, validation, test rows | unseen users in validation / test | unseen items | L2 chosen on validation |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, parts in result["data"].items():
        sizes = ", ".join(f"{parts[p]['rows']:,}" for p in ("train", "valid", "test"))
        novel = [
            " / ".join(f"{parts[p]['unseen_share'].get(e, 0):.0%}" for p in ("valid", "test")) for e in ("user", "item")
        ]
        chosen = ", ".join(f"{b}: {min(t, key=lambda k: t[k])}" for b, t in parts["l2"].items())
        out.append(f"| {name} | {sizes} | {novel[0]} | {novel[1]} | {chosen} |")
    out += ["", "AUC of the training count alone, per unprotected field (above 0.6 no claim about rarity is made):", ""]
    for table in result["tables"]:
        if table["regime"] == "tuned" and table["backbone"] == "deepfm":
            counts = ", ".join(f"{f} {v:.3f}" for f, v in table["count_auc"].items())
            out.append(f"* {table['data']}: {counts}")
    return "\n".join(out)


def _how(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return f"""## How it was measured

Every parameter (κ, strengths, thresholds, calibrations, temperature, mode) is fitted on validation rows, counts come from
train alone, and test is scored once per frozen configuration. `lean` is fitted on the earlier half of validation and accepted
on the later half, as it is in a pipeline run. Sampled methods are averaged over three path seeds. Intervals join the
user-clustered error within a seed (DeLong for AUC) with the spread over training seeds. On simulated logs the loss of a row is
its expected logloss under the true click probability. `sim_fresh` is a fresh draw of `sim_strong` with every setting frozen.
UTTSI, MATT and SGCTR are reconstructions from what is public; the authors' versions may differ.

{versions}; {result["machine"]["cores"]} cores, {result["machine"]["system"]}."""
