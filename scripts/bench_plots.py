# SPDX-License-Identifier: GPL-2.0
"""The plots of scripts/bench-report, drawn with matplotlib."""

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

# The text of plots remains text, and the same results make the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9, "axes.axisbelow": True,
                            "axes.spines.top": False, "axes.spines.right": False})
COLORS = {"loop": "#7d8ca3", "rnull_loop": "#c2410c"}
NAMES = {"loop": "C loop driver", "rnull_loop": "rnull_loop"}
MANY = ("#7d8ca3", "#47556b", "#f2b28c", "#e0763c", "#a33407")


def draw(results, directory, names_of_2014):
    """Draws the plots that have data; returns the names of the files."""
    quick = [case for case in results["cases"] if case["description"]["quick"] and not case["description"]["together"]]
    plots = {
        "of-raw.svg": lambda: of_raw(quick),
        "of-c.svg": lambda: of_c(quick),
        "2014.svg": lambda: of_2014([c for c in results["cases"] if c["description"]["together"] == "2014"], names_of_2014),
        "instructions.svg": lambda: instructions(results["instructions"]),
    }
    for disk in dict.fromkeys(case["description"]["disk"] for case in results["cases"]):
        rest = [c for c in results["cases"] if c["description"]["disk"] == disk and not c["description"]["quick"]]
        plots[f"matrix-{disk}.svg"] = lambda disk=disk, rest=rest: matrix(disk, [c for c in rest if "rnull_loop/loop" in c["ratios"]])
    written = []
    for name, plot in plots.items():
        figure = plot()
        if figure:
            figure.savefig(directory / name, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
            written.append(name)
    return written


def bars(rows, series, title, label, line=None):
    """Draws horizontal bars. Rows are (name, {key: (value, least, most) or None}), and series
    {key: (name, color)}."""
    height = 0.8 / len(series)
    figure, axes = plt.subplots(figsize=(8, 1.2 + len(rows) * max(0.36, 0.13 * len(series))))
    for number, (key, (name, color)) in enumerate(series.items()):
        here = [(row, values[key]) for row, (_, values) in enumerate(rows) if values.get(key)]
        values = [value for _, (value, _, _) in here]
        # All turns may be on one side of the ratio of the medians.
        errors = [[max(0, v - least) for _, (v, least, _) in here], [max(0, most - v) for _, (v, _, most) in here]]
        axes.barh([row + (number - (len(series) - 1) / 2) * height for row, _ in here], values, height, color=color, label=name,
                  xerr=errors if any(map(any, errors)) else None, error_kw={"elinewidth": 0.8, "ecolor": "#222222"})
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(title, loc="left")
    axes.grid(axis="x", color="#dddddd")
    if line is not None:
        axes.axvline(line, color="#222222", linewidth=0.8)
    if len(series) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def bounds(found):
    return found and (found["ratio"], found["min"], found["max"])


def of_raw(cases):
    rows = [(case["name"], {target: bounds(case["ratios"].get(f"{target}/raw")) for target in COLORS}) for case in cases]
    rows = [row for row in rows if any(row[1].values())]
    series = {target: (NAMES[target], color) for target, color in COLORS.items()}
    return rows and bars(rows, series, "Rate as a share of the raw backing's", "ratio to raw: of medians; lines: the turns", 1)


def of_c(cases):
    rows = [(case["name"], {"ratio": bounds(case["ratios"].get("rnull_loop/loop"))}) for case in cases]
    rows = [row for row in rows if row[1]["ratio"]]
    return rows and bars(rows, {"ratio": ("", COLORS["rnull_loop"])}, "rnull_loop, in multiples of the C driver",
                         "ratio to the C driver: of medians; lines: the turns", 1)


def of_2014(cases, names):
    rows = []
    for case in cases:
        asked = case["description"]
        values = {target: bounds(case["ratios"].get(f"{target}/loop-buffered")) for target in names}
        values["loop-buffered"] = (1, 1, 1)
        rows.append((f"{asked['disk']}: {asked['work']}, {asked['jobs']} job{'s' * (asked['jobs'] > 1)}", values))
    series = {target: (name, color) for (target, name), color in zip(names.items(), MANY)}
    return rows and bars(rows, series, "The question of 2014 (libaio, 4k, QD64)", "ratio to the C driver, buffered", 1)


def instructions(found):
    rows = {}
    for item in found:
        rows.setdefault(f"{item['work']} {item['target']}", {})[f"QD{item['depth']}"] = (item["instructions"],) * 3
    depths = sorted({depth for values in rows.values() for depth in values}, key=lambda depth: int(depth[2:]))
    series = {depth: (depth, color) for depth, color in zip(depths, (MANY[1], MANY[3], MANY[0], MANY[4]))}
    return rows and bars(list(rows.items()), series, "Instructions of a 4 KiB I/O, from fio to the RAM disk and back",
                         "instructions per I/O")


def matrix(disk, cases):
    """Draws each of the hundreds of cases as a dot: a row for each stack, a color for each work."""
    if not cases:
        return None
    stacks = list(dict.fromkeys(case["name"].split()[0] for case in cases))
    works = list(dict.fromkeys(case["description"]["work"] for case in cases))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.4 * len(stacks)))
    for number, (work, color) in enumerate(zip(works, MANY)):
        here = [case for case in cases if case["description"]["work"] == work]
        axes.scatter([case["ratios"]["rnull_loop/loop"]["ratio"] for case in here],
                     [stacks.index(case["name"].split()[0]) + (number - (len(works) - 1) / 2) * 0.15 for case in here],
                     s=7, color=color, label=work)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 0.7, 1, 1.5, 2, 3, 5], ["0.5", "0.7", "1", "1.5", "2", "3", "5"], minor=False)
    axes.minorticks_off()
    axes.set_yticks(range(len(stacks)), stacks)
    axes.invert_yaxis()
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel("ratio to the C driver, of medians")
    axes.set_title(f"All cases on {disk}", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure
