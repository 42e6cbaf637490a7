"""What `benchmarks.soak` makes of its rounds: lines through them, a table, a chart."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import vl_convert
from scipy import stats

from tuneoff.report.look import COLOURS, FONT, PAPER

COMMANDS, PROCESS = "commands", "process"
QUANTITIES = {
    "own_bytes": "resident memory of the process",
    "other_bytes": "resident memory of the largest process below it",
    "own_files": "open files of the process",
    "all_files": "open files of all processes",
    "threads": "threads of the process",
    "left_processes": "processes left over",
    "store_bytes": "bytes of the study's folder",
    "cache_bytes": "bytes of the cache",
    "temporary_files": "temporary files left over",
}
FLAT_SHARE = 0.01
CONFIDENCE = 0.95
MEBIBYTE = 2**20


def line(rounds: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of the least-squares line with its interval, by Newey and West (1987, Econometrica 55).

    Neighbouring rounds are alike, so the plain standard error would be too small; the lag is their rule's,
    4 (n / 100)^(2/9) (1994).

    Args:
        rounds: where each value stands.
        values: as many.

    Returns:
        Slope, lower and upper end, in the value's unit a round.
    """
    x, y = np.asarray(rounds, dtype=float), np.asarray(values, dtype=float)
    design = np.column_stack([np.ones_like(x), x - x.mean()])
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    scores = design * (y - design @ beta)[:, None]
    inner = scores.T @ scores
    num_lags = math.floor(4 * (len(x) / 100) ** (2 / 9))
    for lag in range(1, num_lags + 1):
        cross = scores[lag:].T @ scores[:-lag]
        inner += (1 - lag / (num_lags + 1)) * (cross + cross.T)
    outer = np.linalg.inv(design.T @ design)
    error = math.sqrt(max(0.0, (outer @ inner @ outer)[1, 1] * len(x) / (len(x) - 2)))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2)) * error
    return float(beta[1]), float(beta[1]) - half, float(beta[1]) + half


def plain(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the rounds that nothing disturbed, and what one of their quantities was."""
    kept = [row for row in rows if row["how"] == "plain" and name in row]
    return [row["round"] for row in kept], [row[name] for row in kept]


def show(found: Mapping[str, Any]) -> bool:
    """Print the table of both kinds; return whether all is flat and nothing was wrong."""
    gib, mib = found["memory_bytes"] / 2**30, found["file_bytes"] / MEBIBYTE
    disk = f"a disk of {found['disk_bytes'] / MEBIBYTE:.0f} MiB" if found["disk_bytes"] else "no limit of the disk"
    print(f"{found['minutes']:.0f} minutes, {gib:.1f} GiB of memory, files of {mib:.0f} MiB, {disk}\n")
    is_sound = True
    for kind, rows in found["rounds"].items():
        wrong = [row for row in rows if row["wrong"]]
        by_how = {how: sum(row["how"] == how for row in rows) for how in dict.fromkeys(row["how"] for row in rows)}
        counted = ", ".join(f"{number} {how}" for how, number in by_how.items())
        print(f"{kind}: {len(rows)} rounds ({counted}); {len(wrong)} went wrong\n")
        for row in wrong:
            print(f"  round {row['round']}: {row['wrong'][:400]}")
        print("| | first half | second half | slope, 100 rounds (95 %) | rise over the second half at most | flat |")
        print("|---|---|---|---|---|---|")
        flat = [_show_line(rows, name) for name in QUANTITIES if any(name in row for row in rows)]
        is_sound = is_sound and all(flat) and not wrong
        print()
    return is_sound


def _show_line(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    rounds, values = plain(rows, name)
    half = len(rounds) // 2
    if len(rounds) - half < 4:
        return True
    slope, low, high = line(rounds[half:], values[half:])
    level = float(np.median(values[half:]))
    rise = high * (rounds[-1] - rounds[half])
    is_flat = rise <= FLAT_SHARE * max(level, 1.0)
    unit, name_of = (MEBIBYTE, " MiB") if name.endswith("_bytes") and level > MEBIBYTE else (1, "")
    first, second = float(np.median(values[:half])) / unit, level / unit
    ends = f"{100 * slope / unit:+.4f} ({100 * low / unit:+.4f} to {100 * high / unit:+.4f}){name_of}"
    share = f"{100 * rise / level:.2f} %" if level else f"{rise:.2f}"
    said = "yes" if is_flat else "no"
    print(f"| {QUANTITIES[name]} | {first:.1f}{name_of} | {second:.1f}{name_of} | {ends} | {share} | {said} |")
    return is_flat


def draw(found: Mapping[str, Any]) -> bytes:
    """Return resident memory and open files by round as an SVG."""
    panels = []
    for kind, rows in found["rounds"].items():
        for name, title, unit in (("own_bytes", "resident MiB", MEBIBYTE), ("own_files", "open files", 1)):
            rounds, values = plain(rows, name)
            points = [{"round": at, "value": round(value / unit, 2)} for at, value in zip(rounds, values, strict=True)]
            highest = max((point["value"] for point in points), default=1.0)
            panels.append(
                alt.Chart(alt.Data(values=points), width=330, height=120, title=f"{kind}: {title}")
                .mark_line(color=COLOURS[0], strokeWidth=1.5)
                .encode(
                    x=alt.X("round:Q", title="round"),
                    y=alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1.25 * highest])),
                )
            )
    config = alt.Config(
        background=PAPER.background,
        font=FONT,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(labelColor=PAPER.muted, titleColor=PAPER.ink, gridColor=PAPER.line, domain=False),
        title=alt.TitleConfig(color=PAPER.ink, fontSize=12, anchor="start"),
    )
    chart = alt.concat(*panels, columns=2, config=config).properties(padding=12)
    return vl_convert.vegalite_to_svg(chart.to_dict()).encode()
