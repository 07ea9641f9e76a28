//! Which forward kernel a call needs, and its sizes.

use std::sync::Arc;

use super::embedded;
use super::kernels::{self, Kernels};
use super::variant::{Kind, Variant};
use crate::device::cuda::{Function, Gpu};
use crate::types::{AttnShape, DType, Error, Result};

/// Head dimensions that kernels are compiled for, (query and key, value); others are padded up to the next that holds
/// them, by what the copy engine writes beyond a tensor's end.
pub(super) const HEAD_DIMS: [(i64, i64); 6] =
    [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)];

/// What a call asks of a forward kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForwardChoice {
    /// Head dimensions of the kernel: one of those that are compiled.
    pub head_dims: (i64, i64),
    /// bf16 or f16.
    pub dtype: DType,
    /// Logits pass through a tanh.
    pub softcap: bool,
    /// The maximum logit of each head is kept.
    pub max_logits: bool,
    /// f32 outputs, merging into an earlier result, sinks, several heads in a tile, tiles cut into pieces, rows of out
    /// that end inside 16 bytes: the copy engine, which stores those of the plain form, writes whole 16 bytes.
    pub general: bool,
}

/// Head dimensions of the attention kernels for a shape; `None` when there are no such kernels: other dtypes, or head
/// dimensions above 256.
pub(super) fn head_dims(shape: &AttnShape) -> Option<(i64, i64)> {
    if !matches!(shape.dtype, DType::Bf16 | DType::F16) {
        return None;
    }
    let holds = |&&(d, dv): &&(i64, i64)| shape.head_dim <= d && shape.head_dim_v <= dv;
    HEAD_DIMS.iter().find(holds).copied()
}

/// What an attention kernel is compiled with, in the order of kernels/variants.txt.
pub(super) fn defines(head_dims: (i64, i64), dtype: DType, switches: &[(bool, &str)]) -> Vec<String> {
    let (d, dv) = head_dims;
    let mut defines = vec![format!("HEAD_DIM={d}"), format!("HEAD_DIM_V={dv}")];
    let f16 = [(dtype == DType::F16, "DTYPE_F16")];
    let on = f16.iter().chain(switches).filter(|(on, _)| *on);
    defines.extend(on.map(|(_, text)| (*text).to_owned()));
    defines
}

impl ForwardChoice {
    /// The kernel for a shape; `None` when there is none: other dtypes, or head dimensions above 256.
    pub fn new(shape: &AttnShape, softcap: bool, max_logits: bool, general: bool) -> Option<ForwardChoice> {
        Some(ForwardChoice {
            head_dims: head_dims(shape)?,
            dtype: shape.dtype,
            softcap,
            max_logits,
            general: general || shape.head_dim_v % 8 != 0,
        })
    }

    /// Name of the variant in kernels/variants.txt, or for the cache.
    fn name(&self) -> String {
        let (d, dv) = self.head_dims;
        let mut name = String::from("attn_forward");
        for (switch, part) in [
            (self.general, "_general"),
            (self.softcap, "_softcap"),
            (self.max_logits, "_max_logits"),
        ] {
            name += if switch { part } else { "" };
        }
        name += &format!("_{}_{d}", self.dtype.name());
        if d == dv { name } else { name + &format!("_{dv}") }
    }

    /// How it is compiled.
    pub fn variant(&self) -> Variant {
        let name = self.name();
        if let Ok(listed) = embedded::listed(&name) {
            return listed.clone();
        }
        let defines = defines(
            self.head_dims,
            self.dtype,
            &[
                (self.general, "GENERAL=1"),
                (self.softcap, "SOFTCAP=1"),
                (self.max_logits, "MAX_LOGITS=1"),
            ],
        );
        let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
        Variant::new(
            &name,
            Kind::Attention,
            "attn_forward.cu",
            &["magi_attn_forward"],
            &defines,
        )
    }
}

/// A forward kernel on a device, and its sizes.
#[derive(Clone, Debug)]
pub struct ForwardKernel {
    /// What it was chosen for.
    pub choice: ForwardChoice,
    /// Rows of a tile.
    pub block_q: i32,
    /// Keys of a step.
    pub block_k: i32,
    /// Threads of a thread block.
    pub threads: u32,
    /// Dynamic shared memory of a thread block.
    pub shared_bytes: u32,
    /// To be launched.
    pub function: Function,
    /// Keeps the function valid.
    _kernels: Arc<Kernels>,
}

impl ForwardKernel {
    /// Loads the kernel, compiling it first where it was not compiled ahead of time: prepare time only.
    pub fn load(gpu: &Arc<Gpu>, choice: ForwardChoice) -> Result<ForwardKernel> {
        let kernels = kernels::load(gpu, &choice.variant())?;
        let sizes = kernels.read_ints::<4>("magi_attn_forward_sizes")?;
        let function = kernels.function("magi_attn_forward")?;
        let [block_q, block_k, threads, shared_bytes] = sizes;
        if block_q <= 0 || block_k <= 0 || threads <= 0 || shared_bytes <= 0 {
            return Err(Error::internal(format!(
                "a forward kernel of the sizes {sizes:?}"
            )));
        }
        function.set_max_shared(shared_bytes as u32)?;
        Ok(ForwardKernel {
            choice,
            block_q,
            block_k,
            threads: threads as u32,
            shared_bytes: shared_bytes as u32,
            function,
            _kernels: kernels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(head_dim: i64, head_dim_v: i64, dtype: DType) -> AttnShape {
        AttnShape {
            heads_q: 8,
            heads_kv: 2,
            head_dim,
            head_dim_v,
            dtype,
        }
    }

    #[test]
    fn head_dims_are_padded_up() {
        let of =
            |d, dv| ForwardChoice::new(&shape(d, dv, DType::Bf16), false, false, false).map(|c| c.head_dims);
        assert_eq!(of(1, 64), Some((64, 64)));
        assert_eq!(of(65, 16), Some((96, 96)));
        assert_eq!(of(80, 128), Some((128, 128)));
        assert_eq!(of(192, 128), Some((192, 128)));
        assert_eq!(of(129, 130), Some((192, 192)));
        assert_eq!(of(8, 256), Some((256, 256)));
        assert_eq!(of(257, 64), None);
        assert!(ForwardChoice::new(&shape(64, 64, DType::F32), false, false, false).is_none());
    }

    #[test]
    fn rows_that_end_inside_16_bytes_are_not_left_to_the_copy_engine() {
        for head_dim_v in 8..=256 {
            for dtype in [DType::Bf16, DType::F16] {
                let general = |asked| {
                    ForwardChoice::new(&shape(64, head_dim_v, dtype), false, false, asked).map(|c| c.general)
                };
                assert_eq!(general(false), Some(head_dim_v * 2 % 16 != 0), "{head_dim_v}");
                assert_eq!(general(true), Some(true));
            }
        }
    }

    /// A listed variant is compiled as the library would compile it at run time.
    #[test]
    fn listed_variants_are_what_their_names_say() {
        let mut listed = 0;
        for dtype in [DType::Bf16, DType::F16] {
            for head_dims in HEAD_DIMS {
                for bits in 0..8 {
                    let choice = ForwardChoice {
                        head_dims,
                        dtype,
                        softcap: bits & 1 != 0,
                        max_logits: bits & 2 != 0,
                        general: bits & 4 != 0,
                    };
                    let variant = choice.variant();
                    let has = |d: &str| variant.defines.iter().any(|x| x == d);
                    assert!(has(&format!("HEAD_DIM={}", head_dims.0)), "{variant:?}");
                    assert!(has(&format!("HEAD_DIM_V={}", head_dims.1)), "{variant:?}");
                    assert_eq!(has("DTYPE_F16"), dtype == DType::F16, "{variant:?}");
                    assert_eq!(has("SOFTCAP=1"), choice.softcap, "{variant:?}");
                    assert_eq!(has("MAX_LOGITS=1"), choice.max_logits, "{variant:?}");
                    assert_eq!(has("GENERAL=1"), choice.general, "{variant:?}");
                    listed += usize::from(embedded::listed(&variant.name).is_ok());
                }
            }
        }
        assert!(
            listed >= 12,
            "{listed} forward kernels are compiled ahead of time"
        );
    }
}
