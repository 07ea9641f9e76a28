//! Tile lists over ranges that lie on the device: the launcher of kernels/range_tiles.cu.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::embedded;
use super::kernels::{self, Kernels};
use crate::device::Stream;
use crate::device::cuda::{Arguments, Function, Gpu, HostWord, Launch, fill_words};
use crate::types::{Error, Item, Result, Status, Tensor, Tile, TileList, TileShape};

/// Threads of a block: MAGI_RANGE_THREADS.
pub const THREADS: u32 = 256;
/// Kinds of an error word: MAGI_RANGE_BAD_TYPE.
pub const BAD_TYPE: u64 = 1;
/// MAGI_RANGE_TOO_MANY.
pub const TOO_MANY: u64 = 2;

/// Blocks for each multiprocessor: as many as are at work at once.
const BLOCKS: i64 = 8;

/// Parts of the space begin at multiples of this.
const ALIGN: usize = 256;

/// `magi_range_counters` of kernels/helper/range_tiles.h; 0 before a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RangeCounters {
    /// Items that all tiles want.
    pub items: u64,
    /// `i32::MAX` less the first range whose type is none; 0 when all are good.
    pub bad_type: i32,
    /// Steps of the longest tile.
    pub steps: i32,
    /// Blocks that have ended.
    pub done: i32,
    /// 1 when the list could not be made.
    pub failed: i32,
}

/// `magi_range_output` of kernels/helper/range_tiles.h. Strides count elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RangeOutput {
    /// Filled with NaN when the list cannot be made; or null.
    pub data: *mut u8,
    /// Stride of tokens.
    pub token: i64,
    /// Stride of heads.
    pub head: i64,
    /// Rows of a head.
    pub tokens: i64,
    /// Heads.
    pub heads: i32,
    /// Elements of a row.
    pub width: i32,
    /// Bytes of an element: 2 or 4.
    pub bytes: i32,
    /// 0.
    pub reserved: i32,
}

impl RangeOutput {
    /// Of a `[tokens, heads, width]` or `[tokens, heads]` tensor.
    fn of(t: Option<&Tensor>) -> RangeOutput {
        let Some(t) = t else {
            return RangeOutput {
                data: std::ptr::null_mut(),
                token: 0,
                head: 0,
                tokens: 0,
                heads: 0,
                width: 0,
                bytes: 4,
                reserved: 0,
            };
        };
        RangeOutput {
            data: t.data(),
            token: t.stride()[0],
            head: t.stride()[1],
            tokens: t.tokens(),
            heads: t.shape()[1] as i32,
            width: t.shape().get(2).copied().unwrap_or(1) as i32,
            bytes: t.dtype().size() as i32,
            reserved: 0,
        }
    }
}

/// `magi_range_params` of kernels/helper/range_tiles.h. Strides count elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RangeParams {
    /// `[count, 2]`.
    pub q_ranges: *const i32,
    /// `[count, 2]`.
    pub k_ranges: *const i32,
    /// `[count]`.
    pub mask_types: *const i32,
    /// From one range to the next.
    pub q_step: i64,
    /// As above.
    pub k_step: i64,
    /// As above.
    pub type_step: i64,
    /// Longest first.
    pub tiles: *mut Tile,
    /// By row.
    pub drawn: *mut Tile,
    /// `[max_items]`.
    pub items: *mut Item,
    /// `[max_items]`.
    pub keys: *mut u64,
    /// 0 before the launch.
    pub counters: *mut RangeCounters,
    /// Written when the list cannot be made.
    pub error: *mut u64,
    /// Of the rows.
    pub outputs: [RangeOutput; 2],
    /// Ranges.
    pub count: i32,
    /// Queries.
    pub tokens_q: i32,
    /// Keys.
    pub tokens_k: i32,
    /// Rows of a tile.
    pub rows: i32,
    /// Tokens of a step.
    pub step: i32,
    /// Tiles.
    pub tile_count: i32,
    /// Room for items.
    pub max_items: i32,
    /// 0: rows are queries, tokens keys; 1: rows are keys, tokens queries.
    pub of_keys: i32,
}

/// A mask as tensors on a device: i32 `[n, 2]`, `[n, 2]` with last stride 1, and `[n]`.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRanges {
    /// Query ranges.
    pub q: Tensor,
    /// Key ranges.
    pub k: Tensor,
    /// Each a `MaskType`.
    pub types: Tensor,
}

/// What a list is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListShape {
    /// Queries.
    pub tokens_q: i64,
    /// Keys.
    pub tokens_k: i64,
    /// Tiles of keys over runs of queries, else the other way round.
    pub of_keys: bool,
    /// How the list is cut.
    pub tile: TileShape,
    /// Room for items.
    pub max_items: i32,
    /// Words behind the counters, for the launch that walks the list; 0 when the list is there.
    pub words: usize,
}

impl ListShape {
    /// Most items of a list.
    pub const MAX_ITEMS: i64 = 1 << 28;

    /// Number of tiles.
    pub fn tile_count(&self) -> i64 {
        let rows = if self.of_keys {
            self.tokens_k
        } else {
            self.tokens_q
        };
        (rows as u64).div_ceil(self.tile.rows.max(1) as u64) as i64
    }

    /// The list with the caller's room for `n` ranges' items, 0 for the default. `Status::InvalidArgument` when a launch of
    /// `heads` heads cannot count so many items or tiles.
    pub fn with_room(self, max_items: i64, n: i64, heads: i64) -> Result<ListShape> {
        let tiles = self.tile_count();
        let items = match max_items {
            0 => Self::default_items(tiles, n),
            given => given,
        };
        if !(0..=Self::MAX_ITEMS).contains(&items) {
            return Err(Error::argument(format!(
                "options.max_items is {items}; it must be 0 (the default) to {}",
                Self::MAX_ITEMS
            )));
        }
        if tiles.saturating_mul(heads) > i64::from(i32::MAX / 2) {
            return Err(Error::argument(format!(
                "{tiles} tiles of {heads} heads are more than a launch counts"
            )));
        }
        Ok(ListShape {
            max_items: items as i32,
            ..self
        })
    }

    /// The room for `n` ranges when the caller names none, which is no more than they can ever fill.
    pub fn default_items(tiles: i64, n: i64) -> i64 {
        tiles
            .saturating_add(n.saturating_mul(4))
            .min(tiles.saturating_mul(n).max(1))
            .min(Self::MAX_ITEMS)
    }
}

/// Where the parts of a list stand in its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListSpace {
    drawn: usize,
    items: usize,
    keys: usize,
    counters: usize,
    /// Bytes of all.
    pub bytes: usize,
}

impl ListSpace {
    /// The space of a list.
    pub fn of(shape: &ListShape) -> ListSpace {
        let (tiles, items) = (shape.tile_count() as usize, shape.max_items as usize);
        let after = |at: usize, bytes: usize| (at + bytes).next_multiple_of(ALIGN);
        let drawn = after(0, tiles * size_of::<Tile>());
        let list = after(drawn, tiles * size_of::<Tile>());
        let keys = after(list, items * size_of::<Item>());
        let counters = after(keys, items * size_of::<u64>());
        ListSpace {
            drawn,
            items: list,
            keys,
            counters,
            bytes: counters + Self::zeros(shape),
        }
    }

    /// Bytes that are 0 before the launch.
    fn zeros(shape: &ListShape) -> usize {
        size_of::<RangeCounters>() + shape.words * size_of::<u32>()
    }

    /// Tiles in the order of the work.
    pub fn tiles(&self, space: *mut u8) -> *mut Tile {
        space.cast()
    }

    /// What `Tile::item0` counts.
    pub fn items(&self, space: *mut u8) -> *mut Item {
        space.wrapping_add(self.items).cast()
    }

    /// Not 0 when the list could not be made.
    pub fn failed(&self, space: *mut u8) -> *const i32 {
        let at = self.counters + std::mem::offset_of!(RangeCounters, failed);
        space.wrapping_add(at).cast_const().cast()
    }

    /// The words behind the counters.
    pub fn words(&self, space: *mut u8) -> *mut u32 {
        space
            .wrapping_add(self.counters + size_of::<RangeCounters>())
            .cast()
    }
}

/// What becomes NaN when a list cannot be made: tensors of its rows, `[tokens, heads, width]` or `[tokens, heads]`, of 2 or
/// 4 bytes.
pub type Outputs = [Option<Tensor>; 2];

/// The kernel on a device.
#[derive(Clone, Debug)]
pub struct RangeTiles {
    gpu: Arc<Gpu>,
    function: Function,
    error: HostWord,
    /// Keeps the function valid.
    _kernels: Arc<Kernels>,
}

impl RangeTiles {
    /// Loads the kernel. The first time on a device may compile, allocate and wait: prepare time.
    pub fn load(gpu: &Arc<Gpu>) -> Result<RangeTiles> {
        static ERRORS: Mutex<BTreeMap<i32, HostWord>> = Mutex::new(BTreeMap::new());
        let kernels = kernels::load(gpu, embedded::listed("range_tiles")?)?;
        let mut errors = ERRORS.lock();
        let error = match errors.get(&gpu.ordinal()) {
            Some(word) => *word,
            None => {
                let word = HostWord::new(gpu)?;
                errors.insert(gpu.ordinal(), word);
                word
            }
        };
        Ok(RangeTiles {
            gpu: gpu.clone(),
            function: kernels.function("range_tiles")?,
            error,
            _kernels: kernels,
        })
    }

    /// What went wrong on this device since the last question, as far as it has got. Does not wait.
    pub fn take_error(&self) -> Result<()> {
        let word = self.error.take();
        let value = word & ((1 << 56) - 1);
        let (status, what) = match word >> 56 {
            0 => return Ok(()),
            BAD_TYPE => (
                Status::InvalidEnum,
                format!("options.mask_types[{value}] was no magi_mask_type"),
            ),
            TOO_MANY => (
                Status::BufferTooSmall,
                format!("its ranges took {value} items, more than options.max_items"),
            ),
            _ => return Err(Error::internal(format!("an error word of {word:#x}"))),
        };
        let message = format!(
            "an earlier call with ranges on CUDA device {}: {what}; its outputs are NaN",
            self.gpu.ordinal()
        );
        Err(Error::new(status, message))
    }

    /// Enqueues making the list in `space`, `ListSpace::of(shape).bytes` bytes aligned to 256: one launch behind the
    /// zeros of the counters. Neither allocates nor waits, and may be captured. For a list without tiles the zeros are all.
    ///
    /// # Safety
    /// The ranges, the space and the outputs are good until the kernel has run, and are what their types say; nobody
    /// else uses the space until the list was walked.
    pub unsafe fn enqueue(
        &self,
        ranges: &DeviceRanges,
        shape: &ListShape,
        outputs: &Outputs,
        space: *mut u8,
        on: Stream,
    ) -> Result<()> {
        let params = self.params(ranges, shape, outputs, space)?;
        let zeros = ListSpace::zeros(shape) / size_of::<u32>();
        // SAFETY: the counters and words, inside the space.
        unsafe { fill_words(&self.gpu, params.counters.cast(), 0, zeros, on)? };
        let tiles = shape.tile_count();
        let most = i64::from(self.gpu.properties().multiprocessors) * BLOCKS;
        let launch = Launch::linear(tiles.min(most.max(1)) as u32, THREADS);
        let mut arguments = Arguments::new();
        arguments.push(&params);
        // SAFETY: the kernel's parameter; the rest is the caller's promise, and the error word is there for good.
        unsafe { launch.run(&self.gpu, self.function, on, &mut arguments) }
    }

    fn params(
        &self,
        ranges: &DeviceRanges,
        shape: &ListShape,
        outputs: &Outputs,
        space: *mut u8,
    ) -> Result<RangeParams> {
        shape.tile.validate()?;
        for (name, tokens) in [("queries", shape.tokens_q), ("keys", shape.tokens_k)] {
            if tokens > TileList::MAX_TOKENS {
                let message = format!(
                    "{tokens} {name} are more than the {} of a tile list",
                    TileList::MAX_TOKENS
                );
                return Err(Error::argument(message));
            }
        }
        let count = i32::try_from(ranges.types.tokens()).map_err(|_| {
            Error::argument(format!("{} ranges; there can be 2^31 - 1", ranges.types.tokens()))
        })?;
        let at = ListSpace::of(shape);
        Ok(RangeParams {
            q_ranges: ranges.q.data().cast(),
            k_ranges: ranges.k.data().cast(),
            mask_types: ranges.types.data().cast(),
            q_step: ranges.q.stride()[0],
            k_step: ranges.k.stride()[0],
            type_step: ranges.types.stride()[0],
            tiles: at.tiles(space),
            drawn: space.wrapping_add(at.drawn).cast(),
            items: at.items(space),
            keys: space.wrapping_add(at.keys).cast(),
            counters: space.wrapping_add(at.counters).cast(),
            error: self.error.as_ptr(),
            outputs: outputs.each_ref().map(|t| RangeOutput::of(t.as_ref())),
            count,
            tokens_q: shape.tokens_q as i32,
            tokens_k: shape.tokens_k as i32,
            rows: shape.tile.rows,
            step: shape.tile.step,
            tile_count: shape.tile_count() as i32,
            max_items: shape.max_items,
            of_keys: shape.of_keys.into(),
        })
    }
}
