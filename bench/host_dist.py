"""Rows on local ranks, threads of this process in host memory, against sums in plain Python. For small shapes."""
import ctypes as C
import math

import magi
import ranks
from host import DTYPES, HostRow, HostTensor

# Names of a row's tensors, and the side whose tokens are their rows.
SIDES = {"q": ranks.SIDE_Q, "k": ranks.SIDE_K, "v": ranks.SIDE_K, "out": ranks.SIDE_Q, "lse": ranks.SIDE_Q}
GRADIENTS = {"dout": ranks.SIDE_Q, "dq": ranks.SIDE_Q, "dk": ranks.SIDE_K, "dv": ranks.SIDE_K}
INPUTS = ("q", "k", "v", "dout")


class LocalRow:
    """A row's tensors as host.HostRow has them, computed by `world` ranks."""

    def __init__(self, library, row, seed, world, settings):
        self.library, self.row, self.world, self.settings = library, row, world, settings
        self.data = HostRow(library, row, seed)
        self.sides = {**SIDES, **(GRADIENTS if row.backward else {})}
        # By rank, with the setting `profile`: forward's stages, the trace and the drawing.
        self.measured = {}

    def run(self):
        """Dispatches, computes and undispatches on every rank; raises what the first rank that failed raised."""
        comms = ranks.Comm.local(self.library, self.world)
        failed = [None] * self.world

        def work(rank):
            try:
                self._rank(comms[rank], rank)
            # Whatever it is, ranks that wait for this one must be woken.
            except Exception as error:
                failed[rank] = error
                comms[rank].abort(str(error))

        ranks.on_threads(comms, work)
        for error in sorted((e for e in failed if e), key=lambda e: "aborted" in str(e)):
            raise error

    def _rank(self, comm, rank):
        shape = ranks.shape_of(self.row, DTYPES[self.row.dtype][1])
        key = ranks.Key(comm, self.data.mask, shape, ranks.config_of(self.library, self.settings))
        key.prepare()
        tokens = [len(key.positions(side)) for side in (ranks.SIDE_Q, ranks.SIDE_K)]
        local = {name: self._like(name, tokens[side]) for name, side in self.sides.items()}
        for name in INPUTS:
            if name in local:
                key.dispatch(self.sides[name], getattr(self.data, name).magi, local[name].magi)
        at = {name: C.pointer(tensor.magi) for name, tensor in local.items()}
        key.enqueue(magi.ForwardArgs(**{name: at[name] for name in SIDES}))()
        if self.row.backward:
            key.enqueue(magi.BackwardArgs(**at))()
        for name, side in self.sides.items():
            if name not in INPUTS:
                whole = getattr(self.data, name)
                whole = whole if rank == 0 else self._like(name, whole.shape[0])
                key.undispatch(side, local[name].magi, whole.magi)
        if rank == 0:
            self.plan = key.describe(self.world, self.row.backward)
        if self.settings.get("profile"):
            self.measured[rank] = key.stage_times(ranks.FORWARD), key.trace(), key.draw_profile()
        key.close()

    def _like(self, name, tokens):
        """A tensor of NaN like one of the row, with another number of tokens."""
        like = getattr(self.data, name)
        dtype = next(name for name, (kind, _, _) in DTYPES.items() if kind == like.kind)
        return HostTensor(dtype, (tokens, *like.shape[1:]), lambda: math.nan)
