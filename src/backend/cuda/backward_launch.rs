//! One launch of the backward kernel over key tiles: its parameters, from a call and the list that it walks.

use std::ptr::null_mut;

use super::backward_kernel::BackwardKernel;
use super::backward_maps::{self, BackwardMaps};
use super::backward_params::BackwardParams;
use super::backward_rows::Pair;
use super::section;
use crate::device::Stream;
use crate::device::cuda::{Arguments, Gpu, Launch};
use crate::types::{AttnShape, Item, Result, RowLimits, Tensor, Tile};

/// lse to base 2 and delta of every row, each with that of the row behind it.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// `[heads_q, 2, padded / 2]`: of even rows, then of odd ones.
    pub pairs: *mut Pair,
    /// Pairs of a head, even.
    pub padded: i64,
}

/// What every kernel of a call reads. Tensors as `BackwardArgs` of the backend says, on the device, with the strides that
/// `forward_maps::check` accepts.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Queries.
    pub q: Tensor,
    /// Keys of the local tensor and of the receive buffer; `None` when no slice names it.
    pub k: [Option<Tensor>; 2],
    /// Values of both.
    pub v: [Option<Tensor>; 2],
    /// Gradient of out.
    pub dout: Tensor,
    /// Row sums.
    pub stats: Stats,
    /// Factor of `q . k`, above 0.
    pub softmax_scale: f64,
    /// 0 is off.
    pub softcap: f64,
    /// Multiprocessors left to others.
    pub sm_margin: i32,
}

impl Operands {
    /// Factor on a logit, to base 2; with softcap on its tanh.
    pub(super) fn scale_log2(&self) -> f32 {
        let factor = if self.softcap > 0.0 {
            self.softcap
        } else {
            self.softmax_scale
        };
        (factor * std::f64::consts::LOG2_E) as f32
    }

    /// What makes a product the argument of tanh; 0 without softcap.
    pub(super) fn softcap_scale(&self) -> f32 {
        if self.softcap > 0.0 {
            (self.softmax_scale / self.softcap) as f32
        } else {
            0.0
        }
    }
}

/// What a launch over key tiles adds to.
#[derive(Clone, Copy, Debug)]
pub struct KeysOutputs {
    /// f32, added to; `None` for kernels that leave it to another.
    pub dq: Option<Tensor>,
    /// Input dtype or f32. Present where `k` is.
    pub dk: [Option<Tensor>; 2],
    /// Like `dk`, of the same dtype.
    pub dv: [Option<Tensor>; 2],
    /// `dk` and `dv`, which are f32, are added to.
    pub accumulate: bool,
    /// `Split::piece_bytes` bytes, aligned to 256.
    pub pieces: *mut u8,
}

/// A list on the device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceList {
    /// In the order of the work.
    pub tiles: *const Tile,
    /// What `Tile::item0` counts.
    pub items: *const Item,
    /// What `Item::limits` counts; null where no item has limits.
    pub limits: *const RowLimits,
    /// Number of tiles.
    pub count: i32,
    /// Steps of the longest tile and of all together; 0 where only the device knows.
    pub steps: (i64, i64),
}

/// How a list's work is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Tiles times key heads.
    pub owners: i64,
    /// Parts of a group of query heads that blocks of their own compute.
    pub parts: i64,
}

impl Split {
    /// Where tiles and key heads are fewer than `processors`: the parts with which the fewest steps follow each other.
    /// Depends on the mask's totals, the heads and the device type alone.
    pub fn of(tiles: i64, shape: &AttnShape, processors: i64) -> Split {
        let owners = tiles * shape.heads_kv;
        let group = shape.heads_q / shape.heads_kv;
        // Rounds of blocks in units of a whole group, times all divisors alike.
        let cost = |parts: i64| ((owners * parts + processors - 1) / processors, parts);
        let shorter = |a: i64, b: i64| {
            let ((rounds_a, a), (rounds_b, b)) = (cost(a), cost(b));
            (rounds_a * b).cmp(&(rounds_b * a)).then(a.cmp(&b))
        };
        let parts = if owners == 0 || owners >= processors {
            1
        } else {
            (1..=group)
                .filter(|p| group % p == 0)
                .min_by(|&a, &b| shorter(a, b))
                .unwrap_or(1)
        };
        Split { owners, parts }
    }

    /// Key heads whose tiles are walked, longest first, before those of the next: a divisor of all, if possible not more
    /// than `fit`, but so many that nine blocks of ten have a tile of them. With fewer, the long tiles of the last heads
    /// would begin late, and most blocks would wait for their end; with more, what tiles share leaves the L2 cache.
    ///
    /// The last section begins when its share of the time is left, and a little earlier where shorter tiles have made room:
    /// so much that its longest tile ends in time. `steps`: as in `DeviceList`.
    fn section(&self, heads: i64, processors: i64, fit: i64, steps: (i64, i64)) -> i64 {
        let each = self.owners / heads * self.parts;
        // Key heads in whose time, if all are busy, one of them does the longest tile; 15% of all heads' are room.
        let (longest, all) = (steps.0 / self.parts, steps.1.max(1));
        let in_time = |n: i64| n * all * 20 >= longest * processors * 20 - 3 * heads * all;
        let fills = |n: i64| (n * each * 10 >= processors * 9 && in_time(n)) || n == heads;
        (1..=heads)
            .filter(|n| heads % n == 0)
            .rfind(|&n| n <= fit && fills(n))
            .or_else(|| (1..=heads).find(|&n| heads % n == 0 && fills(n)))
            .unwrap_or(heads)
    }

    /// Bytes of workspace for the parts.
    pub fn piece_bytes(&self, kernel: &BackwardKernel) -> usize {
        if self.parts == 1 {
            return 0;
        }
        (self.owners * self.parts) as usize * kernel.piece as usize * size_of::<f32>()
    }

    /// How many words a launch counts in: 0 before it, and after it.
    pub fn words(&self, kernel: &BackwardKernel) -> usize {
        let done = if self.parts == 1 {
            0
        } else {
            self.owners as usize * kernel.warps()
        };
        (4 + done).next_multiple_of(4)
    }
}

/// A kernel over a list of key tiles.
#[derive(Debug)]
pub struct KeysLaunch<'a> {
    /// Where.
    pub gpu: &'a Gpu,
    /// What.
    pub kernel: &'a BackwardKernel,
    /// What the list was made for.
    pub shape: &'a AttnShape,
    /// What is walked.
    pub list: DeviceList,
    /// By how many.
    pub split: Split,
    /// `Split::words` of them.
    pub words: *mut u32,
}

impl KeysLaunch<'_> {
    /// Enqueues the launch, which neither allocates nor waits and may be captured.
    ///
    /// # Safety
    /// The tensors and the workspace are good until the kernel has run, and are what `Operands` and `KeysOutputs` say; the
    /// list and words are good until then too, and name rows and tokens of the tensors. Nobody else uses workspace and words
    /// meanwhile.
    pub unsafe fn enqueue(&self, o: &Operands, outputs: &KeysOutputs, on: Stream) -> Result<()> {
        let work = self.split.owners * self.split.parts;
        if work == 0 {
            return Ok(());
        }
        let current = self.gpu.enter()?;
        let maps = backward_maps::of_keys(&current, o, outputs.dq.as_ref(), self.kernel)?;
        let processors = i64::from(self.gpu.properties().multiprocessors - o.sm_margin).max(1);
        let params = self.params(o, outputs, &maps);
        let launch = Launch {
            shared_bytes: self.kernel.shared_bytes,
            overlap_previous: true, // which makes the row sums
            ..Launch::linear(work.min(processors) as u32, self.kernel.threads)
        };
        let mut arguments = Arguments::new();
        arguments.push(&maps.maps).push(&params);
        // SAFETY: the kernel's two parameters; the rest is the caller's promise.
        unsafe { launch.run(self.gpu, self.kernel.function, on, &mut arguments) }
    }

    fn params(&self, o: &Operands, out: &KeysOutputs, maps: &BackwardMaps) -> BackwardParams {
        let (shape, split) = (self.shape, self.split.parts);
        let data = |pair: &[Option<Tensor>; 2]| pair.each_ref().map(|t| t.map_or(null_mut(), |t| t.data()));
        let stride =
            |pair: &[Option<Tensor>; 2], i: usize| pair.each_ref().map(|t| t.map_or(0, |t| t.stride()[i]));
        let dq_stride = |i: usize| out.dq.map_or(0, |t| t.stride()[i]);
        let mut flags = 0;
        if out.dk.iter().flatten().any(|t| t.dtype() != shape.dtype) {
            flags |= BackwardParams::OUT_F32;
        }
        if out.accumulate {
            flags |= BackwardParams::ACCUMULATE;
        }
        BackwardParams {
            tiles: self.list.tiles,
            items: self.list.items,
            limits: self.list.limits,
            counters: self.words.cast(),
            dq: out.dq.map_or(null_mut(), |t| t.data().cast()),
            dk: data(&out.dk),
            dv: data(&out.dv),
            piece: if split > 1 { out.pieces.cast() } else { null_mut() },
            piece_done: if split > 1 {
                self.words.wrapping_add(4).cast()
            } else {
                null_mut()
            },
            dq_token: dq_stride(0),
            dq_head: dq_stride(1),
            dk_token: stride(&out.dk, 0),
            dk_head: stride(&out.dk, 1),
            dv_token: stride(&out.dv, 0),
            dv_head: stride(&out.dv, 1),
            tile_count: self.list.count,
            heads_kv: shape.heads_kv as i32,
            group: (shape.heads_q / shape.heads_kv) as i32,
            section: self.section(o, out) as i32,
            splits: split as i32,
            tokens_q: o.q.tokens() as i32,
            head_dim: shape.head_dim as i32,
            head_dim_v: shape.head_dim_v as i32,
            copies_k: maps.copies_k,
            copies_v: maps.copies_v,
            flags,
            scale_log2: o.scale_log2(),
            scale: o.softmax_scale as f32,
            softcap_scale: o.softcap_scale(),
        }
    }

    /// Key heads walked together: as many as have their queries, gradients of out and sums of dq in the L2 cache.
    fn section(&self, o: &Operands, out: &KeysOutputs) -> i64 {
        let shape = self.shape;
        let size = shape.dtype.size() as i64;
        let sums = out.dq.map_or(0, |_| shape.head_dim * size_of::<f32>() as i64);
        let row = (shape.head_dim + shape.head_dim_v) * size + sums;
        let bytes = o.q.tokens() * (shape.heads_q / shape.heads_kv) * row;
        let fit = section::fit(self.gpu, bytes);
        // Whatever is left to others: bits of dk and dv depend on the order of tiles.
        let processors = i64::from(self.gpu.properties().multiprocessors);
        self.split
            .section(shape.heads_kv, processors, fit, self.list.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DType;

    #[test]
    fn work_is_split_where_it_fills_the_device() {
        let parts = |tiles, heads_q, heads_kv| {
            let shape = AttnShape {
                heads_q,
                heads_kv,
                head_dim: 128,
                head_dim_v: 128,
                dtype: DType::Bf16,
            };
            Split::of(tiles, &shape, 132).parts
        };
        assert_eq!(parts(64, 64, 8), 1, "fills it");
        assert_eq!(parts(8, 32, 4), 4, "32 owners: 128 blocks");
        assert_eq!(parts(8, 64, 1), 16, "8 owners: 128 blocks");
        assert_eq!(parts(1, 16, 16), 1, "a head of its own each");
        assert_eq!(parts(0, 8, 2), 1, "nothing");
        assert_eq!(parts(1, 64, 1), 64, "one tile");
    }

    #[test]
    fn sections_are_as_long_as_the_device_is_wide() {
        let split = |tiles, heads| Split {
            owners: tiles * heads,
            parts: 1,
        };
        let section = |tiles, heads, fit| split(tiles, heads).section(heads, 132, fit, (0, 0));
        assert_eq!(section(64, 8, 0), 2, "128 tiles");
        assert_eq!(section(58, 8, 0), 4, "two heads have 116 tiles");
        assert_eq!(section(64, 8, 8), 8, "all fit");
        assert_eq!(section(256, 8, 0), 1);
        assert_eq!(section(256, 8, 3), 2, "a divisor");
        assert_eq!(section(32, 6, 1), 6, "never filled by fewer");
        assert_eq!(section(8, 4, 1), 4, "not even by all");
        let in_time = |tiles, heads, steps| split(tiles, heads).section(heads, 132, 0, steps);
        let triangle = (64, 64 * 65 / 2);
        assert_eq!(in_time(64, 8, (64, 64 * 64)), 2, "equal tiles");
        assert_eq!(in_time(64, 8, triangle), 4, "a causal mask");
        assert_eq!(in_time(64, 16, triangle), 2, "sixteen heads take twice as long");
        assert_eq!(
            in_time(64, 8, (32, 715)),
            8,
            "one long document among shorter ones"
        );
        assert_eq!(in_time(256, 8, (256, 256 * 257 / 2)), 1, "a longer causal mask");
    }
}
