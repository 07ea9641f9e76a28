//! The workspace arena with the system's and with the caller's allocator.

use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::c_void;

use magi_attn::device::{ALIGNMENT, Arena};
use magi_attn::types::{Allocator, Status};
use parking_lot::Mutex;

/// An allocator that keeps books.
#[derive(Default)]
struct Books {
    live: Mutex<HashMap<usize, usize>>,
    allocated: Mutex<Vec<usize>>,
    /// Frees of a pointer that is not live, or with another size than it was allocated with.
    wrong: Mutex<Vec<(usize, usize)>>,
    refuse: Mutex<bool>,
    /// Added to the pointers given out.
    offset: Mutex<usize>,
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + ALIGNMENT, ALIGNMENT).unwrap()
}

unsafe extern "C" fn allocate(bytes: usize, books: *mut c_void) -> *mut c_void {
    // SAFETY: every allocator of this file has a Books as userdata that outlives it.
    let books = unsafe { &*books.cast::<Books>() };
    books.allocated.lock().push(bytes);
    if *books.refuse.lock() {
        return std::ptr::null_mut();
    }
    // SAFETY: the size is not 0; the offset is below ALIGNMENT, by which the layout is larger.
    let pointer = unsafe { std::alloc::alloc(layout(bytes)).add(*books.offset.lock()) };
    books.live.lock().insert(pointer as usize, bytes);
    pointer.cast()
}

unsafe extern "C" fn free(pointer: *mut c_void, bytes: usize, books: *mut c_void) {
    // SAFETY: as in `allocate`.
    let books = unsafe { &*books.cast::<Books>() };
    if books.live.lock().remove(&(pointer as usize)) != Some(bytes) {
        books.wrong.lock().push((pointer as usize, bytes));
        return;
    }
    let start = pointer.cast::<u8>().wrapping_sub(*books.offset.lock());
    // SAFETY: a live pointer came from `allocate` with this size and this offset.
    unsafe { std::alloc::dealloc(start, layout(bytes)) }
}

impl Books {
    fn allocator(&self) -> Allocator {
        Allocator {
            alloc: allocate,
            free,
            userdata: std::ptr::from_ref(self).cast_mut().cast(),
        }
    }

    fn live(&self) -> usize {
        assert_eq!(*self.wrong.lock(), []);
        self.live.lock().len()
    }
}

fn fill(arena: &Arena, byte: u8) {
    // SAFETY: the arena's block is `bytes` long and nobody else uses it.
    unsafe { std::ptr::write_bytes(arena.base(), byte, arena.bytes()) };
}

#[test]
fn grows_and_never_shrinks() {
    let mut arena = Arena::new(0);
    assert!(arena.base().is_null() && arena.bytes() == 0);
    arena.reserve(0, None).unwrap();
    assert!(arena.base().is_null());
    arena.reserve(1000, None).unwrap();
    let base = arena.base();
    assert_eq!((base as usize % ALIGNMENT, arena.bytes()), (0, 1000));
    fill(&arena, 1);
    arena.reserve(10, None).unwrap();
    assert_eq!((arena.base(), arena.bytes()), (base, 1000));
    arena.reserve(1 << 20, None).unwrap();
    assert_eq!((arena.base() as usize % ALIGNMENT, arena.bytes()), (0, 1 << 20));
    fill(&arena, 2);
}

#[test]
fn every_block_goes_back_to_whoever_made_it_once() {
    let (first, second) = (Books::default(), Books::default());
    let mut arena = Arena::new(0);
    arena.reserve(100, Some(first.allocator())).unwrap();
    arena.reserve(200, Some(first.allocator())).unwrap();
    assert_eq!((first.live(), arena.bytes()), (1, 200));
    arena.reserve(300, Some(second.allocator())).unwrap();
    assert_eq!((first.live(), second.live()), (0, 1));
    arena.reserve(250, Some(first.allocator())).unwrap();
    arena.reserve(400, None).unwrap();
    assert_eq!((first.live(), second.live()), (0, 0));
    arena.reserve(500, Some(second.allocator())).unwrap();
    fill(&arena, 3);
    drop(arena);
    assert_eq!((first.live(), second.live()), (0, 0));
    assert_eq!(*first.allocated.lock(), [100, 200]);
    assert_eq!(*second.allocated.lock(), [300, 500]);
}

#[test]
fn a_refused_block_leaves_the_old_one_good() {
    let books = Books::default();
    let mut arena = Arena::new(3);
    arena.reserve(512, Some(books.allocator())).unwrap();
    let base = arena.base();
    *books.refuse.lock() = true;
    let error = arena.reserve(4096, Some(books.allocator())).unwrap_err();
    assert_eq!(error.status, Status::OutOfMemory);
    for word in ["4096 bytes", "rank 3", "the caller's allocator"] {
        assert!(error.message.contains(word), "{error}");
    }
    let error = arena.reserve(isize::MAX as usize, None).unwrap_err();
    assert_eq!(error.status, Status::OutOfMemory);
    assert!(error.message.contains("the system"), "{error}");
    assert_eq!(
        arena.reserve(usize::MAX, None).unwrap_err().status,
        Status::OutOfMemory
    );
    assert_eq!((arena.base(), arena.bytes(), books.live()), (base, 512, 1));
    fill(&arena, 4);
    *books.refuse.lock() = false;
    arena.reserve(4096, Some(books.allocator())).unwrap();
    drop(arena);
    assert_eq!(books.live(), 0);
}

#[test]
fn a_misaligned_block_is_refused_and_freed() {
    let books = Books::default();
    *books.offset.lock() = 128;
    let mut arena = Arena::new(0);
    arena.reserve(64, None).unwrap();
    let base = arena.base();
    let error = arena.reserve(700, Some(books.allocator())).unwrap_err();
    assert_eq!(error.status, Status::InvalidArgument);
    assert!(
        error.message.contains("0x") && error.message.contains("256"),
        "{error}"
    );
    assert_eq!(*books.allocated.lock(), [700]);
    assert_eq!(books.live(), 0);
    assert_eq!((arena.base(), arena.bytes()), (base, 64));
}
