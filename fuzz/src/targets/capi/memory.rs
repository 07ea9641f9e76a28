//! Memory that C programs of this target own: one arena behind all tensors, and structs with any `size`.

use crate::bytes::Bytes;
use magi_attn::ffi::plain::magi_tensor;
use std::ffi::c_void;
use std::ptr::null;

/// Bytes of the arena.
const ARENA: usize = 96 << 10;
/// What a struct may promise to have: a little more than any version accepts.
const STRUCT: usize = (1 << 16) + 64;
const DTYPE_BYTES: [i128; 10] = [8, 4, 2, 2, 8, 4, 2, 1, 1, 1];

/// Where all tensors of one program lie.
pub struct Arena {
    words: Vec<u64>,
    /// Where the next tensor goes that does not ask for a place.
    next: usize,
    #[expect(
        clippy::vec_box,
        reason = "arguments point to the descriptors, which must not move when the list grows"
    )]
    descriptors: Vec<Box<magi_tensor>>,
}

/// Elements that a tensor describes, and the bytes before and after its first element that they take.
fn reach(t: &magi_tensor) -> Option<(i128, i128, i128)> {
    let ndim = usize::try_from(t.ndim).ok().filter(|n| (1..=8).contains(n))?;
    let size = *DTYPE_BYTES.get(usize::try_from(t.dtype).ok()?)?;
    let (mut elements, mut low, mut high) = (1i128, 0i128, 0i128);
    for (&n, &s) in t.shape[..ndim].iter().zip(&t.stride[..ndim]) {
        elements = elements.saturating_mul(i128::from(n));
        let span = (i128::from(n) - 1).max(0) * i128::from(s);
        if span < 0 {
            low = low.saturating_sub(span);
        } else {
            high = high.saturating_add(span);
        }
    }
    Some((
        elements.saturating_mul(size),
        low.saturating_mul(size),
        high.saturating_add(1).saturating_mul(size),
    ))
}

impl Arena {
    /// All elements are small numbers in every dtype.
    pub fn new() -> Arena {
        Arena {
            words: vec![0x3c00_3c00_3c00_3c00; ARENA / 8],
            next: 0,
            descriptors: Vec::new(),
        }
    }

    /// A descriptor that somebody meant to have `shape` and `dtype`, with what went wrong in it; NULL now and then. What
    /// it describes lies in the arena: where it does not fit, data is NULL.
    pub fn tensor(&mut self, b: &mut Bytes, dtype: i32, shape: &[i64]) -> *const magi_tensor {
        let mut t = magi_tensor {
            data: std::ptr::null_mut(),
            dtype,
            device_type: 0,
            device_index: 0,
            ndim: shape.len() as i32,
            shape: [0; 8],
            stride: [0; 8],
        };
        let how = b.u8();
        let padding = i64::from(how >> 4 == 1) * 3;
        let mut step = 1i64;
        for (i, &n) in shape.iter().enumerate().rev() {
            (t.shape[i], t.stride[i]) = (n, step);
            step = step.saturating_mul(n.max(1)).saturating_add(padding);
        }
        let mut place = None;
        match how & 15 {
            0 => return null(),
            1 => self.anything(b, &mut t),
            2 => t.stride[b.below(8)] = b.number(),
            3 => t.shape[b.below(8)] = b.number(),
            4 => t.dtype = b.small_number(),
            5 => (t.device_type, t.device_index) = (b.small_number(), b.small_number()),
            6 => t.ndim = b.small_number(),
            7 => place = Some(b.number() as usize % ARENA),
            8 => t.stride[0] = t.stride[0].wrapping_neg(),
            _ => {}
        }
        self.lay(&mut t, place, how & 15 == 9);
        self.descriptors.push(Box::new(t));
        &raw const **self.descriptors.last().unwrap()
    }

    fn anything(&mut self, b: &mut Bytes, t: &mut magi_tensor) {
        t.ndim = b.small_number() & 15;
        t.dtype = b.small_number() & 15;
        for i in 0..8 {
            (t.shape[i], t.stride[i]) = (b.number(), b.number());
        }
    }

    /// Puts the tensor somewhere in the arena, one byte off when asked to.
    fn lay(&mut self, t: &mut magi_tensor, place: Option<usize>, misaligned: bool) {
        let base = self.words.as_mut_ptr().cast::<u8>();
        let Some((bytes, low, high)) = reach(t) else {
            // Refused before anything looks at data.
            t.data = base.cast::<c_void>();
            return;
        };
        if bytes <= 0 {
            return;
        }
        if low.saturating_add(high) > ARENA as i128 - 8 || bytes > ARENA as i128 {
            return;
        }
        let need = (low + high) as usize;
        let start = match place {
            Some(at) => at.min(ARENA - 8 - need),
            None => {
                let start = if self.next + need > ARENA - 8 {
                    0
                } else {
                    self.next
                };
                self.next = (start + need).next_multiple_of(64);
                start
            }
        };
        let first = (start + low as usize).next_multiple_of(8) + usize::from(misaligned);
        if first + high as usize <= ARENA {
            t.data = base.wrapping_add(first).cast::<c_void>();
        }
    }

    /// Workspace of at most `bytes`, and how much it is; NULL and as many bytes as asked for when there is no room.
    pub fn workspace(&mut self, b: &mut Bytes, bytes: usize) -> (*mut c_void, usize) {
        let base = self.words.as_mut_ptr().cast::<u8>();
        let start =
            (base as usize + self.next).next_multiple_of(256) - base as usize + usize::from(b.u8() == 255);
        if start + bytes > ARENA {
            return (std::ptr::null_mut(), bytes);
        }
        self.next = start + bytes;
        (base.wrapping_add(start).cast::<c_void>(), bytes)
    }

    /// The next tensors go to the front again.
    pub fn rewind(&mut self) {
        (self.next, self.descriptors) = (0, Vec::new());
    }
}

/// Calls `f` with a pointer to `value`, or NULL now and then, that is followed by as many zero bytes as any `size` in it
/// may promise; `set` gets it with the size it should have.
pub fn with_struct<T: Copy, R>(
    b: &mut Bytes,
    value: impl Fn(usize) -> T,
    f: impl FnOnce(*const T) -> R,
) -> R {
    let how = b.u8();
    if how == 255 {
        return f(null());
    }
    let size = if how == 254 {
        b.number() as usize
    } else {
        size_of::<T>() + usize::from(how == 253) * 8
    };
    let mut words = vec![0u64; if how >= 253 { STRUCT } else { size_of::<T>() }.div_ceil(8)];
    let at = words.as_mut_ptr().cast::<T>();
    // SAFETY: the words hold a T, which has no stricter alignment than they.
    unsafe { at.write(value(size)) };
    if how == 253 {
        let bytes = words.as_mut_ptr().cast::<u8>();
        // SAFETY: one byte behind the T, inside the words.
        unsafe { bytes.add(size_of::<T>()).write(b.u8()) };
    }
    f(at.cast_const())
}
