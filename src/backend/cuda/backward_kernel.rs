//! Which backward kernels a call needs, and their sizes.

use std::sync::Arc;

use super::embedded;
use super::forward_kernel::{defines, head_dims};
use super::kernels::{self, Kernels};
use super::variant::{Kind, Variant};
use crate::device::cuda::{Function, Gpu};
use crate::types::{AttnShape, DType, Error, Result, TileShape};

/// Gradients that a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gradients {
    /// dk, dv, and dq by sums whose order is not fixed.
    All,
    /// dk and dv.
    Keys,
    /// dq.
    Queries,
}

/// Keys of a row, for each 128 columns, up to which dq is faster by a kernel of its own, and bytes of sums from which on:
/// measured, see docs/performance.md.
const FEW_KEYS: i64 = 1024;
const CACHED_SUMS: i64 = 32 << 20;

/// What a call asks of the backward kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackwardChoice {
    /// Head dimensions of the kernels: one of those that are compiled.
    pub head_dims: (i64, i64),
    /// bf16 or f16.
    pub dtype: DType,
    /// Logits pass through a tanh.
    pub softcap: bool,
    /// dk and dv by one kernel, dq by another, whereby bits are the same on every run.
    pub apart: bool,
}

impl BackwardChoice {
    /// The kernels for a shape; `None` when there are none: other dtypes, or head dimensions above 256.
    pub fn new(shape: &AttnShape, softcap: bool, apart: bool) -> Option<BackwardChoice> {
        Some(BackwardChoice {
            head_dims: head_dims(shape)?,
            dtype: shape.dtype,
            softcap,
            apart,
        })
    }

    /// The choice for a call that leaves it to the library and whose dq is summed in memory first: so many query rows of all
    /// heads together, each of which sees so many keys on average. Sums are written, read and written again by launches of
    /// their own, which outweighs two products more where rows are short; a sum that stays in the L2 cache costs little.
    pub fn for_rows(self, rows: i64, keys: i64) -> BackwardChoice {
        let bytes = rows.saturating_mul(self.head_dims.0 * size_of::<f32>() as i64);
        // With a softcap nothing was measured.
        let narrow = self.head_dims.0.max(self.head_dims.1) <= 128 && !self.softcap;
        let few = keys.saturating_mul(128) <= FEW_KEYS * self.head_dims.0;
        BackwardChoice {
            apart: self.apart || (narrow && few && bytes > CACHED_SUMS),
            ..self
        }
    }

    /// The gradients that each kernel of the choice computes, in the order of their launches.
    pub fn kernels(&self) -> &'static [Gradients] {
        if self.apart {
            &[Gradients::Keys, Gradients::Queries]
        } else {
            &[Gradients::All]
        }
    }

    /// Name of a kernel's variant in kernels/variants.txt, or for the cache.
    fn name(&self, gradients: Gradients) -> String {
        let part = match gradients {
            Gradients::All => "",
            Gradients::Keys => "_keys",
            Gradients::Queries => "_queries",
        };
        let (d, dv) = self.head_dims;
        let softcap = if self.softcap { "_softcap" } else { "" };
        let name = format!("attn_backward{part}{softcap}_{}_{d}", self.dtype.name());
        if d == dv { name } else { name + &format!("_{dv}") }
    }

    /// How a kernel is compiled.
    pub fn variant(&self, gradients: Gradients) -> Variant {
        let name = self.name(gradients);
        if let Ok(listed) = embedded::listed(&name) {
            return listed.clone();
        }
        let keys = gradients == Gradients::Keys;
        let defines = defines(
            self.head_dims,
            self.dtype,
            &[(self.softcap, "SOFTCAP=1"), (keys, "DQ=0")],
        );
        let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
        let entry = entry(gradients);
        let source = match gradients {
            Gradients::Queries => "attn_backward_queries.cu",
            _ => "attn_backward.cu",
        };
        Variant::new(&name, Kind::Attention, source, &[entry], &defines)
    }
}

fn entry(gradients: Gradients) -> &'static str {
    match gradients {
        Gradients::Queries => "magi_attn_backward_queries",
        _ => "magi_attn_backward",
    }
}

/// A backward kernel on a device, and its sizes.
#[derive(Clone, Debug)]
pub struct BackwardKernel {
    /// What it was chosen for.
    pub choice: BackwardChoice,
    /// Of which what.
    pub gradients: Gradients,
    /// Rows of a tile.
    pub rows: i32,
    /// Tokens of a step.
    pub step: i32,
    /// Threads of a thread block.
    pub threads: u32,
    /// Dynamic shared memory of a thread block.
    pub shared_bytes: u32,
    /// Floats of a piece; 0 where there are none.
    pub piece: i32,
    /// To be launched.
    pub function: Function,
    /// Keeps the function valid.
    _kernels: Arc<Kernels>,
}

impl BackwardKernel {
    /// Loads the kernel, compiling it first where it was not compiled ahead of time: prepare time only.
    pub fn load(gpu: &Arc<Gpu>, choice: BackwardChoice, gradients: Gradients) -> Result<BackwardKernel> {
        let kernels = kernels::load(gpu, &choice.variant(gradients))?;
        let [rows, step, threads, shared_bytes, piece] = match gradients {
            Gradients::Queries => {
                let [a, b, c, d] = kernels.read_ints::<4>("magi_attn_backward_queries_sizes")?;
                [a, b, c, d, 0]
            }
            _ => kernels.read_ints::<5>("magi_attn_backward_sizes")?,
        };
        let function = kernels.function(entry(gradients))?;
        if rows <= 0 || step <= 0 || threads <= 0 || shared_bytes <= 0 || piece < 0 {
            let sizes = [rows, step, threads, shared_bytes, piece];
            return Err(Error::internal(format!(
                "a backward kernel of the sizes {sizes:?}"
            )));
        }
        function.set_max_shared(shared_bytes as u32)?;
        Ok(BackwardKernel {
            choice,
            gradients,
            rows,
            step,
            threads: threads as u32,
            shared_bytes: shared_bytes as u32,
            piece,
            function,
            _kernels: kernels,
        })
    }

    /// How the list that it walks is cut.
    pub fn tile(&self) -> TileShape {
        TileShape::new(self.rows, self.step)
    }

    /// Warps that hold a part of a tile's rows.
    pub fn warps(&self) -> usize {
        (self.threads as usize / 32).saturating_sub(4)
    }
}

#[cfg(test)]
mod tests {
    use super::super::forward_kernel::HEAD_DIMS;
    use super::*;

    #[test]
    fn dq_is_apart_where_rows_are_short_and_many() {
        let apart = |head_dims, asked, rows, keys| {
            let choice = BackwardChoice {
                head_dims,
                dtype: DType::Bf16,
                softcap: false,
                apart: asked,
            };
            choice.for_rows(rows, keys).apart
        };
        let many = 8192 * 64;
        assert!(apart((128, 128), false, many, 960), "windows of 1,024");
        assert!(apart((128, 128), false, many, 1008), "the same over more tokens");
        assert!(!apart((128, 128), false, many, 1025), "documents of 2,048");
        assert!(!apart((64, 64), false, many, 960));
        assert!(
            apart((64, 64), false, many, 500),
            "as many bytes of sums to as many products"
        );
        assert!(
            !apart((192, 128), false, many, 500) && !apart((256, 256), false, many, 500),
            "wide"
        );
        assert!(
            !apart((128, 128), false, 65536, 500),
            "sums of 32 MB stay in the cache"
        );
        assert!(apart((128, 128), true, 1, 1 << 24), "asked for");
        assert!(!apart((128, 128), false, i64::MAX, i64::MAX), "no overflow");
    }

    #[test]
    fn head_dims_and_dtypes() {
        let shape = |head_dim, head_dim_v, dtype| AttnShape {
            heads_q: 8,
            heads_kv: 2,
            head_dim,
            head_dim_v,
            dtype,
        };
        let of = |d, dv, dtype| BackwardChoice::new(&shape(d, dv, dtype), false, false).map(|c| c.head_dims);
        assert_eq!(of(1, 64, DType::Bf16), Some((64, 64)));
        assert_eq!(of(65, 100, DType::F16), Some((128, 128)));
        assert_eq!(of(180, 100, DType::F16), Some((192, 128)));
        assert_eq!(of(257, 64, DType::F16), None);
        assert_eq!(of(64, 64, DType::F32), None);
    }

    /// A listed variant is compiled as the library would compile it at run time.
    #[test]
    fn listed_variants_are_what_their_names_say() {
        for (dtype, head_dims) in [DType::Bf16, DType::F16]
            .into_iter()
            .flat_map(|t| HEAD_DIMS.map(|d| (t, d)))
        {
            for bits in 0..4 {
                let choice = BackwardChoice {
                    head_dims,
                    dtype,
                    softcap: bits & 1 != 0,
                    apart: bits & 2 != 0,
                };
                for &gradients in choice.kernels() {
                    let variant = choice.variant(gradients);
                    let has = |d: &str| variant.defines.iter().any(|x| x == d);
                    assert!(has(&format!("HEAD_DIM={}", head_dims.0)), "{variant:?}");
                    assert!(has(&format!("HEAD_DIM_V={}", head_dims.1)), "{variant:?}");
                    assert_eq!(has("DTYPE_F16"), dtype == DType::F16, "{variant:?}");
                    assert_eq!(has("SOFTCAP=1"), choice.softcap, "{variant:?}");
                    assert_eq!(has("DQ=0"), gradients == Gradients::Keys, "{variant:?}");
                    assert_eq!(variant.entries, [entry(gradients)], "{variant:?}");
                    assert_eq!(variant.kind, Kind::Attention);
                }
            }
        }
    }
}
