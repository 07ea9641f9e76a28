//! The backward kernels' source compiled for the processor, their inputs at random, and what they give in f64.
#![allow(dead_code)] // Every test program includes all of it and uses its own part.

pub mod case;
pub mod keys;
pub mod masks;
pub mod queries;
mod reference;

use std::path::{Path, PathBuf};
use std::process::Command;

use magi_attn::backend::cuda::{embedded, source};

/// A small generator of the same numbers everywhere.
pub struct Dice(pub u64);

impl Dice {
    /// From 0, below `n`.
    pub fn below(&mut self, n: i64) -> i64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as i64
    }

    /// About normal, of deviation 1.
    pub fn normal(&mut self) -> f64 {
        (0..12)
            .map(|_| self.below(1 << 20) as f64 / f64::from(1 << 20))
            .sum::<f64>()
            - 6.0
    }
}

/// One compilation of the kernel.
pub struct Variant {
    pub name: &'static str,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub f16: bool,
    pub defines: &'static [&'static str],
}

impl Variant {
    /// Builds the program that runs a case of kernels/attn_`kernel`.cu, tests/wrappers/`kernel`.cpp; `None` (said aloud)
    /// without a C++ compiler.
    pub fn build(&self, kernel: &str) -> Option<PathBuf> {
        let wrappers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrappers");
        let replaced: Vec<(String, String)> = ["types", "barrier", "math", "memory", "wgmma", "launch"]
            .map(|name| {
                let text = std::fs::read_to_string(wrappers.join(format!("{name}.cuh"))).unwrap();
                (format!("ptx/{name}.cuh"), text)
            })
            .into();
        let read = |name: &str| {
            let ours = replaced
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, text)| text.as_str());
            let theirs = || {
                embedded::SOURCES
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, text)| *text)
            };
            ours.or_else(theirs)
        };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{kernel}_kernel"))
            .join(self.name);
        std::fs::create_dir_all(&folder).unwrap();
        let (kernels, program) = (folder.join("kernels.inc"), folder.join(kernel));
        let text = source::flatten(&format!("attn_{kernel}.cu"), &read).unwrap();
        std::fs::write(&kernels, text).unwrap();
        let output = Command::new("c++")
            .args([
                "-std=c++17",
                "-O1",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-w",
            ])
            .arg(format!("-DKERNELS=\"{}\"", kernels.display()))
            .arg(format!("-DHEAD_DIM={}", self.head_dim))
            .arg(format!("-DHEAD_DIM_V={}", self.head_dim_v))
            .args(self.f16.then_some("-DDTYPE_F16"))
            .args(self.defines)
            .arg(wrappers.join(format!("{kernel}.cpp")))
            .arg("-o")
            .arg(&program)
            .output();
        match output {
            Ok(output) => {
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                Some(program)
            }
            Err(e) => {
                println!("skipped: no C++ compiler ({e})");
                None
            }
        }
    }

    /// The nearest number of the input dtype.
    pub fn round(&self, x: f64) -> u16 {
        let (bits, x) = (self.mantissa(), x as f32);
        if self.f16 {
            // Of what is drawn here nothing leaves the range of normal numbers but what is as good as 0.
            let e = x.abs().max(6.2e-5).log2().floor();
            let scaled = (x / (e - bits).exp2()).round_ties_even() as i32;
            let magnitude = scaled.unsigned_abs() as u16;
            let exponent = (e as i32 + 14) as u16;
            if magnitude < 1024 {
                0
            } else {
                u16::from(x < 0.0) << 15 | ((exponent << 10) + magnitude)
            }
        } else {
            let wide = x.to_bits();
            ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16) as u16
        }
    }

    fn mantissa(&self) -> f32 {
        if self.f16 { 10.0 } else { 7.0 }
    }

    /// What its bits stand for.
    pub fn widen(&self, bits: u16) -> f64 {
        if !self.f16 {
            return f64::from(f32::from_bits(u32::from(bits) << 16));
        }
        let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        let magnitude = match exponent {
            31 => f64::NAN,
            0 => fraction * (-24f64).exp2(),
            e => (1024.0 + fraction) * f64::from(e - 25).exp2(),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }
}
