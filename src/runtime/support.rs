//! What would compute a call on one device, or why nothing can.

use super::attn_args::scale;
use super::check;
use super::on_gpu;
use super::single::Choice;
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::embedded;
use crate::backend::cuda::forward_kernel::ForwardChoice;
use crate::device::cuda::{Gpu, Properties};
use crate::types::{AttnShape, Device, Error, Result, Status};

/// What a call asks for beside q, k, v and out; each is one bit of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Wish {
    /// Gradients too.
    Backward = 1,
    /// A sink.
    Sink = 2,
    /// The maximum logit of each head.
    MaxLogits = 4,
    /// out in the accumulator type.
    AccOut = 8,
    /// Merging into an earlier out and lse.
    Accumulate = 16,
    /// The mask as ranges in memory of the device.
    DeviceRanges = 32,
    /// Probabilities that are dropped at random.
    Dropout = 64,
    /// An addend to each logit, ALiBi too.
    Bias = 128,
    /// Tensors in an 8-bit floating-point type.
    Fp8 = 256,
    /// Keys and values in pages that a table names.
    PagedKeys = 512,
    /// A mask of its own for each head.
    HeadMasks = 1024,
    /// Gradients that come in for lse.
    LseGradient = 2048,
}

/// What no device of this build computes, and why.
const NEVER: [(Wish, &str); 6] = [
    (
        Wish::Dropout,
        "dropout: kernels keep no random numbers, which backward would have to draw again",
    ),
    (
        Wish::Bias,
        "additive bias and ALiBi: logits are scale * (q . k), capped or not; no kernel reads an addend",
    ),
    (
        Wish::Fp8,
        "fp8: attention takes f64, f32, bf16 and f16; there is no scale for an 8-bit type",
    ),
    (
        Wish::PagedKeys,
        "paged keys: keys and values are one tensor each; no kernel reads a page table",
    ),
    (
        Wish::HeadMasks,
        "per-head masks: one mask and one plan hold for all heads; call once for each group of heads",
    ),
    (
        Wish::LseGradient,
        "gradients into lse: backward takes the gradient of out only",
    ),
];

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Where the tensors lie.
    pub device: Device,
    /// Heads, dimensions and dtype.
    pub shape: AttnShape,
    /// Which kernels are asked for.
    pub backend: Choice,
    /// 0 stands for 1 / sqrt(head_dim).
    pub softmax_scale: f64,
    /// 0 is off.
    pub softcap: f64,
    /// Bits of `Wish`.
    pub wishes: u32,
}

impl Question {
    fn wants(&self, wish: Wish) -> bool {
        self.wishes & wish as u32 != 0
    }

    /// Reasons that hold on every device.
    fn never(&self) -> Vec<String> {
        let asked = NEVER.iter().filter(|(wish, _)| self.wants(*wish));
        let mut reasons: Vec<String> = asked.map(|(_, why)| (*why).to_owned()).collect();
        if self.wants(Wish::Sink) && self.wants(Wish::Accumulate) {
            reasons.push("a sink with accumulate: the earlier result holds the sink".to_owned());
        }
        reasons
    }
}

/// The two passes in words, and what no device computes. `Status::NotSupported` with every reason when the question's
/// forward, or its backward if asked for, cannot be computed; `Status::NoDevice` when there is no such device.
pub fn explain(q: &Question) -> Result<String> {
    check::numbers("", q.softmax_scale, q.softcap)?;
    let mut reasons = q.never();
    let (forward, backward) = match q.device {
        Device::Cpu => on_cpu(q, &mut reasons),
        Device::Cuda(ordinal) => on_cuda(q, &*Gpu::open(ordinal)?, &mut reasons),
    };
    if !reasons.is_empty() {
        return Err(Error::new(Status::NotSupported, reasons.join("; ")));
    }
    let mut text = format!("forward: {forward}\nbackward: {backward}\nnot supported on any device:\n");
    for (_, why) in NEVER {
        text += &format!("  {why}\n");
    }
    Ok(text)
}

fn on_cpu(q: &Question, reasons: &mut Vec<String>) -> (String, String) {
    if q.backend == Choice::Ffa {
        reasons.push("backend ffa: the fast kernels need a CUDA device".to_owned());
    }
    let text = "the CPU, in f64 inside".to_owned();
    (text.clone(), text)
}

fn on_cuda(q: &Question, gpu: &Gpu, reasons: &mut Vec<String>) -> (String, String) {
    let p = gpu.properties();
    let fast = match q.backend {
        Choice::Sdpa => vec!["the backend is sdpa".to_owned()],
        _ => on_gpu::reasons(&q.shape, scale(q.softmax_scale, q.shape.head_dim), q.softcap, gpu),
    };
    if q.backend == Choice::Ffa {
        reasons.extend(fast.iter().map(|why| format!("backend ffa: {why}")));
    } else if p.major < 8 && !fast.is_empty() {
        reasons.push(format!(
            "CUDA device {} ({}) has compute capability {}.{}; the textbook kernels need 8.0 or later",
            gpu.ordinal(),
            p.name,
            p.major,
            p.minor
        ));
    }
    if q.wants(Wish::DeviceRanges) && q.backend != Choice::Ffa {
        reasons.extend(
            fast.iter()
                .map(|why| format!("ranges on the device need the fast kernels: {why}")),
        );
    }
    let place = place(gpu.ordinal(), p);
    let text = |name: Option<String>, why: &[String]| match name.filter(|_| why.is_empty()) {
        Some(name) => format!("{name}, {place}"),
        None => format!("textbook kernels, {place}; not the fast ones: {}", why.join("; ")),
    };
    (text(fast_forward(q), &fast), text(fast_backward(q), &fast))
}

fn place(ordinal: i32, p: &Properties) -> String {
    format!(
        "on CUDA device {ordinal} ({}, compute capability {}.{})",
        p.name, p.major, p.minor
    )
}

/// How a kernel of this name comes to the device.
fn named(name: &str) -> String {
    let when = match embedded::CUBINS.iter().any(|(built, _)| *built == name) {
        true => "compiled ahead of time",
        false => "compiled at the first use",
    };
    format!("the fast kernel {name}, {when}")
}

/// The fast forward kernel. Where heads share tiles or long tiles are cut, which the mask decides, its general form.
fn fast_forward(q: &Question) -> Option<String> {
    let general = [Wish::Sink, Wish::AccOut, Wish::Accumulate]
        .iter()
        .any(|w| q.wants(*w));
    let choice = ForwardChoice::new(&q.shape, q.softcap > 0.0, q.wants(Wish::MaxLogits), general)?;
    Some(named(&choice.variant().name))
}

/// The fast backward kernels, those of deterministic mode, which short rows have too, in brackets.
fn fast_backward(q: &Question) -> Option<String> {
    let names = |deterministic: bool| {
        let choice = BackwardChoice::new(&q.shape, q.softcap > 0.0, deterministic)?;
        let kernels = choice.kernels().iter();
        let names: Vec<String> = kernels.map(|&g| named(&choice.variant(g).name)).collect();
        Some(names.join(", then "))
    };
    Some(format!(
        "{} (deterministic, or for a mask whose queries see few keys: {})",
        names(false)?,
        names(true)?
    ))
}
