"""Times of functions that enqueue work on a CUDA device. They take turns, so that all meet the same clocks and power."""
import statistics
import time

import torch

FLUSH_BYTES = 256 << 20
# Calls that are enqueued together where host time is taken.
BURST = 10
# Calls between two events where a call could not be captured in a graph.
BACK_TO_BACK = 8


class Turns:
    """Functions by name; each round calls every one once, in order, after a flush of the L2 cache."""

    def __init__(self, device, warmup=5, rounds=15):
        self.device, self.warmup, self.rounds = device, warmup, rounds
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self.entries = {}

    def add(self, name, call, repeat=1):
        """`repeat` calls between the events count as one, their time divided."""
        self.entries[name] = (call, repeat)

    def run(self, before_sync=None):
        """Median milliseconds by name. `before_sync` is called once, when everything is enqueued."""
        events = {name: [] for name in self.entries}
        for turn in range(self.warmup + self.rounds):
            for name, (call, repeat) in self.entries.items():
                self.flush.zero_()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                for _ in range(repeat):
                    call()
                end.record()
                if turn >= self.warmup:
                    events[name].append((begin, end))
        seen = before_sync() if before_sync else None
        torch.cuda.synchronize(self.device)
        medians = {}
        for name, pairs in events.items():
            repeat = self.entries[name][1]
            medians[name] = statistics.median(a.elapsed_time(b) for a, b in pairs) / repeat
        return medians, seen


def captured(make):
    """A function that replays one call as a CUDA graph. `make` gets the handle of the stream that is captured and returns
    the call. Raises what the capture raises."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        make(side.cuda_stream)()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        make(side.cuda_stream)()
    replay = graph.replay
    # Called once, so that uploading the graph is in no figure.
    replay()
    torch.cuda.synchronize()
    return replay


def enqueue_microseconds(call, device_ms, budget_ms=400.0):
    """Median and smallest host time of a call that only enqueues, in bursts of BURST behind one more, as a training step
    enqueues them: the first call after the host has waited for the device costs up to 0.1 ms more, whoever makes it.
    """
    bursts = int(max(1, min(30, budget_ms / max(device_ms * (BURST + 1), 1e-3))))
    times = []
    for _ in range(bursts):
        torch.cuda.synchronize()
        call()
        for _ in range(BURST):
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e6)
    torch.cuda.synchronize()
    return statistics.median(times), min(times)
