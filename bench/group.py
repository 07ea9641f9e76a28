"""Group collectives through ctypes: any lists, and rows that go from every rank to every other at once."""
import ctypes as C

import magi
import ranks


class Piece(C.Structure):
    """magi_group_piece"""

    _fields_ = [("rows", magi.Range), ("peer", C.c_int32), ("reserved", C.c_int32)]


class GroupTensor(C.Structure):
    """magi_group_tensor"""

    _fields_ = [("row_elements", C.c_int64), ("dtype", C.c_int32), ("reserved", C.c_int32)]


class GroupArgs(magi.Sized):
    """magi_group_args"""

    _fields_ = [
        ("size", C.c_size_t),
        ("local_rows", C.c_int64),
        ("received_rows", C.c_int64),
        ("sends", C.POINTER(Piece)),
        ("n_sends", C.c_size_t),
        ("receives", C.POINTER(Piece)),
        ("n_receives", C.c_size_t),
        ("tensors", C.POINTER(GroupTensor)),
        ("n_tensors", C.c_size_t),
        ("flags", C.c_uint32),
        ("reserved", C.c_uint32),
    ]


# C name of each struct above, for the test that compares layouts.
STRUCTS = {"magi_group_piece": Piece, "magi_group_tensor": GroupTensor, "magi_group_args": GroupArgs}


REDUCE, STRIDED = 1, 2
SUM, AVG, LSE = 0, 1, 2


def over_hosts(library):
    """A config with which rows go over the communicator's mesh."""
    return ranks.config_of(library, {"hierarchical_comm": 1})


class Plan:
    """A magi_group_plan of one rank: lists of (peer, first row, end) and of (row_elements, magi_dtype). `config` is a magi_config or
    None. `close` frees it, before the communicator."""

    def __init__(self, comm, local_rows, sends, received_rows, receives, tensors, flags=0, config=None):
        self.library, self.handle = comm.library, C.c_void_p()
        pointer, several = C.c_void_p, C.POINTER(magi.Tensor)
        for name, arguments in {
            "plan_create": [pointer, C.POINTER(GroupArgs), pointer, C.POINTER(pointer)],
            "plan_prepare": [pointer, pointer],
            "plan_workspace_size": [pointer, C.POINTER(C.c_size_t)],
            "cast": [pointer, several, several, C.c_size_t, pointer],
            "reduce": [pointer, C.c_int32, several, C.c_int32, several, C.c_size_t, pointer],
        }.items():
            self.library._declare(f"magi_group_{name}", arguments)
        self.library._declare("magi_group_plan_destroy", [pointer], None)
        sent, taken = ((Piece * len(list_))(*(Piece(magi.Range(a, b), peer, 0) for peer, a, b in list_)) for list_ in (sends, receives))
        kinds = (GroupTensor * len(tensors))(*(GroupTensor(n, dtype, 0) for n, dtype in tensors))
        args = GroupArgs(
            local_rows=local_rows,
            received_rows=received_rows,
            sends=sent,
            n_sends=len(sent),
            receives=taken,
            n_receives=len(taken),
            tensors=kinds,
            n_tensors=len(kinds),
            flags=flags,
        )
        self._call("plan_create", comm.handle, C.byref(args), C.byref(config) if config else None, C.byref(self.handle))

    def _call(self, name, *arguments):
        self.library.check(getattr(self.library.c, f"magi_group_{name}")(*arguments))

    def prepare(self, stream=None):
        """Compares over ranks. Collective."""
        self._call("plan_prepare", self.handle, stream)

    def workspace_bytes(self):
        """Bytes that calls on this plan use."""
        found = C.c_size_t()
        self._call("plan_workspace_size", self.handle, C.byref(found))
        return found.value

    def enqueue(self, local, received, stream=None):
        """A function without arguments that moves `local`, a list of magi.Tensor, into `received`. Collective."""
        count = len(local)
        sent, taken = (magi.Tensor * count)(*local), (magi.Tensor * count)(*received)
        stream = C.c_void_p(stream)
        return lambda: self._call("cast", self.handle, sent, taken, count, stream)

    def enqueue_reduce(self, op, partial, local, accumulate=False, stream=None):
        """The same, that brings `partial` back to `local`."""
        count = len(local)
        sent, taken = (magi.Tensor * count)(*partial), (magi.Tensor * count)(*local)
        stream = C.c_void_p(stream)
        return lambda: self._call("reduce", self.handle, op, sent, int(accumulate), taken, count, stream)

    def close(self):
        """Frees the handle."""
        if self.handle:
            self.library.c.magi_group_plan_destroy(self.handle)
            self.handle = None


class AllToAll(Plan):
    """Among `world` ranks: `runs` runs of `rows` rows go to each of the others, and as many come from each."""

    def __init__(self, comm, rank, world, rows, row_elements, dtype, runs=1, config=None):
        # A row between two runs stays where it is.
        step = rows + (runs > 1)
        self.rows = step * runs * (world - 1)
        others = [peer for peer in range(world) if peer != rank for _ in range(runs)]
        pieces = [(peer, i * step, i * step + rows) for i, peer in enumerate(others)]
        super().__init__(comm, self.rows, pieces, self.rows, pieces, [(n, dtype) for n in row_elements], config=config)
