//! Status codes and the error that carries one with its message.

/// What a call came to. The numbers are part of the ABI: 1xx argument, 2xx not supported, 3xx resources,
/// 5xx communication, 6xx timeout and abort, 9xx internal.
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
    /// A second call was made on a handle while one was running.
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
    /// A peer failed, or a message was not what the plan says; the communicator is finished.
    CommFailed = 500,
    /// Ranks disagree on the plan or on the order of calls.
    PlanMismatch = 501,
    /// A peer did not arrive within the communicator's timeout; the communicator is finished.
    Timeout = 600,
    /// The communicator was aborted.
    Aborted = 601,
    /// A defect of this library; the handle is poisoned.
    Internal = 900,
    /// The handle was poisoned by an earlier internal error; only `destroy` works on it.
    Poisoned = 901,
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
