#!/usr/bin/env python3
"""Ranks that die, fall silent or make a mistake in the middle of attention: every other rank must get an error in time, make a new
communicator with those that are left, and compute right. On CUDA devices a rank is a process, over NCCL; with --device cpu a thread.

  python3 tests/gpu/ranks/killed_rank.py [--world 4] [--rounds 20] [--timeout 5] [--out killed_rank.json]
"""
import argparse
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time

from sites import CudaSite, HostSite, Part
import magi
import masks
import ranks
import results
from row import Row

OK, SHAPE_MISMATCH, DEVICE_MISMATCH, COMM_FAILED, PLAN_MISMATCH, TIMEOUT, ABORTED = 0, 105, 108, 500, 501, 600, 601
# Seconds that an error may take beyond the timeout.
GRACE = 2.0
MASKS = ("causal", "full")


class Gone(Exception):
    """This rank is to die."""


class Rank:
    """Does what it is told, one order at a time."""

    def __init__(self, site, options):
        self.site, self.options, self.comm, self.part = site, options, None, None
        self.doom = None
        heads_q, heads_kv = map(int, options.heads.split(":"))
        self.rows = [
            Row(masks.grid_mask(name, options.tokens, 1), heads_q, heads_kv, options.dim, options.dim, site.dtype, True) for name in MASKS
        ]
        self.masks = [magi.Mask(site.library, r.mask.slices, r.mask.total_q, r.mask.total_k) for r in self.rows]
        self.whole = site.whole(self.rows[0], 7)

    def serve(self, receive, send):
        """Until there are no more orders."""
        send({"ready": True})
        while (order := receive()) is not None:
            try:
                answer = {"status": OK, **(getattr(self, order.pop("do"))(**order) or {})}
            except magi.Error as error:
                answer = {"status": error.status, "message": str(error)}
            except Gone:
                return self.close()
            # Whatever it is, the parent is not to wait for an answer.
            except Exception as error:
                answer = {"status": -1, "message": f"{type(error).__name__}: {error}"}
            send({**answer, "at": time.monotonic()})
        self.close()

    def invite(self):
        """A new id."""
        ranks.declare(self.site.library)
        unique = ranks.UniqueId()
        self.site.library.check(self.site.library.c.magi_unique_id_create(ranks.C.byref(unique)))
        return {"id": bytes(unique.bytes).hex()}

    def meet(self, rank, world, id=None, comm=None):
        """Joins the others."""
        self.close()
        timeout_ms = int(self.options.timeout * 1000)
        # Meeting takes longer than the timeout that is tested.
        self.comm = comm or ranks.Comm.join(self.site.library, rank, world, self.site.device.index, bytes.fromhex(id), 60_000)
        self.comm.set_timeout(timeout_ms)
        self.others = (rank, world)

    def plan(self, mask=0):
        """A key, prepared, with inputs."""
        if self.part:
            self.part.close()
        self.part = Part(self.site, self.comm, self.masks[mask], self.rows[0], {"chunk_size": self.options.chunk}, self.whole)
        self.part.load()

    def check(self):
        """One pass, compared with one device."""
        self.part.calls["forward"]()
        self.part.calls["backward"]()
        errors = self.part.errors()
        return {"errors": errors, "good": all(e <= self.site.bound for e in errors.values())}

    def run(self, kind):
        """Calls until something ends the communicator; what did, and when."""
        calls, end = 0, time.monotonic() + 60
        try:
            while time.monotonic() < end:
                self._die()
                self.part.calls[kind]()
                self.site.synchronize()
                self.comm.check()
                calls += 1
        except magi.Error as error:
            return {"status": error.status, "message": str(error), "calls": calls}
        return {"calls": calls}

    def mistake(self, what):
        """A call whose query is wrong: its error must be this rank's."""
        tokens = self.part.at["q"].shape[0]
        wrong = magi.Tensor.from_buffer_copy(self.part.at["q"])
        if what == "shape":
            wrong.shape[0] = tokens - 1
        else:
            wrong.device_type, wrong.device_index = magi.CUDA, (wrong.device_index + 1) % 4
        self.part.enqueue("forward", q=wrong)()

    def verdict(self):
        """What ended the communicator."""
        self.comm.check()

    def close(self):
        """Leaves."""
        if self.part:
            self.part.close()
        if self.comm:
            self.comm.close()
        self.comm = self.part = None

    def _die(self):
        """A thread cannot be killed: it leaves, or falls silent until everybody has an error."""
        if self.doom == "killed":
            raise Gone
        while self.doom == "silent":
            time.sleep(0.01)
        if self.doom == "buried":
            raise Gone


class Hand:
    """What the parent knows of a rank: orders go in, answers come out."""

    def __init__(self, options):
        self.answers = queue.Queue()
        self.start(options)

    def ask(self, **order):
        """Gives an order."""
        self.put(order)

    def answer(self, seconds):
        """Of the order before; a status of -1 if there is none in time."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return {"status": -1, "message": f"no answer within {seconds:.0f} s", "at": time.monotonic()}


class Process(Hand):
    """A process. It has a device once it is told which."""

    def start(self, options):
        words = [sys.executable, os.path.abspath(__file__), *options.words, "--worker"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with self.process.stdout:
            for line in self.process.stdout:
                self.answers.put(json.loads(line))
        self.answers.put({"status": -1, "message": "the process ended", "at": time.monotonic()})

    def begin(self, device):
        """`ready` is the first answer."""
        self.put(device)

    def put(self, order):
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended, which is the answer.

    def hurt(self, how):
        self.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


class Thread(Hand):
    """A thread, in host memory."""

    def start(self, options):
        self.orders, self.rank = queue.Queue(), Rank(HostSite(options.loaded), options)

    def begin(self, device):
        """As of Process."""
        threading.Thread(target=self.rank.serve, args=(self.orders.get, self.answers.put), daemon=True).start()

    def put(self, order):
        self.orders.put(order)

    def hurt(self, how):
        self.rank.doom = how

    def end(self):
        self.rank.doom = "buried"
        self.orders.put(None)


class Crew:
    """All ranks, and one that takes the place of the next that dies: a process takes long to start."""

    def __init__(self, options):
        self.options, self.kind = options, Thread if options.device == "cpu" else Process
        self.hands = [self.kind(options) for _ in range(options.world)]
        for i, hand in enumerate(self.hands):
            hand.begin(i)
        self.spare = self.kind(options)
        for hand in self.hands:
            assert hand.answer(240).get("ready"), "a rank did not start"

    def all(self, hands, seconds, **order):
        """The answers to one order for all of `hands`."""
        for hand in hands:
            hand.ask(**order)
        until = time.monotonic() + seconds
        return [hand.answer(max(until - time.monotonic(), 0.01)) for hand in hands]

    def meet(self, hands):
        """A communicator of these."""
        world, seconds = len(hands), 70
        if self.kind is Thread:
            each = [{"comm": comm} for comm in ranks.Comm.local(self.options.loaded, world)]
        else:
            hands[0].ask(do="invite")
            each = [{"id": hands[0].answer(30)["id"]}] * world
        for rank, hand in enumerate(hands):
            hand.ask(do="meet", rank=rank, world=world, **each[rank])
        return [hand.answer(seconds) for hand in hands]

    def ready(self, hands):
        """Meets and plans; whether all went well."""
        answers = self.meet(hands) + self.all(hands, 60, do="plan")
        return all(a["status"] == OK for a in answers), [a.get("message") for a in answers if a["status"] != OK]

    def round(self, how, draw):
        """Hurts a random rank in a random pass at a random time; what came of it."""
        victim, kind = draw.randrange(len(self.hands)), draw.choice(["forward", "backward"])
        found = {"what": how, "victim": victim, "pass": kind, "good": False}
        good, found["trouble"] = self.ready(self.hands)
        if not good:
            return found
        for hand in self.hands:
            hand.ask(do="run", kind=kind)
        time.sleep(draw.uniform(0.1, 0.6))
        hurt, at = self.hands[victim], time.monotonic()
        hurt.hurt(how)
        left = [h for h in self.hands if h is not hurt]
        limit = self.options.timeout + GRACE
        answers = [h.answer(limit + 10) for h in left]
        found["statuses"] = [a["status"] for a in answers]
        found["seconds"] = max(a["at"] for a in answers) - at
        in_time = found["seconds"] <= limit and all(s in (COMM_FAILED, TIMEOUT) for s in found["statuses"])
        hurt.end()
        replacement, self.spare = self.spare, self.kind(self.options)
        replacement.begin(victim)
        begun = time.monotonic()
        found["recovered"] = False
        good, found["trouble"] = self.ready(left)
        if good:
            checks = self.all(left, 30, do="check")
            found["errors"] = max((max(c["errors"].values()) for c in checks if c.get("errors")), default=None)
            found["recovered"] = all(c.get("good") for c in checks)
        found["recovery_seconds"] = time.monotonic() - begun
        found["good"] = in_time and found["recovered"]
        self.hands[victim] = replacement
        if not replacement.answer(240).get("ready"):
            found.update(good=False, trouble=["the replacement did not start"])
        return found

    def other_mask(self, draw):
        """One rank plans another mask: all are told, and the communicator stays good."""
        victim = draw.randrange(len(self.hands))
        trouble = [a.get("message") for a in self.meet(self.hands) if a["status"] != OK]
        begun = time.monotonic()
        for hand in self.hands:
            hand.ask(do="plan", mask=int(hand is self.hands[victim]))
        statuses = [h.answer(self.options.timeout + GRACE)["status"] for h in self.hands]
        found = {"what": "other mask", "victim": victim, "statuses": statuses, "seconds": time.monotonic() - begun, "trouble": trouble}
        again = self.all(self.hands, 60, do="plan") + self.all(self.hands, 30, do="check")
        found["recovered"] = all(a["status"] == OK and a.get("good", True) for a in again)
        found["good"] = found["recovered"] and set(statuses) == {PLAN_MISMATCH}
        return found

    def mistake(self, what, want, draw):
        """One rank's argument is wrong: its error is its own, and the others time out."""
        victim = draw.randrange(len(self.hands))
        good, trouble = self.ready(self.hands)
        found = {"what": f"wrong {what}", "victim": victim, "good": False, "trouble": trouble}
        if not good:
            return found
        begun = time.monotonic()
        for i, hand in enumerate(self.hands):
            hand.ask(**({"do": "mistake", "what": what} if i == victim else {"do": "run", "kind": "forward"}))
        answers = [h.answer(self.options.timeout + GRACE + 10) for h in self.hands]
        found["statuses"] = [a["status"] for a in answers]
        found["seconds"] = max(a["at"] for a in answers) - begun
        others = [s for i, s in enumerate(found["statuses"]) if i != victim]
        in_time = found["seconds"] <= self.options.timeout + GRACE and TIMEOUT in others and set(others) <= {TIMEOUT, COMM_FAILED}
        again, found["trouble"] = self.ready(self.hands)
        found["recovered"] = again and all(c.get("good") for c in self.all(self.hands, 30, do="check"))
        found["good"] = in_time and found["statuses"][victim] == want and found["recovered"]
        return found

    def end(self):
        """All go."""
        for hand in [*self.hands, self.spare]:
            hand.end()


def table(rows):
    """Lines."""
    lines = [f"{'what':<13} {'victim':>6} {'pass':8} {'statuses':<22} {'error s':>8} {'again s':>8} {'difference':>10}  outcome"]
    for r in rows:
        seconds, again, errors = (r.get(n) for n in ("seconds", "recovery_seconds", "errors"))
        figures = [f"{x:8.2f}" if x is not None else f"{'-':>8}" for x in (seconds, again)]
        difference = f"{errors:10.1e}" if errors is not None else f"{'-':>10}"
        statuses = " ".join(map(str, r.get("statuses", [])))
        outcome = "good" if r["good"] else f"BAD {'; '.join(map(str, r.get('trouble') or []))}"
        lines.append(f"{r['what']:<13} {r['victim']:>6} {r.get('pass', ''):8} {statuses:<22} {' '.join(figures)} {difference}  {outcome}")
    return lines


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--world", type=int, default=4)
    add("--rounds", type=int, default=20, help="ranks to kill")
    add("--silent", type=int, default=2, help="ranks to stop instead, which only a timeout finds")
    add("--timeout", type=float, default=5.0, help="seconds")
    add("--tokens", type=int, help="8192; 64 with --device cpu")
    add("--heads", default=None, help="16:4; 2:1 with --device cpu")
    add("--dim", type=int, help="128; 16 with --device cpu")
    add("--chunk", type=int, help="256; 8 with --device cpu")
    add("--seed", type=int, default=2026)
    add("--seconds", type=float, help="begin no round later than this")
    add("--library", help="path of libmagi_attn.so")
    add("--out", help="result file")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    small = options.device == "cpu"
    for name, on_host, on_device in (("tokens", 64, 8192), ("heads", "2:1", "16:4"), ("dim", 16, 128), ("chunk", 8, 256)):
        if getattr(options, name) is None:
            setattr(options, name, on_host if small else on_device)
    options.words = argv
    return options


def work(options):
    """A rank's process. What it prints would be taken for an answer: it goes with the messages."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def receive():
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    library, on_host = magi.Library(options.library), options.device == "cpu"
    if not on_host:
        # What takes longest, before a device is known.
        import torch  # noqa: F401
    device = receive()
    if device is not None:
        Rank(HostSite(library) if on_host else CudaSite(library, device), options).serve(receive, send)


def main(argv=None):
    """Exit code: 0 when all went well."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    if options.worker:
        return work(options)
    options.loaded = magi.Library(options.library)
    draw, begun, rows = random.Random(options.seed), time.monotonic(), []
    protocol = {n: getattr(options, n) for n in ("world", "timeout", "tokens", "heads", "dim", "seed")}
    result = results.header("killed rank", options.loaded.version, protocol, {"device": options.device, "card": results.card()})
    crew = Crew(options)
    hows = ["killed"] * options.rounds + ["silent"] * options.silent
    plays = [lambda: crew.other_mask(draw)]
    plays += [lambda w=w, s=s: crew.mistake(w, s, draw) for w, s in (("shape", SHAPE_MISMATCH), ("device", DEVICE_MISMATCH))]
    plays += [lambda how=how: crew.round(how, draw) for how in hows]
    for number, play in enumerate(plays):
        if options.seconds is not None and time.monotonic() - begun > options.seconds:
            result["not_run"].append(f"{len(plays) - number} rounds")
            break
        rows.append(play())
        print(table(rows)[-1], file=sys.stderr, flush=True)
    crew.end()
    result["rows"] = rows
    if options.out:
        results.save(options.out, result)
    print("\n".join(table(rows)))
    bad = sum(not r["good"] for r in rows)
    print(json.dumps({"rounds": len(rows), "bad": bad, "not_run": result["not_run"], "seconds": round(time.monotonic() - begun, 1)}))
    return 1 if bad or result["not_run"] else 0


if __name__ == "__main__":
    sys.exit(main())
