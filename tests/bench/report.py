"""The results: a table on the terminal, JSON, and Markdown for the README."""

import json

from cases import medians
from measure import spread

SCHEMA = 1
HEAD = ["case", "what", "bare", "ocicle", "ratio", "goal", ""]


def print_table(results, write=print):
    rows = [HEAD] + [row(result) for result in results]
    widths = [max(len(line[column]) for line in rows) for column in range(len(HEAD))]
    for line in rows:
        cells = [
            cell.rjust(width) if 1 < column < 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ]
        write("  ".join(cells).rstrip())


def print_timelines(timelines, write=print):
    for name, timeline in timelines.items():
        phases = ", ".join(f"{phase} {time:.1f}" for phase, time in medians(timeline).items())
        write(f"{name}: {phases} (ms, medians)")


def row(result):
    return [
        result.case,
        result.what,
        amount(result.bare, result.unit),
        amount(result.ocicle, result.unit),
        f"{result.ratio:.2f} ×" if result.limit["difference"] is None else f"{result.difference:+.1f} ms",
        result.goal,
        {True: "met", False: "missed", None: ""}[result.met],
    ]


def amount(value, unit):
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def to_json(machine, results, timelines):
    return {
        "schema": SCHEMA,
        "machine": machine,
        "results": [result.to_json() for result in results],
        "timelines": {name: medians(timeline) for name, timeline in timelines.items()},
    }


def to_markdown(machine, results):
    lines = [
        f"Medians of runs in turn; {machine['runtime']}, CRIU {machine['criu']}, "
        f"Linux {machine['kernel']}, {machine['processors']} processors.",
        "",
        "| case | what | bare | ocicle | ratio or difference | goal | noise |",
        "|---|---|--:|--:|--:|---|--:|",
    ]
    for result in results:
        noise = max(spread(samples) for samples in result.samples.values())
        cells = row(result)[:-1] + [f"{noise:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_files(directory, machine, results, timelines):
    """Writes both; the directory is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(machine, results, timelines), indent=2) + "\n"
    (directory / "results.json").write_text(text)
    (directory / "results.md").write_text(to_markdown(machine, results))
