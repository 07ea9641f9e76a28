"""The part of the C ABI that benchmarks need, through ctypes. Nothing is imported beyond the standard library.

Structs repeat include/magi_attn.h field by field; test_bench.py compiles a program that compares sizes and offsets.
"""
import ctypes as C
import os

F64, F32, BF16, F16, I32 = 0, 1, 2, 3, 5
DEFAULT, FFA, SDPA = 0, 1, 2
NOT_SUPPORTED = 200
CPU, CUDA = 0, 1
FULL, CAUSAL, INV_CAUSAL, BI_CAUSAL = 0, 1, 2, 3
MASK_TYPES = {"full": FULL, "causal": CAUSAL, "inv_causal": INV_CAUSAL, "bi_causal": BI_CAUSAL}
BYTES = {F64: 8, F32: 4, BF16: 2, F16: 2, I32: 4}


class Tensor(C.Structure):
    """magi_tensor"""

    _fields_ = [
        ("data", C.c_void_p),
        ("dtype", C.c_int32),
        ("device_type", C.c_int32),
        ("device_index", C.c_int32),
        ("ndim", C.c_int32),
        ("shape", C.c_int64 * 8),
        ("stride", C.c_int64 * 8),
    ]


class Range(C.Structure):
    """magi_range"""

    _fields_ = [("start", C.c_int64), ("end", C.c_int64)]


class Slice(C.Structure):
    """magi_slice"""

    _fields_ = [("q", Range), ("k", Range), ("mask_type", C.c_int32), ("reserved", C.c_int32)]


TensorPointer = C.POINTER(Tensor)


class Sized(C.Structure):
    """A struct that begins with its own size, as the library's defaults (*_INIT) have it."""

    def __init__(self, **fields):
        super().__init__(**fields)
        self.size = C.sizeof(self)


class ForwardArgs(Sized):
    """magi_forward_args"""

    _fields_ = [
        ("size", C.c_size_t),
        ("q", TensorPointer),
        ("k", TensorPointer),
        ("v", TensorPointer),
        ("sink", TensorPointer),
        ("softmax_scale", C.c_double),
        ("softcap", C.c_double),
        ("out", TensorPointer),
        ("lse", TensorPointer),
        ("max_logits", TensorPointer),
    ]


class BackwardArgs(Sized):
    """magi_backward_args"""

    _fields_ = [
        ("size", C.c_size_t),
        ("q", TensorPointer),
        ("k", TensorPointer),
        ("v", TensorPointer),
        ("sink", TensorPointer),
        ("out", TensorPointer),
        ("lse", TensorPointer),
        ("dout", TensorPointer),
        ("softmax_scale", C.c_double),
        ("softcap", C.c_double),
        ("dq", TensorPointer),
        ("dk", TensorPointer),
        ("dv", TensorPointer),
        ("dsink", TensorPointer),
        ("flags", C.c_uint32),
        ("reserved", C.c_uint32),
    ]


class FlexOptions(Sized):
    """magi_flex_options"""

    _fields_ = [
        ("size", C.c_size_t),
        ("q_ranges", TensorPointer),
        ("k_ranges", TensorPointer),
        ("mask_types", TensorPointer),
        ("workspace", C.c_void_p),
        ("workspace_size", C.c_size_t),
        ("backend", C.c_int32),
        ("deterministic", C.c_int32),
        ("sm_margin", C.c_int32),
        ("accumulate", C.c_int32),
        ("max_items", C.c_int64),
    ]


# C name of each struct above, for the test that compares layouts.
STRUCTS = {
    "magi_tensor": Tensor,
    "magi_range": Range,
    "magi_slice": Slice,
    "magi_forward_args": ForwardArgs,
    "magi_backward_args": BackwardArgs,
    "magi_flex_options": FlexOptions,
}


class Error(RuntimeError):
    """A call that did not return MAGI_STATUS_OK; the text is the library's message."""

    def __init__(self, status, message):
        super().__init__(f"status {status}: {message}")
        self.status = status


def tensor(data, dtype, shape, stride=None, device_type=CPU, device_index=0):
    """A magi_tensor over the address `data`; `stride` in elements, row-major where it is None."""
    if stride is None:
        stride = [1] * len(shape)
        for i in reversed(range(len(shape) - 1)):
            stride[i] = stride[i + 1] * shape[i + 1]
    result = Tensor(data, dtype, device_type, device_index, len(shape))
    for i, (extent, step) in enumerate(zip(shape, stride)):
        result.shape[i], result.stride[i] = extent, step
    return result


def library_path():
    """Where the library of this checkout, or of a staged folder, is; None if it was not built."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for folder in ("lib", "build/lib", "target/release"):
        path = os.path.join(root, folder, "libmagi_attn.so")
        if os.path.exists(path):
            return path
    return None


class Library:
    """A loaded libmagi_attn.so. Methods raise Error where the C function returns another status than OK."""

    def __init__(self, path=None):
        path = path or library_path()
        if path is None:
            raise FileNotFoundError("libmagi_attn.so is neither in lib/, build/lib/ nor target/release/; name it with --library")
        self.path = path
        self.c = C.CDLL(path)
        pointer, size = C.c_void_p, C.POINTER(C.c_size_t)
        options = C.POINTER(FlexOptions)
        forward, backward = C.POINTER(ForwardArgs), C.POINTER(BackwardArgs)
        self._declare("magi_version_string", [], C.c_char_p)
        self._declare("magi_last_error_message", [], C.c_char_p)
        self._declare("magi_mask_create", [C.POINTER(Slice), C.c_size_t, C.c_int64, C.c_int64, C.POINTER(pointer)])
        self._declare("magi_mask_area", [pointer, C.POINTER(C.c_int64)])
        self._declare("magi_mask_destroy", [pointer], None)
        self._declare("magi_flex_flash_attn_forward", [pointer, forward, options, pointer])
        self._declare("magi_flex_flash_attn_forward_prepare", [pointer, forward, options, pointer])
        self._declare("magi_flex_flash_attn_backward", [pointer, backward, options, pointer])
        self._declare("magi_flex_flash_attn_backward_prepare", [pointer, backward, options, pointer])
        self._declare("magi_flex_flash_attn_forward_workspace_size", [forward, options, size])
        self._declare("magi_flex_flash_attn_backward_workspace_size", [backward, options, size])
        self.version = self.c.magi_version_string().decode()

    def _declare(self, name, arguments, result=C.c_int32):
        function = getattr(self.c, name)
        function.argtypes, function.restype = arguments, result

    def check(self, status):
        """Raises Error with the library's message unless `status` is OK."""
        if status != 0:
            raise Error(status, self.c.magi_last_error_message().decode())

    def workspace_bytes(self, args, options):
        """Bytes of workspace that the pass of `args` needs."""
        kind = "forward" if isinstance(args, ForwardArgs) else "backward"
        needed = C.c_size_t()
        query = getattr(self.c, f"magi_flex_flash_attn_{kind}_workspace_size")
        self.check(query(C.byref(args), C.byref(options), C.byref(needed)))
        return needed.value

    def prepare(self, mask, args, options, stream=None):
        """Makes what a mask keeps on the device for such calls. May compile, allocate and wait."""
        kind = "forward" if isinstance(args, ForwardArgs) else "backward"
        function = getattr(self.c, f"magi_flex_flash_attn_{kind}_prepare")
        self.check(function(mask.handle, C.byref(args), C.byref(options), stream))

    def enqueue(self, mask, args, options, stream=None):
        """A function without arguments that makes the call; what it takes is converted here, once.

        `stream`: the handle as an integer. The caller keeps the tensors of `args` alive; everything else the function does.
        """
        kind = "forward" if isinstance(args, ForwardArgs) else "backward"
        function = getattr(self.c, f"magi_flex_flash_attn_{kind}")
        handle, args_at, options_at = mask.handle, C.byref(args), C.byref(options)
        stream, check = C.c_void_p(stream), self.check

        def call():
            status = function(handle, args_at, options_at, stream)
            if status:
                check(status)

        call.keep = (mask, args, options)
        return call


class Mask:
    """A magi_mask of slices (q0, q1, k0, k1, type)."""

    def __init__(self, library, slices, total_q, total_k):
        self.library = library
        self.handle = C.c_void_p()
        array = (Slice * max(1, len(slices)))(*(Slice(Range(a, b), Range(c, d), kind, 0) for a, b, c, d, kind in slices))
        library.check(library.c.magi_mask_create(array, len(slices), total_q, total_k, C.byref(self.handle)))

    def area(self):
        """Visible cells."""
        cells = C.c_int64()
        self.library.check(self.library.c.magi_mask_area(self.handle, C.byref(cells)))
        return cells.value

    def __del__(self):
        if getattr(self, "handle", None):
            self.library.c.magi_mask_destroy(self.handle)
            self.handle = None
