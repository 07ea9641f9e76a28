"""The rates of the planner's cost model: what measured times make of them, and the forms in which they are applied."""

# head_dim of the three classes of kernel rates: up to 64, up to 128, and above.
CLASSES = (64, 128, 256)
PASSES = ("forward", "backward")
SCALARS = ("link_mb_per_s", "link_latency_ns", "kernel_latency_ns")


def line(points):
    """(a, b) of the line a + b x nearest to (x, y), by error relative to y; through 0 where a would be below."""
    weighted = [(x, y, 1 / y**2) for x, y in points]
    w, wx, wy = (sum(p[2] * (1, p[0], p[1])[i] for p in weighted) for i in range(3))
    wxx, wxy = (sum(p[2] * p[0] * p[i] for p in weighted) for i in range(2))
    spread = w * wxx - wx * wx
    if spread > 1e-12 * w * wxx:
        slope = (w * wxy - wx * wy) / spread
        start = (wy - slope * wx) / w
        if start > 0 and slope > 0:
            return start, slope
    return 0.0, wxy / wxx


def kernel_gflops(calls, tiny_ms):
    """GFLOP/s of calls (FLOPs, milliseconds) beyond what a call without work takes."""
    flops, ms = sum(c[0] for c in calls), sum(c[1] for c in calls)
    beyond = ms - len(calls) * tiny_ms
    return flops / (beyond if beyond > 0 else ms) / 1e6


def rates_of(rows, defaults):
    """The rates, whole numbers, that rows of a result file come to; `defaults` where nothing was measured."""
    found = {name: list(value) if name.endswith("gflops") else value for name, value in defaults.items()}
    tiny = {}
    for row in rows:
        if row["what"] == "tiny":
            tiny[row["pass"], row["head_dim"]] = row["ms"]
    for at, dim in enumerate(CLASSES):
        for kind in PASSES:
            calls = [(r["flops"], r["ms"]) for r in rows if (r["what"], r.get("pass"), r.get("head_dim")) == ("kernel", kind, dim)]
            if calls:
                found[f"{kind}_gflops"][at] = max(1, round(kernel_gflops(calls, tiny.get((kind, dim), 0.0))))
    if tiny:
        # One figure for all kernels, so that of the commonest.
        common = 128 if any(dim == 128 for _, dim in tiny) else max(dim for _, dim in tiny)
        both = [ms for (_, dim), ms in tiny.items() if dim == common]
        found["kernel_latency_ns"] = round(sum(both) / len(both) * 1e6)
    moved = [(row["bytes_received"], row["ms"] * 1e6) for row in rows if row["what"] == "link"]
    if moved:
        latency, ns_a_byte = line(moved)
        found["link_latency_ns"], found["link_mb_per_s"] = round(latency), max(1, round(1000 / ns_a_byte))
    return found


def text(rates):
    """The value of MAGI_ATTENTION_RATES."""
    many = [f"{kind}_gflops={','.join(map(str, rates[f'{kind}_gflops']))}" for kind in PASSES]
    return ";".join(many + [f"{name}={rates[name]}" for name in SCALARS])


def snippet(rates):
    """Lines of C that set a magi_config."""
    lines = [f"config.{kind}_gflops[{i}] = {value};" for kind in PASSES for i, value in enumerate(rates[f"{kind}_gflops"])]
    return lines + [f"config.{name} = {rates[name]};" for name in SCALARS]


def defaults_of(config):
    """The rates of a ranks.Config."""
    names = [f"{kind}_gflops" for kind in PASSES] + list(SCALARS)
    return {name: list(getattr(config, name)) if name.endswith("gflops") else getattr(config, name) for name in names}


def table(result):
    """Lines: what was measured, then the rates."""
    lines = []
    for row in result["rows"]:
        if row["what"] == "link":
            lines.append(f"link      {row['bytes_received'] / 1e6:>10.3f} MB received {row['ms'] * 1e3:>12.1f} us")
        else:
            rate = f"{row['flops'] / row['ms'] / 1e9:>8.1f} TFLOP/s" if row["what"] == "kernel" else ""
            lines.append(f"{row['pass']:9} d{row['head_dim']:<4} {row['mask']:<7} {row['tokens']:>6} {row['ms'] * 1e3:>12.1f} us {rate}".rstrip())
    return lines + ["", f"MAGI_ATTENTION_RATES='{text(result['rates'])}'", "", *snippet(result["rates"])]
