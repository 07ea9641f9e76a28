//! Status codes and the error that carries one with its message.

/// What a call came to. 1xx argument, 2xx not supported, 3xx resources, 4xx CUDA, 5xx communication, 6xx timeout and abort,
/// 9xx internal.
///
/// After 1xx, 2xx and 3xx outputs are untouched, every object stays good and the call may be repeated; only
/// magi_flex_flash_attn_* may have written part of its outputs when memory runs out. After 5xx
/// (but not after a plan mismatch) and 6xx the communicator is finished: abort or destroy it and make a new one.
/// After an internal error the handle is poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// The call did what it says.
    Ok = 0,
    /// An argument has a value that the function does not accept; the message says which and what would do.
    InvalidArgument = 100,
    /// A pointer that must not be NULL is NULL.
    NullPointer = 101,
    /// A range is out of order, negative, or beyond the total.
    InvalidRange = 102,
    /// An integer that stands for an enum has no such value.
    InvalidEnum = 103,
    /// Two slices of a mask cover the same (query, key) cell.
    MaskOverlap = 104,
    /// A tensor has another shape than the call needs.
    ShapeMismatch = 105,
    /// A tensor has another dtype than the call needs.
    DtypeMismatch = 106,
    /// A tensor has a stride that the call cannot use.
    InvalidStride = 107,
    /// A tensor lies on another device than the communicator or mask works on.
    DeviceMismatch = 108,
    /// A caller's buffer is too small; the needed size is in the size argument.
    BufferTooSmall = 109,
    /// An output overlaps an input or another output in memory.
    TensorOverlap = 110,
    /// The `size` field of a struct is not one this library knows, or unknown trailing bytes are not zero.
    StructSize = 111,
    /// An environment variable has a value that does not parse.
    InvalidEnvironment = 112,
    /// A second call was made on a handle, or on its communicator, while one was running.
    HandleBusy = 113,
    /// The communicator of this key was destroyed.
    CommDestroyed = 114,
    /// A combination that this build cannot run; the message holds every reason.
    NotSupported = 200,
    /// The process was forked after the library was used; make a fresh process instead.
    Forked = 201,
    /// Memory could not be had.
    OutOfMemory = 300,
    /// The operating system refused a thread or another resource.
    ResourceExhausted = 301,
    /// There is no CUDA device, or no driver for it; the message says what was looked for.
    NoDevice = 400,
    /// The CUDA driver refused a call or a kernel failed; the message names the call and the driver's error.
    CudaFailed = 401,
    /// A kernel could not be compiled: no compiler was found, or it refused; the message holds what it said.
    CompileFailed = 402,
    /// A peer failed, or a message was not what the plan says; the communicator is finished.
    CommFailed = 500,
    /// Ranks disagree on the plan or on the order of calls. Nothing was moved and the communicator stays good.
    PlanMismatch = 501,
    /// A peer did not arrive within the communicator's timeout; the communicator is finished.
    Timeout = 600,
    /// The communicator was aborted.
    Aborted = 601,
    /// A defect of this library; the handle is poisoned and its communicator aborted.
    Internal = 900,
    /// The handle was poisoned by an earlier internal error; only `destroy` works on it.
    Poisoned = 901,
}

impl Status {
    /// Every status there is.
    pub const ALL: [Status; 29] = {
        use Status::*;
        [
            Ok,
            InvalidArgument,
            NullPointer,
            InvalidRange,
            InvalidEnum,
            MaskOverlap,
            ShapeMismatch,
            DtypeMismatch,
            InvalidStride,
            DeviceMismatch,
            BufferTooSmall,
            TensorOverlap,
            StructSize,
            InvalidEnvironment,
            HandleBusy,
            CommDestroyed,
            NotSupported,
            Forked,
            OutOfMemory,
            ResourceExhausted,
            NoDevice,
            CudaFailed,
            CompileFailed,
            CommFailed,
            PlanMismatch,
            Timeout,
            Aborted,
            Internal,
            Poisoned,
        ]
    };

    /// The status numbered `code`.
    pub fn from_i32(code: i32) -> Option<Status> {
        Self::ALL.into_iter().find(|&s| s as i32 == code)
    }

    /// A few words, as a C string that lives forever.
    pub const fn text(self) -> &'static std::ffi::CStr {
        match self {
            Status::Ok => c"ok",
            Status::InvalidArgument => c"invalid argument",
            Status::NullPointer => c"null pointer",
            Status::InvalidRange => c"invalid range",
            Status::InvalidEnum => c"invalid enum value",
            Status::MaskOverlap => c"mask slices overlap",
            Status::ShapeMismatch => c"shape mismatch",
            Status::DtypeMismatch => c"dtype mismatch",
            Status::InvalidStride => c"invalid stride",
            Status::DeviceMismatch => c"device mismatch",
            Status::BufferTooSmall => c"buffer too small",
            Status::TensorOverlap => c"tensors overlap",
            Status::StructSize => c"struct size not known",
            Status::InvalidEnvironment => c"invalid environment variable",
            Status::HandleBusy => c"handle is busy",
            Status::CommDestroyed => c"communicator was destroyed",
            Status::NotSupported => c"not supported",
            Status::Forked => c"process was forked after first use",
            Status::OutOfMemory => c"out of memory",
            Status::ResourceExhausted => c"resource exhausted",
            Status::NoDevice => c"no CUDA device",
            Status::CudaFailed => c"CUDA failed",
            Status::CompileFailed => c"kernel could not be compiled",
            Status::CommFailed => c"communication failed",
            Status::PlanMismatch => c"ranks disagree on the plan",
            Status::Timeout => c"timeout",
            Status::Aborted => c"communicator was aborted",
            Status::Internal => c"internal error",
            Status::Poisoned => c"handle was poisoned by an earlier internal error",
        }
    }
}

/// A status with the sentence that names function, parameter, value and what would have been accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The code that crosses the C boundary. Never `Status::Ok`.
    pub status: Status,
    /// For people.
    pub message: String,
}

/// The result of everything fallible in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `status` that says `message`.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        debug_assert!(status != Status::Ok);
        Self {
            status,
            message: message.into(),
        }
    }

    /// `Status::InvalidArgument`, the most common of them.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// `Status::InvalidRange`.
    pub fn range(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidRange, message)
    }

    /// `Status::Internal`: a state that the code rules out was met.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Status::Internal, message)
    }
}
