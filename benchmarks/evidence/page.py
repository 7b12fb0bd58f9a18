"""The page of the study: text, plots and tables, from the result only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.evidence import plots
from benchmarks.evidence.measure import METHODS
from thinktwice.files import atomic_file


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write ``name``.md and its plots into ``folder``."""
    drawn = plots.all_of(result)
    for plot, svg in drawn.items():
        with atomic_file(folder / f"{name}-{plot}.svg") as temporary:
            temporary.write_text(svg, encoding="utf-8")
    parts = [_head(result, name, drawn), _bars(result), *(_log(n, log) for n, log in result["logs"].items())]
    parts += [_time(result["time"]), _how(result)]
    with atomic_file(folder / f"{name}.md") as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _head(result: dict[str, Any], name: str, drawn: dict[str, str]) -> str:
    out = """# What evidence is worth

A tuned trunk with the user's latest clicked items, scored once, against the same trunk with counters up to the instant of the
impression (*first look*, every row) and with the user's outcomes on similar items (*second look*, some or all rows); repeat it with
`make bench-evidence`. Changes of AUC and logloss are in units of 1e-4: AUC above 0 and logloss below 0 are better. Intervals (95 %)
are paired, clustered by user, and include the spread between seeds; **bold** where Holm's correction over the methods of a table
leaves p < 0.05.

**MovieLens exaggerates freshness.** Its users rate in one sitting, from pages they ask for, so the last minutes say much about the
next row. The columns for labels that are known later are the better guide to a log of impressions. The trunk itself reads clicks at
once at every delay, which favours the trunk."""
    seeds = {n: sorted({m["trained_seeds"] for m in log["methods"]}) for n, log in result["logs"].items()}
    if any(min(s, default=0) < result["seeds_asked"] for s in seeds.values()):
        out += f"\n\n**Not every unit of work is done**: {result['seeds_asked']} seeds of every method are asked for, the tables say how many there are. `make bench-evidence` does the others."
    if "delays" in drawn:
        out += f"\n\n![AUC over the trunk by the delay of labels]({name}-delays.svg)"
    if "second-look" in drawn:
        out += f"\n\n![AUC that the second look adds, by trigger and share of rows]({name}-second-look.svg)"
    return out


def _bars(result: dict[str, Any]) -> str:
    out = [
        "## The figures asked for",
        "",
        "| figure | value | bound | seeds | holds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for b in result["bars"]:
        value = "not measured" if b["value"] is None else f"{b['value']:.4g}"
        seeds = b["seeds"] or "–"
        out.append(f"| {b['name']} | {value} | {b['bound']} | {seeds} | {'yes' if b['holds'] else '**no**'} |")
    return "\n".join(out)


def _change(difference: dict[str, Any], scale: float = 1e4) -> str:
    text = f"{difference['value'] * scale:+.1f}"
    if difference["low"] is not None:
        text += f" ({difference['low'] * scale:+.1f}, {difference['high'] * scale:+.1f})"
    return f"**{text}**" if difference.get("p_holm", 1.0) < 0.05 else text


def _log(name: str, log: dict[str, Any]) -> str:
    rows = log["rows"]
    trunk, truth = log["trunk"], "truth_distance" in (log["trunk"] or {})
    out = [
        f"## {name}: {log['words']}",
        "",
        f"{rows['train']:,} train, {rows['valid']:,} validation and {rows['test']:,} test rows of {log['test_users']:,} test users; "
        + ", ".join(f"{share:.0%} of test rows have an unseen {e}" for e, share in log["unseen_share"].items())
        + f". Trunk, {log['seeds']} seeds: AUC {trunk['auc']:.4f}, logloss {trunk['logloss']:.5f}"
        + (f", distance to the true probability {trunk['truth_distance']:.4f}." if truth else "."),
        "",
        "| method | labels known | seeds | AUC, 1e-4 | logloss, 1e-4 |" + (" truth, 1e-4 |" if truth else ""),
        "| --- | --- | --- | --- | --- |" + (" --- |" if truth else ""),
    ]
    for m in log["methods"]:
        cells = [m["method"], m["delay"] or "–", str(m["trained_seeds"]), _change(m["auc"]), _change(m["logloss"])]
        out.append("| " + " | ".join(cells + ([_change(m["truth_distance"])] if truth else [])) + " |")
    against = (
        ("over_two_trunks", "first look over two trunks"),
        ("over_default", "first look over the trunk with statistics of whole days"),
        ("over_counters_in_trunk", "first look over counters in the trunk"),
        ("without_windows_over_first_look", "first look without windows over the first look"),
    )
    compared = [(title, delay, d) for key, title in against for delay, d in log[key].items()]
    if compared:
        out += ["", "| compared | labels known | AUC, 1e-4 | logloss, 1e-4 |", "| --- | --- | --- | --- |"]
        out += [f"| {t} | {delay} | {_change(d['auc'])} | {_change(d['logloss'])} |" for t, delay, d in compared]
    for delay, table in log["second_look"].items():
        out += _second(delay, table)
    return "\n".join(out)


def _second(delay: str, table: dict[str, Any]) -> list[str]:
    shares = sorted({s["share"] for s in table["shares"]})
    out = [
        "",
        f"The second look for a share of the rows, labels known {delay}, {table['seeds']} seeds: AUC over the first look in 1e-4, and "
        f"the part of what all rows add. Validation chooses the trigger `{table['trigger']}`.",
        "",
        "| chosen | trigger | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
        "| --- | --- |" + " --- |" * len(shares),
    ]
    for unit, trigger in dict.fromkeys((s["unit"], s["trigger"]) for s in table["shares"]):
        cells = []
        for s in table["shares"]:
            if (s["unit"], s["trigger"]) == (unit, trigger):
                kept = "" if s["kept"] is None else f", {s['kept']:.0%}"
                cells.append(_change(s["over_first_look"]) + kept)
        out.append(f"| {unit} | {trigger} | " + " | ".join(cells) + " |")
    return out


def _time(time: dict[str, Any] | None) -> str:
    if time is None:
        return ""
    out = [
        "## Time",
        "",
        f"CPU time of encode and engine for a request of {time['rows']} rows, in one process on one thread: the least of many rounds for",
        "each request, because other processes only add to it. Not in it: reading from a store, and turning states into counters, which",
        "takes about as long as the trunk ([bench-counters](counters.json), `request_us`).",
        "",
        "| method | µs | of the trunk |",
        "| --- | --- | --- |",
    ]
    out += [f"| {name} | {m['us']:.0f} | × {m['ratio']:.2f} |" for name, m in time["methods"].items()]
    return "\n".join(out)


def _how(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return f"""## How it was measured

Every seed has its own trunk, its own trunks of later blocks, and its own networks. A second trunk is that of the next seed. All
scores are calibrated on the earlier half of validation, which also chooses epochs, scales, numbers of trees and triggers; test rows
only measure. *{METHODS["in trunk"]}*: the standardised counters as vectors of the row, trained with the trunk, with its L2.
*{METHODS["other counters"]}*: fitted to and reading counters of other rows. Counters a day late are the rows "a day" of the first
look. Random rows are averaged over four draws; the oracle knows how far the second look moves the probability and cannot be built. A
request is the rows of a user within an hour.

{versions}; {result["machine"]["cores"]} cores, {result["machine"]["system"]}."""
