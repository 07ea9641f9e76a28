//! How fast kernels and links are, for predictions.

use super::{Error, Result};

/// What the planner's cost model multiplies with. Integers, so that every machine predicts the same times.
///
/// The defaults are bf16 rates of one H200 among four of a host, measured at commit 60073f4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rates {
    /// GFLOP/s of the forward kernel on visible cells, for head_dim up to 64, up to 128, and above.
    pub forward_gflops: [i64; 3],
    /// The same for the backward kernel.
    pub backward_gflops: [i64; 3],
    /// MB/s that a rank receives while all ranks do, one direction.
    pub link_mb_per_s: i64,
    /// Nanoseconds that a transfer takes before its first byte counts.
    pub link_latency_ns: i64,
    /// Nanoseconds that a stage's kernel takes beyond its cells.
    pub kernel_latency_ns: i64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates {
            // By bench/calibrate.py, but for backward at 128: whole calls of the kernels since then.
            forward_gflops: [550_000, 705_000, 832_000],
            backward_gflops: [448_000, 580_000, 313_000],
            // All-to-all through NCCL, over NVLink.
            link_mb_per_s: 422_000,
            // Of 0.55 to 1.2 ms that fetches of 0.2 GB a rank took, what bytes do not explain where nobody was late.
            // calibrate.py says 285 us, which includes ranks that are late.
            link_latency_ns: 60_000,
            kernel_latency_ns: 31_000,
        }
    }
}

/// cbindgen:ignore
impl Rates {
    /// Largest of any rate, and of any latency.
    pub const MAX: i64 = 1_000_000_000_000;

    /// These rates with those in `text` above them: parts `name=value` joined by `;`, the names being those of the fields, three
    /// values joined by `,` for GFLOP/s. `None` for any other text, a name given twice, or a value that `validate` refuses.
    pub fn with(self, text: &str) -> Option<Rates> {
        let (mut rates, mut named) = (self, Vec::new());
        for part in text.split(';') {
            let (name, values) = part.split_once('=')?;
            let values: Vec<i64> = values.split(',').map(|v| v.parse().ok()).collect::<Option<_>>()?;
            let one = <[i64; 1]>::try_from(values.as_slice()).map(|[one]| one);
            match name {
                "forward_gflops" => rates.forward_gflops = values.try_into().ok()?,
                "backward_gflops" => rates.backward_gflops = values.try_into().ok()?,
                "link_mb_per_s" => rates.link_mb_per_s = one.ok()?,
                "link_latency_ns" => rates.link_latency_ns = one.ok()?,
                "kernel_latency_ns" => rates.kernel_latency_ns = one.ok()?,
                _ => return None,
            }
            if named.contains(&name) {
                return None;
            }
            named.push(name);
        }
        rates.validate().ok().map(|()| rates)
    }

    /// `Status::InvalidArgument` naming the first rate outside 1 to `MAX`, or latency outside 0 to `MAX`.
    pub fn validate(&self) -> Result<()> {
        let rates = [
            ("forward_gflops[0]", self.forward_gflops[0], 1),
            ("forward_gflops[1]", self.forward_gflops[1], 1),
            ("forward_gflops[2]", self.forward_gflops[2], 1),
            ("backward_gflops[0]", self.backward_gflops[0], 1),
            ("backward_gflops[1]", self.backward_gflops[1], 1),
            ("backward_gflops[2]", self.backward_gflops[2], 1),
            ("link_mb_per_s", self.link_mb_per_s, 1),
            ("link_latency_ns", self.link_latency_ns, 0),
            ("kernel_latency_ns", self.kernel_latency_ns, 0),
        ];
        for (name, value, least) in rates {
            if !(least..=Self::MAX).contains(&value) {
                let most = Self::MAX;
                let message = format!("{name} is {value}; it must be {least} to {most}");
                return Err(Error::argument(message));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_sets_what_it_names() {
        let all = "forward_gflops=1,2,3;backward_gflops=4,5,6;link_mb_per_s=7;link_latency_ns=0;kernel_latency_ns=9";
        let want = Rates {
            forward_gflops: [1, 2, 3],
            backward_gflops: [4, 5, 6],
            link_mb_per_s: 7,
            link_latency_ns: 0,
            kernel_latency_ns: 9,
        };
        assert_eq!(Rates::default().with(all), Some(want));
        let one = Rates {
            link_mb_per_s: 1_000_000_000_000,
            ..want
        };
        assert_eq!(want.with("link_mb_per_s=1000000000000"), Some(one));
    }

    #[test]
    fn other_text_sets_nothing() {
        for text in [
            "",
            ";",
            "link_mb_per_s",
            "link_mb_per_s=",
            "link_mb_per_s=0",
            "link_mb_per_s=1000000000001",
            "link_mb_per_s=1,2",
            "link_mb_per_s=1;",
            "link_mb_per_s=1;link_mb_per_s=1",
            "link_mb_per_s =1",
            "link_latency_ns=-1",
            "link_latency_ns=1.5",
            "forward_gflops=1,2",
            "forward_gflops=1,2,3,4",
            "forward_gflops=1,0,3",
            "gflops=1",
        ] {
            assert_eq!(Rates::default().with(text), None, "{text}");
        }
    }
}
