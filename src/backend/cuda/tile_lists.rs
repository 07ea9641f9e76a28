//! Tile lists in device memory.

use std::sync::Arc;

use crate::device::cuda::{DeviceMemory, Gpu};
use crate::types::{Error, Item, Result, RowLimits, Tile, TileList, TileShape};

/// Every array begins at a multiple of this, so that whole tiles and items can be loaded 16 bytes at a time.
const ALIGN: usize = 256;

/// A tile list on a device, with its tiles in the order of the work. Made while a call prepares: it allocates and waits.
/// It must outlive what was enqueued with it; dropping it waits for the device.
#[derive(Debug)]
pub struct DeviceTiles {
    memory: DeviceMemory,
    items: usize,
    limits: usize,
    count: i32,
    shape: TileShape,
    area: i64,
    steps: (i64, i64),
    reach: Reach,
}

/// One past the last row and token that a list names, of the local tensor and of the receive buffer; 0 where it names
/// none. Rows of tiles without items do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Rows, by source of their tile.
    pub rows: [i64; 2],
    /// Tokens of runs, by source of their item.
    pub tokens: [i64; 2],
}

impl Reach {
    fn of(tiles: &[Tile], items: &[Item]) -> Reach {
        let mut reach = Reach::default();
        for t in tiles.iter().filter(|t| t.items > 0) {
            let end = &mut reach.rows[usize::from(t.source != 0)];
            *end = (*end).max(i64::from(t.row0) + i64::from(t.rows));
        }
        for i in items {
            let end = &mut reach.tokens[usize::from(i.source != 0)];
            *end = (*end).max(i.run1.into());
        }
        reach
    }
}

fn steps(tiles: &[Tile]) -> (i64, i64) {
    let each = || tiles.iter().map(|t| i64::from(t.steps));
    (each().max().unwrap_or(0), each().sum())
}

impl DeviceTiles {
    /// The tiles of `list` by falling number of steps.
    pub fn upload(gpu: &Arc<Gpu>, list: &TileList) -> Result<DeviceTiles> {
        let tiles: Vec<Tile> = list.order.iter().map(|&i| list.tiles[i as usize]).collect();
        DeviceTiles::with_tiles(gpu, &tiles, list)
    }

    /// Other tiles, or the same in another order, over the items and limits of `list`. Fails when a tile names items
    /// that are not there.
    pub fn with_tiles(gpu: &Arc<Gpu>, tiles: &[Tile], list: &TileList) -> Result<DeviceTiles> {
        let outside = |t: &&Tile| {
            t.item0 < 0 || t.items < 0 || i64::from(t.item0) + i64::from(t.items) > list.items.len() as i64
        };
        if let Some(t) = tiles.iter().find(outside) {
            return Err(Error::internal(format!(
                "{t:?} names items that are not among {}",
                list.items.len()
            )));
        }
        let count = i32::try_from(tiles.len())
            .map_err(|_| Error::internal(format!("{} tiles are more than a launch counts", tiles.len())))?;
        let items = size_of_val(tiles).next_multiple_of(ALIGN);
        let limits = (items + size_of_val(&list.items[..])).next_multiple_of(ALIGN);
        let memory = DeviceMemory::pooled(gpu, limits + size_of_val(&list.limits[..]))?;
        memory.write(0, bytes_of(tiles))?;
        memory.write(items, bytes_of(&list.items))?;
        memory.write(limits, bytes_of(&list.limits))?;
        Ok(DeviceTiles {
            memory,
            items,
            limits,
            count,
            shape: list.shape,
            area: list.area(),
            steps: steps(tiles),
            reach: Reach::of(tiles, &list.items),
        })
    }

    /// Tiles in the order of the work.
    pub fn tiles(&self) -> *const Tile {
        self.memory.as_ptr().cast()
    }

    /// What `Tile::item0` counts.
    pub fn items(&self) -> *const Item {
        self.memory.as_ptr().wrapping_add(self.items).cast()
    }

    /// What `Item::limits` counts.
    pub fn limits(&self) -> *const RowLimits {
        self.memory.as_ptr().wrapping_add(self.limits).cast()
    }

    /// Number of tiles.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// What the list was made for.
    pub fn shape(&self) -> TileShape {
        self.shape
    }

    /// Visible cells of all tiles of the list.
    pub fn area(&self) -> i64 {
        self.area
    }

    /// Steps of the longest tile, and of all together.
    pub fn steps(&self) -> (i64, i64) {
        self.steps
    }

    /// What the tensors of a launch must have: memory safety rests on it.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

/// A struct of a tile list: 32-bit integers only.
trait Plain: Copy {}
impl Plain for Tile {}
impl Plain for Item {}
impl Plain for RowLimits {}

fn bytes_of<T: Plain>(all: &[T]) -> &[u8] {
    // SAFETY: `Plain` types are made of i32 alone, so they have no padding and every byte is initialised.
    unsafe { std::slice::from_raw_parts(all.as_ptr().cast(), size_of_val(all)) }
}
