"""Group collectives through ctypes: rows that go from every rank to every other at once."""
import ctypes as C

import magi


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


class AllToAll:
    """A magi_group_plan of one rank among `world`: `runs` runs of `rows` rows go to each of the others, and as many come from each.
    `close` frees it, before the communicator."""

    def __init__(self, comm, rank, world, rows, row_elements, dtype, runs=1):
        self.library, self.handle = comm.library, C.c_void_p()
        pointer, tensors = C.c_void_p, C.POINTER(magi.Tensor)
        for name, arguments in {
            "plan_create": [pointer, C.POINTER(GroupArgs), pointer, C.POINTER(pointer)],
            "plan_prepare": [pointer, pointer],
            "cast": [pointer, tensors, tensors, C.c_size_t, pointer],
        }.items():
            self.library._declare(f"magi_group_{name}", arguments)
        self.library._declare("magi_group_plan_destroy", [pointer], None)
        # A row between two runs stays where it is.
        step = rows + (runs > 1)
        self.rows = step * runs * (world - 1)
        others = [peer for peer in range(world) if peer != rank for _ in range(runs)]
        pieces = (Piece * len(others))(*(Piece(magi.Range(i * step, i * step + rows), peer, 0) for i, peer in enumerate(others)))
        kinds = (GroupTensor * len(row_elements))(*(GroupTensor(n, dtype, 0) for n in row_elements))
        args = GroupArgs(
            local_rows=self.rows,
            received_rows=self.rows,
            sends=pieces,
            n_sends=len(pieces),
            receives=pieces,
            n_receives=len(pieces),
            tensors=kinds,
            n_tensors=len(kinds),
        )
        self._call("plan_create", comm.handle, C.byref(args), None, C.byref(self.handle))

    def _call(self, name, *arguments):
        self.library.check(getattr(self.library.c, f"magi_group_{name}")(*arguments))

    def prepare(self, stream=None):
        """Compares over ranks. Collective."""
        self._call("plan_prepare", self.handle, stream)

    def enqueue(self, local, received, stream=None):
        """A function without arguments that moves `local`, a list of magi.Tensor, into `received`. Collective."""
        count = len(local)
        sent, taken = (magi.Tensor * count)(*local), (magi.Tensor * count)(*received)
        stream = C.c_void_p(stream)
        return lambda: self._call("cast", self.handle, sent, taken, count, stream)

    def close(self):
        """Frees the handle."""
        if self.handle:
            self.library.c.magi_group_plan_destroy(self.handle)
            self.handle = None
