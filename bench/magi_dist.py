"""The library on the ranks of a communicator, and the reference beside it: one GPU that computes its rank's queries against all keys
that they see, which it has, in one kernel. Both have the interface of peers_dist.Peer.
"""
import ctypes as C
import math
import time

import magi
import ranks
import torch
from device import describe

DTYPES = {"bf16": magi.BF16, "f16": magi.F16, "f32": magi.F32}


class Keyed:
    """magi_calc_attn on a key."""

    name = "magi"

    def __init__(self, comm, row, settings, stream, device):
        self.row, self.stream, self.device = row, stream, device
        library = comm.library
        self.mask = magi.Mask(library, row.mask.slices, row.mask.total_q, row.mask.total_k)
        begin = time.perf_counter()
        self.key = ranks.Key(comm, self.mask, ranks.shape_of(row, DTYPES[row.dtype]), ranks.config_of(library, settings))
        planned = time.perf_counter()
        self.key.prepare(stream)
        self.host_ms = {"key_ms": (planned - begin) * 1e3, "prepare_ms": (time.perf_counter() - planned) * 1e3}
        self.positions = torch.tensor(self.key.positions(ranks.SIDE_Q), dtype=torch.int64)
        self.positions_k = self.positions

    def load(self, q, k, v, dout):
        """As of Peer; outputs are NaN until a pass writes them."""
        self.q, self.k, self.v, self.dout = q, k, v, dout
        self.out = torch.empty_like(q)
        self.lse = torch.empty(q.shape[:2], device=self.device)
        self.dq, self.dk, self.dv = (torch.empty_like(x) for x in (q, k, v))
        for x in (self.out, self.lse, self.dq, self.dk, self.dv):
            x.fill_(math.nan)
        at = {name: C.pointer(describe(getattr(self, name))) for name in ("q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv")}
        self.forward = self._enqueue(magi.ForwardArgs(**{name: at[name] for name in ("q", "k", "v", "out", "lse")}))
        self.backward = self._enqueue(magi.BackwardArgs(**at))

    def _enqueue(self, args):
        return self.key.enqueue(args, self.stream)

    def bytes_moved(self):
        """As of Peer, by the plan's statistics."""
        stats = self.key.stats()
        return {name: stats[f"bytes_{name}"] for name in ("forward", "backward")}

    def close(self):
        """Frees the key."""
        self.key.close()


class Alone(Keyed):
    """magi_flex_flash_attn of a rank's queries and the keys they see, with all multiprocessors; dk and dv are this rank's part of
    their sums."""

    name = "alone"

    def __init__(self, library, row, positions, stream, device):
        self.row, self.stream, self.device, self.library = row, stream, device, library
        part, keys = row.mask.of_queries(positions.tolist()).of_seen_keys()
        self.cells = part.area()
        self.mask = magi.Mask(library, part.slices, part.total_q, part.total_k)
        self.positions, self.positions_k = positions, torch.tensor(keys, dtype=torch.int64)

    def _enqueue(self, args):
        options = magi.FlexOptions()
        needed = self.library.workspace_bytes(args, options)
        workspace = torch.empty(needed + 256, dtype=torch.uint8, device=self.device)
        if needed:
            address = workspace.data_ptr()
            options.workspace, options.workspace_size = address + -address % 256, needed
        call = self.library.enqueue(self.mask, args, options, self.stream)
        call.workspace = workspace
        return call

    def bytes_moved(self):
        """Nothing."""
        return {"forward": 0, "backward": 0}

    def close(self):
        """The mask frees itself."""
