#!/usr/bin/env python3
"""Grouped bars of a measured grid as SVG: a row of panels for each head dimension, a column for each mask.

    plot.py result.json [--section grid] [--method flushed] [--prefix FOLDER/forward]

writes FOLDER/forward-bf16.svg, a file for each data type of the result.
"""

import argparse
import html
import math

import report

# Sizes in pixels, colours and type as in tools/plot.cpp; WIDTH is about that of a character of the legend.
MARGIN, PANEL_WIDTH, PANEL_HEIGHT, GAP_X, GAP_Y = 28, 560, 170, 30, 56
LEFT, TOP, BOTTOM, WIDTH = 64, 116, 58, 6.7
COLOURS = {"fa2": "#c9ad3f", "cudnn": "#4fa37a", "fa3": "#9a77c7", "fa4": "#e28f3d", "flash3": "#3f7fbf"}
MORE_COLOURS = ("#c95d63", "#7d8a99", "#4bb0b8")
NAMES = {"fa2": "FlashAttention-2", "cudnn": "cuDNN", "fa3": "FlashAttention-3", "fa4": "FlashAttention-4"}

STYLE = """
    text { font-family: system-ui, "Helvetica Neue", Helvetica, Arial, sans-serif; fill: #24292f; }
    .page { fill: #ffffff; }
    .title { font-size: 19px; font-weight: 600; }
    .quiet { font-size: 12px; fill: #6e7781; }
    .panel { font-size: 13px; font-weight: 600; }
    .value { font-size: 7.5px; fill: #57606a; }
    .ours { font-weight: 700; fill: #24292f; }
    .grid { stroke: #d0d7de; stroke-width: 1; }
    .axis { stroke: #8c959f; stroke-width: 1; }
    @media (prefers-color-scheme: dark) {
      text, .ours { fill: #e6edf3; }
      .page { fill: #0d1117; }
      .quiet, .value { fill: #9198a1; }
      .grid { stroke: #2b323b; }
      .axis { stroke: #656c76; }
    }
  """


def text(x, y, kind, anchor, words):
    return f'  <text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(words)}</text>\n'


def line(x1, y1, x2, y2, kind):
    return f'  <line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>\n'


def nice_step(largest):
    """The distance of gridlines, 1, 2 or 5 times a power of ten, that cuts `largest` into four to ten."""
    power = 10 ** math.floor(math.log10(largest / 4))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= largest / 4)


def series_of(cells, method):
    """Ours last, as papers have it, the rivals from the oldest on."""
    order = ["fa2", "cudnn", "fa3", "fa4"]
    names = report.names_of(cells, method)
    return sorted(names, key=lambda n: (report.is_ours(n), order.index(n) if n in order else len(order)))


def colours_of(names):
    more = iter(MORE_COLOURS * len(names))
    return {name: COLOURS.get(name) or next(more) for name in names}


def draw_panel(title, by_length, lengths, names, colours, x, y, step, top, first):
    floor = y + PANEL_HEIGHT
    svg = text(x, y - 10, "panel", "start", title)
    for tick in range(round(top / step) + 1):
        at = floor - PANEL_HEIGHT * tick * step / top
        if tick:
            svg += line(x, at, x + PANEL_WIDTH, at, "grid")
        if first:
            svg += text(x - 8, at + 4, "quiet", "end", f"{tick * step:g}")
    group = PANEL_WIDTH / len(lengths)
    bar = min(34, group * 0.88 / len(names))
    for g, length in enumerate(lengths):
        centre = x + group * (g + 0.5)
        svg += text(centre, floor + 16, "quiet", "middle", report.short_length(length))
        for s, name in enumerate(names):
            rate = by_length.get(length, {}).get(name)
            if rate is None:
                continue
            at, height = centre - bar * len(names) / 2 + bar * s, PANEL_HEIGHT * rate / top
            label = f"{NAMES.get(name, name)}, {report.short_length(length)}: {rate:.0f} TFLOP/s"
            svg += (
                f'  <rect x="{at + 0.5:.1f}" y="{floor - height:.1f}" width="{bar - 1:.1f}" height="{height:.1f}" '
                f'rx="1.5" fill="{colours[name]}"><title>{html.escape(label)}</title></rect>\n'
            )
            if bar >= 12:
                kind = "value ours" if report.is_ours(name) else "value"
                svg += text(at + bar / 2, floor - height - 3, kind, "middle", f"{rate:.0f}")
    return svg + line(x, floor, x + PANEL_WIDTH, floor, "axis")


def to_svg(cells, method, title, subtitle):
    """The cells of one data type."""
    names = series_of(cells, method)
    colours = colours_of(names)
    lengths = sorted({cell["seqlen"] for cell in cells})
    dims = sorted({cell["head_dim"] for cell in cells})
    masks = sorted({cell["causal"] for cell in cells})
    largest = max(rate for cell in cells for rate in cell[method].values())
    step = nice_step(largest)
    top = step * math.ceil(largest * 1.06 / step)
    width = LEFT + len(masks) * PANEL_WIDTH + (len(masks) - 1) * GAP_X + MARGIN
    height = TOP + len(dims) * (PANEL_HEIGHT + GAP_Y) - GAP_Y + BOTTOM
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n  <title>{html.escape(title)}</title>\n'
        f'  <style>{STYLE}</style>\n  <rect width="100%" height="100%" class="page"/>\n'
    )
    svg += text(MARGIN, 36, "title", "start", title) + text(MARGIN, 56, "quiet", "start", subtitle)
    at = width - MARGIN
    for name in reversed(names):
        shown = NAMES.get(name, name)
        at -= WIDTH * len(shown)
        svg += text(at, 80, "quiet", "start", shown)
        svg += f'  <rect x="{at - 17:.1f}" y="70" width="11" height="11" rx="2" fill="{colours[name]}"/>\n'
        at -= 36
    svg += text(MARGIN, 80, "quiet", "start", "TFLOP/s")
    for row, d in enumerate(dims):
        for column, causal in enumerate(masks):
            mine = {c["seqlen"]: c[method] for c in cells if c["head_dim"] == d and c["causal"] == causal}
            x, y = LEFT + column * (PANEL_WIDTH + GAP_X), TOP + row * (PANEL_HEIGHT + GAP_Y)
            panel = f"head_dim {d}, {'causal' if causal else 'full'}"
            svg += draw_panel(panel, mine, lengths, names, colours, x, y, step, top, column == 0)
    svg += text(LEFT + (width - LEFT - MARGIN) / 2, height - 14, "quiet", "middle", "sequence length (16k tokens in all)")
    return svg + "</svg>\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result")
    parser.add_argument("--section", default="grid")
    parser.add_argument("--method", choices=report.METHODS, default="flushed")
    parser.add_argument("--prefix", default="forward")
    options = parser.parse_args(argv)
    result = report.load(options.result)
    cells = result["sections"][options.section]
    how = {"flushed": "L2 flushed before each launch", "back_to_back": "launches back to back"}[options.method]
    facts = [result["gpu"].split(",")[0], how, "medians", result["date"][:10]]
    if result.get("invented"):
        facts = ["invented figures"]
    kinds = {"grid": "", "gqa": ", 8 query heads a KV head", "varlen": ", unequal lengths"}
    for dtype in dict.fromkeys(cell["dtype"] for cell in cells):
        title = f"Attention forward, {dtype}{kinds.get(options.section, '')}"
        svg = to_svg([c for c in cells if c["dtype"] == dtype], options.method, title, ", ".join(facts))
        path = f"{options.prefix}-{dtype}.svg"
        with open(path, "w", encoding="utf-8") as file:
            file.write(svg)
        print(path)


if __name__ == "__main__":
    main()
