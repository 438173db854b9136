"""From a result to what is asked of it: ratios to the best rival, their mean, the cells that fall short, tables."""

import json
import math
import sys

METHODS = ("flushed", "back_to_back")


def load(path):
    """The measurements of a file that rivals.py or run.sh wrote."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    result = result.get("times", result)
    if "cells" in result:  # before there were sections
        result["sections"] = {"grid": result.pop("cells")}
    return result


def is_grid(cells):
    return isinstance(cells, list) and bool(cells) and "flushed" in cells[0]


def is_ours(name):
    """Builds of flash3 are named flash3, or flash3:label."""
    return name.split(":")[0] == "flash3"


def ratio(rates, ours="flash3"):
    """Our rate over the best rival's; None without both."""
    rivals = [rate for name, rate in rates.items() if not is_ours(name)]
    return rates[ours] / max(rivals) if rivals and ours in rates else None


def label(cell):
    return (
        f"{cell['dtype']} d{cell['head_dim']} {'causal' if cell['causal'] else 'full'} {short_length(cell['seqlen'])}"
    )


def short_length(n):
    return f"{n >> 20}M" if n % (1 << 20) == 0 else f"{n >> 10}k" if n % 1024 == 0 else str(n)


def summary(cells, method="flushed", ours="flash3"):
    """Geometric mean and least of the ratios, and the cells below 1, over those cells that have a rival."""
    ratios = {label(cell): ratio(cell[method], ours) for cell in cells if method in cell}
    ratios = {name: r for name, r in ratios.items() if r is not None}
    if not ratios:
        return None
    worst = min(ratios, key=ratios.get)
    return {
        "cells": len(ratios),
        "geometric_mean": math.exp(sum(map(math.log, ratios.values())) / len(ratios)),
        "least": ratios[worst],
        "least_cell": worst,
        "below_1": {name: r for name, r in ratios.items() if r < 1},
    }


def names_of(cells, method="flushed"):
    """Everyone who was measured, flash3 first, then in the order of appearance."""
    names = dict.fromkeys(name for cell in cells for name in cell.get(method, {}))
    return sorted(names, key=lambda name: not is_ours(name))


def table(cells, method="flushed"):
    """Markdown: a row for each data type, head dimension and mask, a column for each length."""
    names = names_of(cells, method)
    rows, lengths = {}, sorted({cell["seqlen"] for cell in cells})
    for cell in cells:
        row = f"{cell['dtype']}, head_dim {cell['head_dim']}, {'causal' if cell['causal'] else 'full'}"
        rates = cell.get(method, {})
        rows.setdefault(row, {})[cell["seqlen"]] = " / ".join(f"{rates[n]:.0f}" if n in rates else "–" for n in names)
    lines = [
        f"| TFLOP/s, {' / '.join(names)} | " + " | ".join(map(short_length, lengths)) + " |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    lines += [f"| {row} | " + " | ".join(by.get(n, "") for n in lengths) + " |" for row, by in rows.items()]
    return "\n".join(lines)


def against_cublas(cells, cublas, method="flushed", ours="flash3"):
    """The full mask at the longest length, over cuBLAS's rate of the same run, by data type and head dimension."""
    full = [cell for cell in cells if not cell["causal"] and ours in cell.get(method, {})]
    longest = max((cell["seqlen"] for cell in full), default=0)
    return {
        f"{cell['dtype']} d{cell['head_dim']}": cell[method][ours] / cublas[method]
        for cell in full
        if cell["seqlen"] == longest
    }


def print_summary(result):
    for name, cells in result["sections"].items():
        if not is_grid(cells):
            continue
        for method in METHODS:
            found = summary(cells, method)
            if found:
                print(
                    f"{name}, {method}: {found['cells']} cells, geometric mean {found['geometric_mean']:.3f}, "
                    f"least {found['least']:.3f} ({found['least_cell']})"
                )
                for cell, value in found["below_1"].items():
                    print(f"  below 1: {cell}  {value:.3f}")
    if result.get("cublas") and "grid" in result["sections"]:
        for what, share in against_cublas(result["sections"]["grid"], result["cublas"]).items():
            print(f"of cuBLAS bf16 8192^3 ({result['cublas']['flushed']:.0f} TFLOP/s): {what} {share:.3f}")


def main():
    """report.py result.json ...: the summary, and each grid as a Markdown table."""
    for path in sys.argv[1:]:
        result = load(path)
        print_summary(result)
        for name, cells in result["sections"].items():
            if is_grid(cells):
                print(f"\n{name}\n\n{table(cells)}")


if __name__ == "__main__":
    main()
