#!/usr/bin/env python3
"""Draws result files of attention.py as SVG, with the standard library alone.

  plot.py bars  RESULT... --out FILE.svg   one group of bars a mask, for one number of tokens
  plot.py lines RESULT... --out FILE.svg   one panel a mask, over the number of tokens

Of rows that several files hold, the last file's counts.
"""
import argparse
import sys
from xml.sax.saxutils import escape

import results

# Series in their order, with names and colours for light and dark backgrounds. The colours differ in lightness too.
SERIES = {
    "magi": ("libmagi_attn", "#2f6fb7", "#5b9bea"),
    "cudnn": ("cuDNN", "#5c9a3c", "#79bb55"),
    "fa2": ("FlashAttention-2", "#c9803a", "#e29a55"),
    "flex": ("FlexAttention", "#8a64b4", "#ab88d6"),
}
MASKS = {
    "full": "full",
    "causal": "causal",
    "varlen_full": "varlen full",
    "varlen_causal": "varlen causal",
    "sliding_window_causal": "sliding window",
    "varlen_block_causal": "varlen block-causal",
    "documents_8": "8 documents",
    "documents_skewed": "skewed documents",
    "window_1024": "window 1,024",
    "block_causal_4096": "block-causal 4,096",
}
FONT = 'system-ui, "Segoe UI", Helvetica, Arial, sans-serif'


class Svg:
    """Lines of a drawing with the project's colours, which follow the viewer's light or dark scheme."""

    def __init__(self, width, height, title, description):
        self.size, self.lines = (width, height), []
        light = "".join(f" .f-{n} {{ fill: {c} }} .l-{n} {{ stroke: {c} }}" for n, (_, c, _) in SERIES.items())
        dark = "".join(f" .f-{n} {{ fill: {c} }} .l-{n} {{ stroke: {c} }}" for n, (_, _, c) in SERIES.items())
        self.head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
            f" aria-label={quote(title)}>",
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            "<style>",
            f"  text {{ font: 12px {FONT}; fill: #24292f }}",
            "  .h { font-weight: 600; font-size: 15px } .p { font-weight: 600; font-size: 13px } .s { font-size: 11px; fill: #57606a }",
            "  .v { font-size: 10px; fill: #57606a } .bg { fill: #ffffff } .grid { stroke: #d8dee4; stroke-width: 1 }",
            "  .axis { stroke: #8c959f; stroke-width: 1 } .yard { stroke: #57606a; stroke-width: 1.2; stroke-dasharray: 5 4 }",
            "  polyline { fill: none; stroke-width: 2.2; stroke-linejoin: round }",
            f" {light}",
            "  @media (prefers-color-scheme: dark) {",
            "    text { fill: #e6edf3 } .s, .v { fill: #9da7b3 } .bg { fill: #0d1117 } .grid { stroke: #262c34 }",
            "    .axis { stroke: #6e7681 } .yard { stroke: #9da7b3 }",
            f"   {dark}",
            "  }",
            "</style>",
            f'<rect width="{width}" height="{height}" rx="8" class="bg"/>',
        ]

    def text(self, x, y, words, kind="", anchor="start"):
        """Words whose baseline is at (x, y)."""
        name = f' class="{kind}"' if kind else ""
        self.lines.append(f'<text x="{x:.1f}" y="{y:.1f}"{name} text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, x0, y0, x1, y1, kind):
        """A straight line."""
        self.lines.append(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>')

    def rect(self, x, y, width, height, kind, tip):
        """A bar with a tip."""
        self.lines.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5" class="{kind}"><title>{escape(tip)}</title></rect>'
        )

    def curve(self, points, name, tips):
        """A series of points joined by lines."""
        if len(points) > 1:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            self.lines.append(f'<polyline points="{joined}" class="l-{name}"/>')
        for (x, y), tip in zip(points, tips):
            self.lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" class="f-{name}"><title>{escape(tip)}</title></circle>')

    def legend(self, x, y, names, yardstick):
        """Names of the series, and of the dashed line, in a row from x on."""
        for name in names:
            self.lines.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="11" height="11" rx="2" class="f-{name}"/>')
            self.text(x + 16, y, SERIES[name][0])
            x += 38 + 6.6 * len(SERIES[name][0])
        self.line(x, y - 4, x + 22, y - 4, "yard")
        self.text(x + 28, y, yardstick)

    def finish(self):
        """The whole drawing."""
        return "\n".join([*self.head, *self.lines, "</svg>", ""])


def quote(text):
    """An attribute's value."""
    return '"' + escape(text, {'"': "&quot;"}) + '"'


def rows_of(files, args):
    """Timed rows that fit, by (mask, tokens), and the files' headers."""
    found, headers = {}, []
    for path in files:
        result = results.load(path)
        headers.append(result)
        for row in result["rows"]:
            fits = (row["heads"], row["head_dim"], row["pass"]) == (args.heads, args.head_dim, args.passes)
            if fits and row.get("times"):
                found[row["mask"], row["tokens"]] = row
    if not found:
        raise SystemExit(f"no timed rows with heads {args.heads}, head_dim {args.head_dim}, {args.passes}")
    return found, headers


def source_line(headers, args):
    """Where the figures come from."""
    gpus = sorted({h["machine"].get("gpu", "?") for h in headers})
    commits = sorted({h["commit"] for h in headers})
    days = sorted({h["date"][:10] for h in headers})
    how = "events around each call" if args.time == "call" else "kernel time, graph replay"
    return f"{', '.join(gpus)}; commit {', '.join(commits)}; {', '.join(days)}; {how}, taking turns, median"


def figure(row, name, args):
    """TFLOP/s and fraction of a series, or None."""
    return row["times"].get(name, {}).get(args.time)


def names_of(rows):
    """Series that some row has, in their order."""
    return [n for n in SERIES if any(n in row["times"] for row in rows.values())]


def ticks(top, count=5):
    """Round steps from 0 to at least `top`."""
    step = next(s for s in (10, 20, 25, 50, 100, 200, 250, 500, 1000) if s * count >= top)
    return [step * i for i in range(int(-(-top // step)) + 1)]


def tip(row, name, what):
    """What a point or bar says when it is pointed at."""
    return f"{SERIES[name][0]}, {MASKS.get(row['mask'], row['mask'])}, {row['tokens']:,} tokens: {what['tflops']:.0f} TFLOP/s, {what['fraction']:.3f} of the matmul, {what['ms']:.3f} ms"


def title_of(args):
    """Heading of a drawing."""
    return f"Attention {args.passes}, heads {args.heads}, head_dim {args.head_dim}, bf16"


def bars(files, args):
    """Per cent of the matmul's rate by mask."""
    rows, headers = rows_of(files, args)
    tokens = args.tokens or max(n for _, n in rows)
    rows = {mask: row for (mask, n), row in rows.items() if n == tokens}
    if not rows:
        raise SystemExit(f"no timed rows of {tokens} tokens")
    order = [m for m in MASKS if m in rows] + [m for m in rows if m not in MASKS]
    names = names_of(rows)
    bar, gap, left, top, plot_height = 26, 26, 56, 84, 260
    # As wide as its bars, or as its longest words.
    groups = [max(bar * sum(n in rows[m]["times"] for n in names), 7 * len(MASKS.get(m, m)) - 8, bar) for m in order]
    width = int(max(left + sum(groups) + gap * len(groups) + 30, 620))
    highest = max(what["fraction"] for r in rows.values() for n in names if (what := figure(r, n, args)))
    top_value = max(1.0, highest) * 100
    steps = ticks(top_value)
    svg = Svg(width, top + plot_height + 66, title_of(args), f"Per cent of the rate of a matmul, by mask, {tokens} tokens")
    scale, base = plot_height / steps[-1], top + plot_height
    svg.text(left - 36, 28, f"{title_of(args)}, {tokens:,} tokens", "h")
    svg.legend(left - 36, 54, names, "matmul 8192³ = 100 %")
    for step in steps:
        svg.line(left, base - step * scale, width - 20, base - step * scale, "axis" if step == 0 else "grid")
        svg.text(left - 8, base - step * scale + 4, f"{step} %", "s", "end")
    x = left + gap / 2
    for mask, room in zip(order, groups):
        row = rows[mask]
        here = [n for n in names if figure(row, n, args)]
        at = x + (room - bar * len(here)) / 2
        for name in here:
            what = figure(row, name, args)
            height = what["fraction"] * 100 * scale
            svg.rect(at + 1.5, base - height, bar - 3, height, f"f-{name}", tip(row, name, what))
            svg.text(at + bar / 2, base - height - 5, f"{what['fraction'] * 100:.0f}", "v", "middle")
            at += bar
        svg.text(x + room / 2, base + 18, MASKS.get(mask, mask), "", "middle")
        x += room + gap
    svg.line(left, base - 100 * scale, width - 20, base - 100 * scale, "yard")
    svg.text(left - 36, base + 50, source_line(headers, args), "s")
    return svg.finish()


def lines(files, args):
    """TFLOP/s over tokens, a panel a mask."""
    rows, headers = rows_of(files, args)
    order = [m for m in MASKS if any(k[0] == m for k in rows)] + sorted({m for m, _ in rows if m not in MASKS})
    sizes = sorted({n for _, n in rows})
    names = names_of(rows)
    columns = min(len(order), args.columns)
    panel_width, panel_height, left, top, across, down = 270, 170, 56, 92, 46, 58
    count = -(-len(order) // columns)
    width = max(left + columns * panel_width + (columns - 1) * across + 26, 620)
    height = top + count * panel_height + (count - 1) * down + 64
    highest = max([r["yardstick"]["tflops"] for r in rows.values()] + [w["tflops"] for r in rows.values() for n in names if (w := figure(r, n, args))])
    steps = ticks(highest)
    svg = Svg(width, height, title_of(args), "TFLOP/s on visible cells over the number of tokens, a panel a mask")
    svg.text(left - 36, 28, title_of(args), "h")
    svg.legend(left - 36, 54, names, "matmul 8192³ of the same rounds")
    for i, mask in enumerate(order):
        x0 = left + (i % columns) * (panel_width + across)
        y0 = top + (i // columns) * (panel_height + down)
        scale, base = panel_height / steps[-1], y0 + panel_height
        step_x = panel_width / max(len(sizes) - 1, 1)
        place = {n: x0 + (j * step_x if len(sizes) > 1 else panel_width / 2) for j, n in enumerate(sizes)}
        svg.text(x0, y0 - 8, MASKS.get(mask, mask), "p")
        for step in steps:
            svg.line(x0, base - step * scale, x0 + panel_width, base - step * scale, "axis" if step == 0 else "grid")
            if i % columns == 0:
                svg.text(x0 - 8, base - step * scale + 4, f"{step}", "s", "end")
        for n, x in place.items():
            svg.text(x, base + 16, f"{n // 1024}k" if n % 1024 == 0 else str(n), "s", "middle")
        mine = {n: rows[mask, n] for n in sizes if (mask, n) in rows}
        yard = [(place[n], base - r["yardstick"]["tflops"] * scale) for n, r in mine.items()]
        for (ax, ay), (bx, by) in zip(yard, yard[1:]):
            svg.line(ax, ay, bx, by, "yard")
        # The library's own curve is drawn last, over the others.
        for name in reversed(names):
            have = [(n, w) for n, r in mine.items() if (w := figure(r, name, args))]
            points = [(place[n], base - w["tflops"] * scale) for n, w in have]
            svg.curve(points, name, [tip(mine[n], name, w) for n, w in have])
    svg.text(left - 36, height - 18, "TFLOP/s on visible cells. " + source_line(headers, args), "s")
    return svg.finish()


def main(argv=None):
    """Writes one drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["bars", "lines"])
    parser.add_argument("files", nargs="+", metavar="RESULT")
    parser.add_argument("--out", required=True, help="the SVG to write; - prints it")
    parser.add_argument("--heads", default="64:8")
    parser.add_argument("--head-dim", default="128", help='as in the file: "128" or "192/128"')
    parser.add_argument("--pass", dest="passes", choices=["forward", "backward"], default="forward")
    parser.add_argument("--time", choices=["call", "kernel"], default="call")
    parser.add_argument("--tokens", type=int, help="of bars; the largest number in the files by default")
    parser.add_argument("--columns", type=int, default=3, help="panels side by side")
    args = parser.parse_args(argv)
    text = {"bars": bars, "lines": lines}[args.kind](args.files, args)
    if args.out == "-":
        sys.stdout.write(text)
    else:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
