"""Communicators, keys and what plans say of themselves, through ctypes: what magi.py is for one device."""
import copy
import ctypes as C
import threading

import magi

FORWARD, BACKWARD = 0, 1
SIDE_Q, SIDE_K = 0, 1


class UniqueId(C.Structure):
    """magi_unique_id"""

    _fields_ = [("bytes", C.c_uint8 * 256)]


class NcclConfig(magi.Sized):
    """magi_nccl_config"""

    _fields_ = [
        ("size", C.c_size_t),
        ("timeout_ms", C.c_int64),
        ("min_ctas", C.c_int32),
        ("max_ctas", C.c_int32),
        ("port", C.c_int32),
        ("abort_adopted", C.c_int32),
    ]


class AttnShape(magi.Sized):
    """magi_attn_shape"""

    _fields_ = [
        ("size", C.c_size_t),
        ("heads_q", C.c_int64),
        ("heads_kv", C.c_int64),
        ("head_dim", C.c_int64),
        ("head_dim_v", C.c_int64),
        ("dtype", C.c_int32),
        ("reserved", C.c_int32),
    ]


class Config(magi.Sized):
    """magi_config"""

    _fields_ = [
        ("size", C.c_size_t),
        *((name, C.c_int64) for name in ("chunk_size", "min_chunks_per_rank", "cache_size", "balance_slack", "top_percent")),
        ("forward_gflops", C.c_int64 * 3),
        ("backward_gflops", C.c_int64 * 3),
        *((name, C.c_int64) for name in ("link_mb_per_s", "link_latency_ns", "kernel_latency_ns")),
        *((name, C.c_int32) for name in ("placement", "effort", "degree_forward", "degree_backward")),
        *((name, C.c_int32) for name in ("bwd_hide_tail_reduce", "dsink_reduce")),
        *((name, C.c_int32) for name in ("backward_high_precision_reduce", "hierarchical_comm", "qo_comm")),
        *((name, C.c_int32) for name in ("forward_high_precision_reduce", "sanity_check", "backend", "deterministic")),
        *((name, C.c_int32) for name in ("forward_sm_margin", "backward_sm_margin", "profile")),
        *((name, C.c_void_p) for name in ("alloc", "free", "userdata")),
    ]


class Stats(magi.Sized):
    """A struct of figures."""

    def figures(self):
        """The fields as a dictionary."""
        return {name: getattr(self, name) for name, _ in self._fields_ if name != "size"}


class KeyStats(Stats):
    """magi_key_stats"""

    _fields_ = [
        ("size", C.c_size_t),
        ("area", C.c_int64),
        ("area_max", C.c_int64),
        ("balance", C.c_double),
        ("balance_bound", C.c_double),
        *((name, C.c_int64) for name in ("tokens_moved", "tokens_all_gather", "tokens_received_max", "tokens_sent_max", "chunk_size")),
        *((name, C.c_int64) for name in ("queries_moved", "bytes_keys", "bytes_queries", "bytes_outputs", "bytes_forward", "bytes_backward")),
        *((name, C.c_int64) for name in ("bytes_forward_keys_only", "bytes_backward_keys_only", "stages_forward", "stages_backward")),
        *((name, C.c_int64) for name in ("forward_ns", "backward_ns", "tokens_inter_host", "tokens_intra_host")),
    ]


class RankStats(Stats):
    """magi_rank_stats"""

    _fields_ = [
        ("size", C.c_size_t),
        *((name, C.c_int64) for name in ("area", "tokens_q", "tokens_k", "tokens_sent", "tokens_received", "queries_sent")),
        *((name, C.c_int64) for name in ("queries_received", "bytes_sent", "bytes_received", "forward_ns", "backward_ns")),
        *((name, C.c_int64) for name in ("forward_wait_ns", "backward_wait_ns", "tokens_sent_inter_host", "tokens_sent_intra_host")),
        *((name, C.c_int64) for name in ("tokens_received_inter_host", "tokens_received_intra_host")),
    ]


class StageStats(Stats):
    """magi_stage_stats"""

    _fields_ = [
        ("size", C.c_size_t),
        *((name, C.c_int64) for name in ("area", "tokens_received", "tokens_sent", "fetch_start_ns", "fetch_end_ns")),
        *((name, C.c_int64) for name in ("compute_start_ns", "compute_end_ns", "reduce_start_ns", "reduce_end_ns", "wait_ns")),
        *((name, C.c_int64) for name in ("queries_received", "queries_sent")),
    ]


class StageTimes(Stats):
    """magi_stage_times"""

    _fields_ = [
        ("size", C.c_size_t),
        *((name, C.c_int64) for name in ("fetch_start_ns", "fetch_end_ns", "compute_start_ns", "compute_end_ns", "reduce_start_ns")),
        *((name, C.c_int64) for name in ("reduce_end_ns", "fetch_wait_ns", "reduce_wait_ns", "pass_ns")),
    ]


def exposed(stages):
    """The share of a measured pass in which communication kept its kernels waiting."""
    waits = sum(stage["fetch_wait_ns"] + stage["reduce_wait_ns"] for stage in stages)
    return waits / max(1, stages[0]["pass_ns"])


def on_threads(comms, work):
    """Calls `work(rank)` on a thread for each rank, waits for all, and closes their communicators."""
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(comms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for comm in comms:
        comm.close()


# C name of each struct above, for the test that compares layouts.
STRUCTS = {
    "magi_unique_id": UniqueId,
    "magi_nccl_config": NcclConfig,
    "magi_attn_shape": AttnShape,
    "magi_config": Config,
    "magi_key_stats": KeyStats,
    "magi_rank_stats": RankStats,
    "magi_stage_stats": StageStats,
    "magi_stage_times": StageTimes,
}


def declare(library):
    """Tells ctypes the arguments of the functions that this file calls."""
    pointer, tensor, i32, i64 = C.c_void_p, magi.TensorPointer, C.c_int32, C.c_int64
    place = C.POINTER(pointer)
    for name, arguments in {
        "unique_id_create": [C.POINTER(UniqueId)],
        "comm_create_nccl": [C.POINTER(UniqueId), i32, i32, i32, C.POINTER(NcclConfig), place],
        "comm_create_from_env": [C.POINTER(NcclConfig), place],
        "comm_create_local": [i32, place],
        "config_init": [C.POINTER(Config), C.c_size_t],
        "key_create": [pointer, pointer, C.POINTER(AttnShape), C.POINTER(Config), place],
        "key_create_for_new_mask": [pointer, pointer, C.POINTER(AttnShape), C.POINTER(Config), place],
        "key_prepare": [pointer, pointer],
        "key_local_tokens": [pointer, i32, C.POINTER(i64)],
        "key_position_ids": [pointer, i32, C.POINTER(i64), C.POINTER(C.c_size_t)],
        "key_get_stats": [pointer, C.POINTER(KeyStats)],
        "key_get_rank_stats": [pointer, i32, C.POINTER(RankStats)],
        "key_get_stage_stats": [pointer, i32, i32, i32, C.POINTER(StageStats)],
        "key_get_stage_times": [pointer, i32, i32, C.POINTER(StageTimes)],
        "key_trace": [pointer, C.c_char_p, C.POINTER(C.c_size_t)],
        "key_draw_profile": [pointer, C.c_char_p, C.POINTER(C.c_size_t)],
        "key_workspace_size": [pointer, C.POINTER(C.c_size_t)],
        "dispatch": [pointer, i32, tensor, tensor, pointer],
        "undispatch": [pointer, i32, tensor, tensor, pointer],
        "calc_attn_forward": [pointer, C.POINTER(magi.ForwardArgs), pointer],
        "calc_attn_backward": [pointer, C.POINTER(magi.BackwardArgs), pointer],
    }.items():
        library._declare(f"magi_{name}", arguments)
    library._declare("magi_comm_async_error", [pointer])
    library._declare("magi_comm_set_timeout", [pointer, i64])
    library._declare("magi_comm_set_mesh", [pointer, i32, i32])
    library._declare("magi_comm_traffic", [pointer, C.POINTER(i64), C.POINTER(i64)])
    library._declare("magi_comm_abort", [pointer, C.c_char_p])
    library._declare("magi_comm_destroy", [pointer], None)
    library._declare("magi_key_destroy", [pointer], None)


def shape_of(row, dtype):
    """The magi_attn_shape of a row; `dtype` is a magi_dtype."""
    return AttnShape(heads_q=row.heads_q, heads_kv=row.heads_kv, head_dim=row.head_dim, head_dim_v=row.head_dim_v, dtype=dtype)


def config_of(library, settings):
    """The library's defaults with `settings`, a dictionary of integer fields, above them."""
    declare(library)
    config = Config()
    library.check(library.c.magi_config_init(C.byref(config), C.sizeof(config)))
    for name, value in settings.items():
        if name not in dict(Config._fields_) or name in ("size", "alloc", "free", "userdata") or name.endswith("_gflops"):
            raise KeyError(f"magi_config has no integer '{name}'")
        setattr(config, name, value)
    return config


class Comm:
    """One rank's communicator; `close` frees it."""

    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    @classmethod
    def local(cls, library, world):
        """All ranks of a communicator in this process, each to be used by a thread of its own."""
        declare(library)
        handles = (C.c_void_p * world)()
        library.check(library.c.magi_comm_create_local(world, handles))
        return [cls(library, C.c_void_p(h)) for h in handles]

    @classmethod
    def nccl(cls, library, rank, world, device, share, timeout_ms=0):
        """`share` gives rank 0's bytes to every rank: it is called with them there and with None elsewhere."""
        declare(library)
        unique = UniqueId()
        if rank == 0:
            library.check(library.c.magi_unique_id_create(C.byref(unique)))
        return cls.join(library, rank, world, device, share(bytes(unique.bytes) if rank == 0 else None), timeout_ms)

    @classmethod
    def join(cls, library, rank, world, device, unique, timeout_ms=0):
        """With everybody who has the bytes of the same id."""
        declare(library)
        unique, handle, config = UniqueId.from_buffer_copy(unique), C.c_void_p(), NcclConfig(timeout_ms=timeout_ms)
        library.check(library.c.magi_comm_create_nccl(C.byref(unique), rank, world, device, C.byref(config), C.byref(handle)))
        return cls(library, handle)

    @classmethod
    def from_env(cls, library, timeout_ms=0):
        """As torchrun, mpirun or srun started this process."""
        declare(library)
        handle, config = C.c_void_p(), NcclConfig(timeout_ms=timeout_ms)
        library.check(library.c.magi_comm_create_from_env(C.byref(config), C.byref(handle)))
        return cls(library, handle)

    def abort(self, reason):
        """Wakes every rank that waits for this one."""
        self.library.c.magi_comm_abort(self.handle, reason.encode())

    def set_timeout(self, milliseconds):
        """How long waits for other ranks last."""
        self.library.check(self.library.c.magi_comm_set_timeout(self.handle, milliseconds))

    def set_mesh(self, hosts, ranks_of_a_host):
        """How ranks lie on hosts."""
        self.library.check(self.library.c.magi_comm_set_mesh(self.handle, hosts, ranks_of_a_host))

    def traffic(self):
        """Bytes that this rank has sent and received so far."""
        sent, received = C.c_int64(), C.c_int64()
        self.library.check(self.library.c.magi_comm_traffic(self.handle, C.byref(sent), C.byref(received)))
        return sent.value, received.value

    def check(self):
        """Raises what ended the communicator, if something did."""
        self.library.check(self.library.c.magi_comm_async_error(self.handle))

    def close(self):
        """Frees the handle."""
        if self.handle:
            self.library.c.magi_comm_destroy(self.handle)
            self.handle = None


class Key:
    """A magi_key of a mask and a shape on a communicator; `close` frees it, before the communicator."""

    def __init__(self, comm, mask, shape, config):
        self.library, self.comm, self.mask = comm.library, comm, mask
        self.handle = C.c_void_p()
        self._call("key_create", comm.handle, mask.handle, C.byref(shape), C.byref(config), C.byref(self.handle))

    def for_new_mask(self, mask):
        """A key of another mask with the same totals, on this one's placement."""
        new = copy.copy(self)
        new.mask, new.handle = mask, C.c_void_p()
        self._call("key_create_for_new_mask", self.handle, mask.handle, None, None, C.byref(new.handle))
        return new

    def _call(self, name, *arguments):
        self.library.check(getattr(self.library.c, f"magi_{name}")(*arguments))

    def prepare(self, stream=None):
        """Compares plans over ranks and takes workspace. Collective."""
        self._call("key_prepare", self.handle, stream)

    def positions(self, side):
        """Global positions of this rank's tokens, ascending: a list."""
        count = C.c_size_t()
        self._call("key_position_ids", self.handle, side, None, C.byref(count))
        found = (C.c_int64 * max(1, count.value))()
        self._call("key_position_ids", self.handle, side, found, C.byref(count))
        return list(found[: count.value])

    def stats(self):
        """The plan's figures: a dictionary."""
        found = KeyStats()
        self._call("key_get_stats", self.handle, C.byref(found))
        return found.figures()

    def rank_stats(self, rank):
        """One rank's figures."""
        found = RankStats()
        self._call("key_get_rank_stats", self.handle, rank, C.byref(found))
        return found.figures()

    def stages(self, pass_, rank):
        """Figures of each stage of a rank, times as predicted."""
        found = []
        for stage in range(self.stats()["stages_backward" if pass_ == BACKWARD else "stages_forward"]):
            figures = StageStats()
            self._call("key_get_stage_stats", self.handle, pass_, rank, stage, C.byref(figures))
            found.append(figures.figures())
        return found

    def stage_times(self, pass_):
        """What each stage of the last measured call of a pass did on this rank."""
        found = []
        for stage in range(self.stats()["stages_backward" if pass_ == BACKWARD else "stages_forward"]):
            times = StageTimes()
            self._call("key_get_stage_times", self.handle, pass_, stage, C.byref(times))
            found.append(times.figures())
        return found

    def _text(self, name):
        size = C.c_size_t()
        self._call(name, self.handle, None, C.byref(size))
        text = C.create_string_buffer(size.value)
        self._call(name, self.handle, text, C.byref(size))
        return text.value.decode()

    def trace(self):
        """The last measured calls in the trace event format."""
        return self._text("key_trace")

    def draw_profile(self):
        """The last measured calls above their prediction, as SVG."""
        return self._text("key_draw_profile")

    def workspace_bytes(self):
        """Bytes that calls on this key use."""
        found = C.c_size_t()
        self._call("key_workspace_size", self.handle, C.byref(found))
        return found.value

    def describe(self, world, backward):
        """A result file's words on the plan of one pass: figures over all ranks, and stages of the rank predicted to be the slowest."""
        kind, pass_ = ("backward", BACKWARD) if backward else ("forward", FORWARD)
        stats, of_ranks = self.stats(), [self.rank_stats(rank) for rank in range(world)]
        slowest = max(range(world), key=lambda rank: of_ranks[rank][f"{kind}_ns"])
        chosen = ("balance", "balance_bound", "chunk_size", "tokens_moved", "tokens_all_gather", "tokens_received_max")
        return {
            **{name: stats[name] for name in chosen},
            "bytes_moved": stats[f"bytes_{kind}"],
            "workspace_bytes": self.workspace_bytes(),
            "predicted_ms": stats[f"{kind}_ns"] / 1e6,
            "predicted_wait_ms": of_ranks[slowest][f"{kind}_wait_ns"] / 1e6,
            "slowest_rank": slowest,
            "predicted_stages": self.stages(pass_, slowest),
        }

    def dispatch(self, side, whole, local, stream=None):
        """Picks this rank's rows of `whole`, a magi.Tensor, into `local`."""
        self._call("dispatch", self.handle, side, C.byref(whole), C.byref(local), stream)

    def undispatch(self, side, local, whole, stream=None):
        """Gathers every rank's rows into `whole`. Collective."""
        self._call("undispatch", self.handle, side, C.byref(local), C.byref(whole), stream)

    def enqueue(self, args, stream=None):
        """A function without arguments that computes the pass of `args`, as magi.Library.enqueue makes one. Collective."""
        kind = "forward" if isinstance(args, magi.ForwardArgs) else "backward"
        function, check = getattr(self.library.c, f"magi_calc_attn_{kind}"), self.library.check
        handle, args_at, stream = self.handle, C.byref(args), C.c_void_p(stream)

        def call():
            status = function(handle, args_at, stream)
            if status:
                check(status)

        call.keep = args
        return call

    def close(self):
        """Frees the handle."""
        if self.handle:
            self.library.c.magi_key_destroy(self.handle)
            self.handle = None
