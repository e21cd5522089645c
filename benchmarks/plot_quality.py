#!/usr/bin/env python3
"""docs/quality.svg: KL against bits per weight, from the table of docs/methods/dwq.md.

usage: plot_quality.py DWQ_MD OUTPUT_SVG      needs nothing but Python
"""
import math
import re
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 70, 150, 30, 50


def rows(text):
    for m in re.finditer(r"^\| ([234]) \| ([\d.]+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|", text, re.M):
        yield float(m[2]), float(m[3]), float(m[4])


def main():
    table = sorted(rows(open(sys.argv[1], encoding="utf-8").read()))
    low, high = 0.01, 2.0

    def x(bpw):
        return LEFT + (bpw - 2.2) / (4.8 - 2.2) * (WIDTH - LEFT - RIGHT)

    def y(kl):
        return TOP + (math.log(high) - math.log(kl)) / (math.log(high) - math.log(low)) * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" role="img" '
           'aria-label="KL divergence from the original against bits per weight: DWQ lies below plain rounding at every width">',
           '<style>text{fill:#333}.axis{stroke:#999}.grid{stroke:#ddd}@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}}</style>']
    for tick in (0.01, 0.03, 0.1, 0.3, 1):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
                   f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (2.5, 3, 3.5, 4, 4.5):
        out.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick:g}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">bits per weight</text>')
    out.append(f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">KL to the original (nats/token)</text>')
    for column, (name, colour) in enumerate((("plain rounding", "#c0392b"), ("lquant dwq", "#2471a3")), start=1):
        points = [(x(row[0]), y(row[column])) for row in table]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2.5" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5" fill="{colour}"/>' for a, b in points]
        out += [f'<text x="{a + 9:.1f}" y="{b - 7:.1f}">{row[column]:g}</text>' for (a, b), row in zip(points, table)]
        out.append(f'<circle cx="{WIDTH - RIGHT + 24}" cy="{TOP + 22 * column}" r="4.5" fill="{colour}"/>'
                   f'<text x="{WIDTH - RIGHT + 36}" y="{TOP + 22 * column + 4}">{name}</text>')
    out.append("</svg>\n")
    open(sys.argv[2], "w", encoding="utf-8").write("\n".join(out))


if __name__ == "__main__":
    main()
