//! From what C hands over to checked values.

use crate::ffi::plain::magi_tensor;
use crate::types::{DType, Device, Error, MAX_DIMS, Result, Side, Status, Tensor};

/// What an optional reference points to, or `Status::NullPointer` naming `param`.
pub(super) fn non_null<'a, T: ?Sized>(param: &str, value: Option<&'a T>) -> Result<&'a T> {
    value.ok_or_else(|| null(param))
}

/// `Status::NullPointer` naming `param`.
pub(super) fn null(param: &str) -> Error {
    Error::new(
        Status::NullPointer,
        format!("{param} is NULL; it must point to something"),
    )
}

/// Checks that an output pointer is not NULL before any work is done for it.
pub(super) fn check_out<T>(param: &str, out: *mut T) -> Result<()> {
    if out.is_null() { Err(null(param)) } else { Ok(()) }
}

/// Writes `value` through an output pointer.
///
/// # Safety
/// `out` must be NULL or point to memory that holds a `T`, initialised or not.
pub(super) unsafe fn write_out<T>(param: &str, out: *mut T, value: T) -> Result<()> {
    check_out(param, out)?;
    // SAFETY: not NULL, and the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

/// The `count` elements at `data`; `data` may be NULL when there are none.
///
/// # Safety
/// `data` must be NULL or point to `count` initialised elements that stay unchanged while the result is used.
pub(super) unsafe fn array<'a, T>(param: &str, data: *const T, count: usize) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(null(param));
    }
    if !data.is_aligned() {
        return Err(Error::argument(format!(
            "{param} is {data:p}, which is not aligned to its elements' {} bytes",
            align_of::<T>()
        )));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Error::argument(format!(
            "{param} has {count} elements, more than memory can hold"
        )));
    }
    // SAFETY: not NULL, aligned, not larger than an object can be, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, count) })
}

/// Reads a struct that starts with its size. Trailing bytes that this version does not know must be zero.
///
/// # Safety
/// `data` must be NULL or point to as many initialised bytes as its first `size_t` says, and at least to that.
pub(super) unsafe fn sized<T: Copy>(param: &str, data: *const T) -> Result<T> {
    /// No struct of any version comes near; a larger number is an uninitialised field.
    const MOST: usize = 1 << 16;
    if data.is_null() {
        return Err(null(param));
    }
    // SAFETY: not NULL, and every such struct starts with a size_t.
    let size = unsafe { data.cast::<usize>().read_unaligned() };
    let want = size_of::<T>();
    if !(want..=MOST).contains(&size) {
        let message = format!("{param}.size is {size}; it must be {want} (the size of the struct)");
        return Err(Error::new(Status::StructSize, message));
    }
    // SAFETY: the struct promises `size` bytes.
    let tail = unsafe { std::slice::from_raw_parts(data.cast::<u8>().add(want), size - want) };
    if tail.iter().any(|&b| b != 0) {
        let message = format!(
            "{param}.size is {size} and bytes beyond {want} are set: a field this version does not know"
        );
        return Err(Error::new(Status::StructSize, message));
    }
    // SAFETY: not NULL and large enough; C structs of plain fields are valid for any bytes, which `T: Copy` of this
    // module's structs are.
    Ok(unsafe { data.read_unaligned() })
}

/// The device that a magi_device_type and an index name; `of` is what stands before the names in messages.
pub(super) fn device(of: &str, device_type: i32, index: i32) -> Result<Device> {
    match device_type {
        0 => Ok(Device::Cpu),
        1 => Ok(Device::Cuda(index)),
        other => {
            let message = format!("{of}device_type is {other}; it must be 0 (cpu) or 1 (cuda)");
            Err(Error::new(Status::InvalidEnum, message))
        }
    }
}

/// Checks a descriptor and makes a tensor of it.
///
/// # Safety
/// `data` must be NULL or point to a descriptor; its tensor must satisfy the promise of `Tensor`.
pub(super) unsafe fn tensor(param: &str, data: *const magi_tensor) -> Result<Tensor> {
    if data.is_null() {
        return Err(null(param));
    }
    // SAFETY: not NULL, and the caller's promise.
    let t = unsafe { data.read_unaligned() };
    let named = |e: Error| Error::new(e.status, format!("{param}.{}", e.message));
    let dtype = DType::from_i32(t.dtype).map_err(named)?;
    let device = device(&format!("{param}."), t.device_type, t.device_index)?;
    let ndim = usize::try_from(t.ndim)
        .ok()
        .filter(|n| (1..=MAX_DIMS).contains(n))
        .ok_or_else(|| {
            Error::new(
                Status::ShapeMismatch,
                format!("{param}.ndim is {}; it must be 1 to {MAX_DIMS}", t.ndim),
            )
        })?;
    check_extent(param, &t, ndim, dtype)?;
    let stride = settled_strides(&t.shape[..ndim], &t.stride[..ndim]);
    // SAFETY: passed on from the caller; the extent was checked to fit the address space.
    Ok(unsafe { Tensor::from_raw(t.data.cast(), dtype, device, &t.shape[..ndim], &stride[..ndim]) })
}

/// Strides with those of a dense tensor in dimensions along which nobody can move, where any number may stand: offsets
/// that are computed from them must not overflow. The last stride stays, because it has to be right.
fn settled_strides(shape: &[i64], given: &[i64]) -> [i64; MAX_DIMS] {
    let mut stride = [1; MAX_DIMS];
    stride[..given.len()].copy_from_slice(given);
    let (empty, mut step) = (shape.contains(&0), 1);
    for i in (0..shape.len() - 1).rev() {
        step *= shape[i + 1].max(1);
        if empty || shape[i] == 1 {
            stride[i] = step;
        }
    }
    stride
}

/// Negative extents, spans beyond the address space, NULL data and misaligned data are refused here.
fn check_extent(param: &str, t: &magi_tensor, ndim: usize, dtype: DType) -> Result<()> {
    let (mut elements, mut low, mut high) = (1i128, 0i128, 0i128);
    // Bytes of the tensor if it were dense and no extent 0: products of extents stay below.
    let mut bytes = dtype.size() as i128;
    for (i, (&n, &s)) in t.shape[..ndim].iter().zip(&t.stride[..ndim]).enumerate() {
        if n < 0 {
            let message = format!("{param}.shape[{i}] is {n}; it must be 0 or more");
            return Err(Error::new(Status::ShapeMismatch, message));
        }
        elements = elements.saturating_mul(i128::from(n));
        bytes = bytes.saturating_mul(i128::from(n.max(1)));
        let reach = i128::from((n - 1).max(0)) * i128::from(s);
        if reach < 0 { low += reach } else { high += reach }
    }
    let too_large = || {
        let what = format!(
            "{param} has shape {:?} and stride {:?}",
            &t.shape[..ndim],
            &t.stride[..ndim]
        );
        Error::new(
            Status::InvalidStride,
            format!("{what}, which do not fit the address space"),
        )
    };
    if bytes > isize::MAX as i128 {
        return Err(too_large());
    }
    if elements == 0 {
        return Ok(());
    }
    if t.data.is_null() {
        return Err(Error::new(
            Status::NullPointer,
            format!("{param}.data is NULL though the tensor has elements"),
        ));
    }
    let size = dtype.size();
    if !(t.data as usize).is_multiple_of(size) {
        return Err(Error::argument(format!(
            "{param}.data is not aligned to its element of {size} bytes"
        )));
    }
    let base = t.data as usize as i128;
    let (first, last) = (base + low * size as i128, base + (high + 1) * size as i128);
    if first <= 0 || last > isize::MAX as i128 {
        return Err(too_large());
    }
    Ok(())
}

/// As `tensor`, where NULL means that there is none.
///
/// # Safety
/// As `tensor`.
pub(super) unsafe fn optional_tensor(param: &str, data: *const magi_tensor) -> Result<Option<Tensor>> {
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { tensor(param, data) }.map(Some)
}

/// A magi_side.
pub(super) fn side(value: i32) -> Result<Side> {
    match value {
        0 => Ok(Side::Q),
        1 => Ok(Side::K),
        _ => Err(Error::new(
            Status::InvalidEnum,
            format!("side is {value}; it must be 0 (q) or 1 (k)"),
        )),
    }
}

/// A number below `count`, which is at least 1.
pub(super) fn index(param: &str, value: i32, count: usize) -> Result<usize> {
    let index = usize::try_from(value).ok().filter(|&i| i < count);
    index.ok_or_else(|| Error::argument(format!("{param} is {value}; it must be 0 to {}", count - 1)))
}

/// A flag: 0 or 1.
pub(super) fn flag(param: &str, value: i32) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::argument(format!("{param} is {value}; it must be 0 or 1"))),
    }
}

/// Fills a caller's buffer with `items`, of which there are `len`: `count` goes in as capacity and comes out as `len`. A
/// NULL buffer asks for the number.
///
/// # Safety
/// `count` must be NULL or valid; `buffer` must be NULL or have room for `*count` elements.
pub(super) unsafe fn fill_array<T: Copy>(
    param: &str,
    len: usize,
    items: impl Iterator<Item = T>,
    buffer: *mut T,
    count: *mut usize,
) -> Result<()> {
    check_out("count", count)?;
    // SAFETY: not NULL, and the caller's promise.
    let room = unsafe { count.read() };
    // SAFETY: as above.
    unsafe { count.write(len) };
    if buffer.is_null() {
        return Ok(());
    }
    if room < len {
        let message = format!("{param} has room for {room} elements; {len} are needed");
        return Err(Error::new(Status::BufferTooSmall, message));
    }
    for (i, item) in items.take(len).enumerate() {
        // SAFETY: the buffer has room for `room` elements by the caller's promise, and `len` is not more.
        unsafe { buffer.add(i).write(item) };
    }
    Ok(())
}

/// As `fill_array`, with a string and the zero byte that ends it; `size` counts both.
///
/// # Safety
/// `size` must be NULL or valid; `buffer` must be NULL or have room for `*size` bytes.
pub(super) unsafe fn fill_text(
    param: &str,
    text: String,
    buffer: *mut std::ffi::c_char,
    size: *mut usize,
) -> Result<()> {
    check_out("size", size)?;
    let mut bytes = text.into_bytes();
    bytes.push(0);
    // SAFETY: the caller's promise; a char is a byte.
    unsafe { fill_array(param, bytes.len(), bytes.into_iter(), buffer.cast::<u8>(), size) }
}
