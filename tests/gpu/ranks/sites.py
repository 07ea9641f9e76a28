"""Where a rank of these programs has its tensors: a CUDA device through torch, or host memory without it. Both compute the whole
problem alone first, and compare a rank's part with that. And how ranks tell each other what they found.
"""
import ctypes as C
import datetime
import gc
import hashlib
import math
import os
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (HERE, os.path.join(HERE, "..", "..", "..", "bench")):
    if folder not in sys.path:
        sys.path.insert(0, folder)
import magi  # noqa: E402
import ranks  # noqa: E402

INPUTS = {"q": ranks.SIDE_Q, "k": ranks.SIDE_K, "v": ranks.SIDE_K, "dout": ranks.SIDE_Q}
OUTPUTS = {"out": ranks.SIDE_Q, "lse": ranks.SIDE_Q, "dq": ranks.SIDE_Q, "dk": ranks.SIDE_K, "dv": ranks.SIDE_K}
SIDES = {**INPUTS, **OUTPUTS}
FORWARD = ("q", "k", "v", "out", "lse")


def host_bytes():
    """What the process holds of the host's memory."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Threads:
    """Ranks of one process."""

    def __init__(self, world):
        self.world, self.met = world, threading.Barrier(world)
        self.box = [None] * world

    def gather(self, rank, mine):
        """What every rank has, by rank."""
        self.box[rank] = mine
        self.met.wait()
        return list(self.box)


class Processes:
    """As torchrun started them, each with the current device."""

    def __init__(self):
        import torch
        import torch.distributed as dist

        device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", timeout=datetime.timedelta(seconds=200), device_id=device)
        self.dist, self.world = dist, dist.get_world_size()

    def gather(self, rank, mine):
        """As of Threads."""
        box = [None] * self.world
        self.dist.all_gather_object(box, mine)
        return box


class HostSite:
    """Host memory, for tests of the programs' logic on local ranks."""

    dtype, bound, stream = "f32", 1e-4, None
    settings = {}

    def __init__(self, library):
        self.library = library

    def whole(self, row, seed):
        """The row's tensors, with results of one device."""
        from host import HostRow

        whole = HostRow(self.library, row, seed)
        whole.run()
        return whole

    def like(self, tensor, tokens):
        """NaN, with another number of tokens."""
        from host import HostTensor

        return HostTensor("f32", (tokens, *tensor.shape[1:]), lambda: math.nan)

    def describe(self, tensor):
        """Its magi_tensor."""
        return tensor.magi

    def difference(self, tensor, whole, positions):
        """Largest difference from the rows of `whole` at these positions, relative to its largest element."""
        width = math.prod(tensor.shape[1:])
        want = [x for p in positions for x in whole.values[p * width : (p + 1) * width]]
        largest = max((abs(x) for x in whole.values if math.isfinite(x)), default=0.0) or 1.0
        off = [0.0 if a == b else abs(a - b) for a, b in zip(tensor.values, want)]
        return max((x if x == x else math.inf for x in off), default=0.0) / largest

    def digest(self, tensors):
        """The same for the same bits."""
        found = hashlib.sha256()
        for tensor in tensors:
            found.update(tensor.values.tobytes())
        return found.hexdigest()[:16]

    def synchronize(self):
        """Calls have ended when they return."""

    def free_bytes(self):
        """Of the device's memory: there is none."""
        return 0

    def mark(self):
        """Nothing is under way beside the host."""
        return None

    def milliseconds(self, begin, end):
        """Between two marks."""
        return 0.0


class CudaSite:
    """A CUDA device, with a stream that waits for no other. What torch does works on its "cpu" device, too."""

    dtype, bound = "bf16", 0.02
    # The same bits on every run.
    settings = {"deterministic": 1}

    def __init__(self, library, index):
        import torch

        self.torch, self.library = torch, library
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        self.on = torch.cuda.Stream()
        torch.cuda.set_stream(self.on)
        self.stream = self.on.cuda_stream

    def whole(self, row, seed):
        """As of HostSite. Inputs are those of a seeded generator, the same on every device of one kind."""
        from device import DeviceRow

        whole = DeviceRow(self.library, row, seed, device=self.device)
        whole.run(self.stream)
        return whole

    def like(self, tensor, tokens):
        """As of HostSite."""
        return self.torch.full((tokens, *tensor.shape[1:]), math.nan, dtype=tensor.dtype, device=self.device)

    def describe(self, tensor):
        """As of HostSite."""
        from device import describe

        return describe(tensor)

    def difference(self, tensor, whole, positions):
        """As of HostSite, by the norm."""
        torch = self.torch
        want = whole[torch.tensor(positions, dtype=torch.int64, device=self.device)].double()
        have, same = tensor.double(), (tensor == want)
        off = torch.where(same, torch.zeros_like(have), have - torch.where(same, have, want))
        size = want[torch.isfinite(want)].norm().item() or 1.0
        found = off.norm().item() / size
        return found if found == found else math.inf

    def digest(self, tensors):
        """As of HostSite."""
        torch, found = self.torch, []
        for tensor in tensors:
            words = tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32).flatten().long()
            weights = torch.arange(words.numel(), device=self.device) % 65521 + 1
            found += [words.sum().item(), (words * weights).sum().item()]
        return ":".join(f"{x & (1 << 64) - 1:x}" for x in found)

    def synchronize(self):
        """Waits for the stream."""
        self.on.synchronize()

    def free_bytes(self):
        """Of the device's memory."""
        self.torch.cuda.synchronize(self.device)
        return self.torch.cuda.mem_get_info(self.device)[0]

    def mark(self):
        """A point in the stream, with a time."""
        event = self.torch.cuda.Event(enable_timing=True)
        event.record(self.on)
        return event

    def milliseconds(self, begin, end):
        """As of HostSite; both have come."""
        return begin.elapsed_time(end)


class Part:
    """A row's tensors on one rank, and calls on a key."""

    def __init__(self, site, comm, mask, row, settings, whole):
        self.site, self.row, self.whole = site, row, whole
        shape = ranks.shape_of(row, {"bf16": magi.BF16, "f32": magi.F32}[row.dtype])
        # One remote stage both ways: exchanges beside kernels.
        stages = {"degree_forward": 1, "degree_backward": 1}
        self.key = ranks.Key(comm, mask, shape, ranks.config_of(site.library, {**stages, **site.settings, **settings}))

    def load(self):
        """Dispatches inputs, makes outputs and calls. The key is prepared, or this is the first collective call."""
        site, key = self.site, self.key
        key.prepare(site.stream)
        self.positions = {side: key.positions(side) for side in (ranks.SIDE_Q, ranks.SIDE_K)}
        self.tensors = {name: site.like(getattr(self.whole, name), len(self.positions[side])) for name, side in SIDES.items()}
        self.at = {name: site.describe(tensor) for name, tensor in self.tensors.items()}
        for name, side in INPUTS.items():
            key.dispatch(side, site.describe(getattr(self.whole, name)), self.at[name], site.stream)
        self.calls = {"forward": self.enqueue("forward"), "backward": self.enqueue("backward")}

    def enqueue(self, kind, **changed):
        """A function that makes the call, with some tensors changed."""
        at = {name: C.pointer(tensor) for name, tensor in {**self.at, **changed}.items()}
        if kind == "forward":
            return self.key.enqueue(magi.ForwardArgs(**{name: at[name] for name in FORWARD}), self.site.stream)
        return self.key.enqueue(magi.BackwardArgs(**at), self.site.stream)

    def errors(self):
        """Difference of every output from one device's."""
        self.site.synchronize()
        found = {}
        for name, side in OUTPUTS.items():
            found[name] = self.site.difference(self.tensors[name], getattr(self.whole, name), self.positions[side])
        return found

    def digest(self):
        """Of every output."""
        self.site.synchronize()
        return self.site.digest([self.tensors[name] for name in OUTPUTS])

    def close(self):
        """Frees the key."""
        self.key.close()
