"""The results as pictures: plain SVG, without a library."""
import math
from html import escape

from .measure import Load
from .summary import of, pending_cost
from .systems import NAMES as ALL

# The other forms of hookgate are in the tables alone.
NAMES = {name: title for name, title in ALL.items() if name not in ("bare", "hookgate-plain", "hookgate-old", "hookgate-three", "hookgate-durable")}
COLOURS = {"floor": "#8a8f98", "hookgate": "#c2410c", "node-honest": "#15803d", "python-honest": "#1d4ed8",
           "node-original": "#86c99b", "python-original": "#8db4f0"}
PARTS = {"proxy_us": ("proxy", "#c2410c"), "redis_us": ("Redis", "#b91c5c"), "nats_us": ("NATS", "#0f766e")}
WIDTH, HEIGHT, LEFT, TOP, GAP = 960, 420, 70, 60, 70
PANEL_WIDTH, PANEL_HEIGHT = (WIDTH - LEFT - GAP - 20) / 2, 250


def all_of(results):
    """Name of the picture → SVG; only of what was measured."""
    pictures = {}
    if results["cells"]:
        pictures["throughput"] = _over_load(results, "Requests a second (median; bars: least and most of the rounds)",
                                            [("requests_per_s", "")], 1)
        pictures["latency"] = _over_load(results, "Latency in ms: p50 (dashed) and p99", [("p99_us", ""), ("p50_us", "5 4")],
                                         1e-3)
        pictures["cpu"] = _cpu(results)
    if results["pending"]:
        pictures["pending"] = _pending(results)
    return pictures


def _text(x, y, text, size=12, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{escape(text)}</text>")


def _line(x1, y1, x2, y2, colour="#d5d8dd", width=1.0):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _picture(title, results, body, legend):
    quick = " (a quick run: noise)" if results["plan"]["quick"] else ""
    foot = f"{results['date']}, commit {results['commit']}, {results['machine']}, {results['rounds']} rounds{quick}"
    x, keys = LEFT, []
    for name, colour in legend:
        keys += [f'<rect x="{x:.1f}" y="{HEIGHT - 55}" width="12" height="12" fill="{colour}"/>',
                 _text(x + 17, HEIGHT - 45, name, 11)]
        x += 28 + 6.1 * len(name)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" fill="#1f2328" role="img">', f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>', _text(LEFT, 26, title, 16, weight="bold"), *body, *keys,
        _text(LEFT, HEIGHT - 18, foot, 10), "</svg>\n"])


def _short(value):
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


class Panel:
    """Axes, the upright one logarithmic, and what is drawn in them."""

    def __init__(self, place, title, columns, values):
        self.x, self.columns, self.parts = LEFT + place * (PANEL_WIDTH + GAP), columns, []
        values = [value for value in values if value > 0] or [1]
        self.low, self.high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        self.high = max(self.high, self.low + 1)
        self.parts.append(_text(self.x, TOP - 10, title, 13))
        for power in range(self.low, self.high + 1):
            y = self.y(10.0**power)
            self.parts += [_line(self.x, y, self.x + PANEL_WIDTH, y), _text(self.x - 6, y + 4, _short(10.0**power), 11, "end")]
        for index, column in enumerate(columns):
            self.parts.append(_text(self.column(index), TOP + PANEL_HEIGHT + 18, column, 11, "middle"))

    def y(self, value):
        """Height of a value."""
        share = (math.log10(max(value, 10.0**self.low)) - self.low) / (self.high - self.low)
        return TOP + PANEL_HEIGHT * (1 - share)

    def column(self, index):
        """Middle of a column."""
        return self.x + PANEL_WIDTH * (index + 0.5) / len(self.columns)

    def curve(self, points, colour, dashes, scale=1.0):
        """Through the medians, with the least and the most beside them."""
        known = [(self.column(index), point) for index, point in enumerate(points) if point]
        path = " ".join(f"{x:.1f},{self.y(point.median * scale):.1f}" for x, point in known)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
                          f'stroke-dasharray="{dashes or "none"}"/>')
        for x, point in known:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{self.y(point.median * scale):.1f}" r="3" fill="{colour}"/>')
            if point.high > point.low:
                self.parts.append(_line(x, self.y(point.low * scale), x, self.y(point.high * scale), colour, 1.5))


def _over_load(results, title, fields, scale):
    body = []
    for place, batch in enumerate((1, 50)):
        loads = sorted({Load(cell["connections"], batch) for cell in results["cells"]
                        if cell["batch"] == batch and not cell["duplicates"]})
        if not loads:
            continue
        curves = [(name, dashes, [of(results, name, load, field) for load in loads])
                  for name in NAMES for field, dashes in fields]
        values = [value * scale for _, _, points in curves for point in points if point for value in point]
        panel = Panel(place, f"{batch} record{'s' if batch > 1 else ''} a request, by requests at once",
                      [str(load.connections) for load in loads], values)
        for name, dashes, points in curves:
            if any(points):
                panel.curve(points, COLOURS[name], dashes, scale)
        body += panel.parts
    return _picture(title, results, body, [(NAMES[name], COLOURS[name]) for name in NAMES])


def _cpu(results):
    body = []
    for place, batch in enumerate((1, 50)):
        load, x = Load(64, batch), LEFT + place * (PANEL_WIDTH + GAP)
        costs = {name: [of(results, name, load, part) for part in PARTS] for name in NAMES}
        costs = {name: [part.median for part in parts] for name, parts in costs.items() if all(parts)}
        if not costs:
            continue
        longest = max(sum(parts) for parts in costs.values())
        body.append(_text(x, TOP - 10, f"{batch} record{'s' if batch > 1 else ''} a request", 13))
        for index, (name, parts) in enumerate(costs.items()):
            y, start = TOP + 5 + index * 42, x
            body.append(_text(x, y + 10, NAMES[name], 11))
            for cost, (_, colour) in zip(parts, PARTS.values()):
                width = (PANEL_WIDTH - 70) * cost / longest
                body.append(f'<rect x="{start:.1f}" y="{y + 14}" width="{width:.1f}" height="16" fill="{colour}"/>')
                start += width
            body.append(_text(start + 5, y + 26, f"{sum(parts):,.0f} µs", 11))
    return _picture("CPU a request at 64 at once, in µs: proxy, Redis, NATS", results, body, PARTS.values())


def _pending(results):
    body, sizes = [], sorted({row["pending"] for row in results["pending"]})
    names = ("hookgate", "python-original")
    for place, batch in enumerate((1, 50)):
        curves = {name: [pending_cost(results, name, batch, size) for size in sizes] for name in names}
        values = [value for points in curves.values() for point in points if point for value in point]
        panel = Panel(place, f"{batch} record{'s' if batch > 1 else ''} a request, by ids pending",
                      [_short(size) for size in sizes], values)
        for name, points in curves.items():
            panel.curve(points, COLOURS[name], "")
        body += panel.parts
    return _picture("CPU of proxy and Redis an event, in µs", results, body, [(NAMES[name], COLOURS[name]) for name in names])
