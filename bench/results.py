"""Result files: where and of what a figure was measured, saving, and the table that is printed last."""
import datetime
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCHEMA = 1


def commit():
    """Commit of what is measured: COMMIT, which scripts/stage.sh writes, or git's word; "-dirty" with changes."""
    staged = os.path.join(ROOT, "COMMIT")
    if os.path.exists(staged):
        with open(staged, encoding="utf-8") as file:
            return file.read().strip()
    try:
        describe = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def card(fields="name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,power.limit"):
    """What nvidia-smi says of the first device, as numbers where they are; empty where there is no nvidia-smi."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    found = {}
    for name, value in zip(fields.split(","), (x.strip() for x in line.split(","))):
        number = value.replace(".", "", 1).isdigit() and name != "driver_version"
        found[name] = float(value) if number else value
    return found


def clocks():
    """Clocks in MHz, temperature and power, now."""
    return card("clocks.sm,clocks.mem,temperature.gpu,power.draw")


def processor():
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return "unknown"


# Options that say where on this machine something lies.
PLACES = ("--library", "--out", "--trace")


def program():
    """The program's path in the repository or the staged folder, by the launcher that started it."""
    path = os.path.relpath(os.path.abspath(sys.argv[0]), ROOT)
    path = os.path.basename(path) if path.startswith("..") else path
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} {path}"
    return f"python3 {path}"


def command():
    """The command, without those places."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if not skip and not word.startswith(tuple(f"{name}=" for name in PLACES)) and word not in PLACES:
            words.append(word)
        skip = word in PLACES
    return " ".join([program(), *words])


def header(kind, library_version, protocol, machine):
    """A result without rows."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "commit": commit(),
        "library": library_version,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command(),
        "machine": {"processor": processor(), **machine},
        "protocol": protocol,
        "rows": [],
        "not_run": [],
    }


def save(path, result):
    """Writes the file whole or not at all: a run that is killed leaves the rows before."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.replace(part, path)


def load(path):
    """A result file; ValueError where it is none of ours."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a result file of schema {SCHEMA}")
    return result


def table(result):
    """Lines: a row a row, TFLOP/s and in brackets the fraction of the matmul's rate, call and kernel."""
    rows = [r for r in result["rows"] if r.get("times")]
    names = []
    for row in rows:
        names += [n for n in row["times"] if n not in names]
    head = f"{'pass':4} {'heads':>5} {'dim':>7} {'mask':<21} {'tokens':>6} {'matmul':>6}"
    lines = [head + "".join(f" | {n + ' call':>13} {'kernel':>13}" for n in names) + f" | {'host us':>7}"]
    for row in rows:
        kind = "bwd" if row["pass"] == "backward" else "fwd"
        text = f"{kind:4} {row['heads']:>5} {row['head_dim']:>7} {row['mask']:<21} {row['tokens']:>6} {row['yardstick']['tflops']:>6.0f}"
        for name in names:
            times = row["times"].get(name, {})
            text += " | " + " ".join(_figure(times.get(what)) for what in ("call", "kernel"))
        host = row["times"].get("magi", {}).get("host_us")
        lines.append(text + (f" | {host:7.1f}" if host is not None else f" | {'-':>7}"))
    for row in result["rows"]:
        if not row.get("times"):
            lines.append(f"{row['pass']} {row['heads']} {row['head_dim']} {row['mask']} {row['tokens']}: {row.get('outcome')}")
    return lines


def _figure(what):
    return f"{what['tflops']:5.0f} ({what['fraction']:.3f})" if what else f"{'-':>13}"
