use magi_attn::types::*;
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        let (a, b) = (self.unit().max(1e-300), self.unit());
        (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }
}
fn packed(seed: u64, total: i64) -> Mask {
    let mut r = Random(seed);
    let mut at = 0;
    let mut t = vec![];
    while at < total {
        let l = (4096.0 * (1.2 * r.normal()).exp()) as i64;
        if l < 1 || l > total / 4 {
            continue;
        }
        let e = (at + l).min(total);
        let x = Range::new(at, e);
        t.push(TypedSlice {
            q: x,
            k: x,
            mask_type: MaskType::Causal,
        });
        at = e;
    }
    Mask::new(&t, total, total).unwrap()
}
fn main() {
    let dbg = std::env::args().any(|a| a == "-v");
    for effort in [Effort::Fast, Effort::Thorough] {
        for w in [8usize, 16, 64] {
            let mut sum = [0.0; 8];
            let mut most = [0f64; 8];
            let n = 10;
            for seed in 1..=n {
                let r = magi_attn::plan::experiment(&packed(seed, 8192 * w as i64), w, 1024, effort);
                if dbg {
                    println!("{r:.3?}");
                }
                for i in 0..8 {
                    sum[i] += r[i] / n as f64;
                    most[i] = most[i].max(r[i]);
                }
            }
            println!(
                "{effort:?} R {w}: greedy {:.0} ratio {:.3} worst {:.3} bal greedy {:.4} ours {:.4} sends greedy {:.2} ours {:.2} time {:.0}us (max {:.0})",
                sum[0], sum[1], most[1], sum[2], most[3], most[4], most[5], sum[6], most[6]
            );
        }
    }
    let text = std::fs::read_to_string("tests/cases/plan_benchmark.json").unwrap();
    let v: serde_json::Value = serde_json::from_str(&text).unwrap();
    for c in v.as_array().unwrap() {
        let g = |k: &str| c[k].as_i64().unwrap();
        let t: Vec<TypedSlice> = c["q_ranges"]
            .as_array()
            .unwrap()
            .iter()
            .zip(c["k_ranges"].as_array().unwrap())
            .zip(c["types"].as_array().unwrap())
            .map(|((q, k), t)| {
                let r = |x: &serde_json::Value| Range::new(x[0].as_i64().unwrap(), x[1].as_i64().unwrap());
                TypedSlice {
                    q: r(q),
                    k: r(k),
                    mask_type: if t == "full" {
                        MaskType::Full
                    } else {
                        MaskType::Causal
                    },
                }
            })
            .collect();
        let m = Mask::new(&t, g("tokens"), g("tokens")).unwrap();
        for ch in [g("chunk"), 0] {
            for e in [Effort::Fast, Effort::Thorough] {
                println!(
                    "{} {ch} {e:?} {:.3?}",
                    c["name"],
                    magi_attn::plan::experiment(&m, g("cp") as usize, ch, e)
                );
            }
        }
    }
    let m = Mask::from_slices(
        (0..20000)
            .map(|i| {
                let r = Range::new(i * 500, i * 500 + 500);
                Slice::new(r, r, Band::new(Band::NO_LO, 0))
            })
            .collect(),
        10_000_000,
        10_000_000,
    )
    .unwrap();
    println!(
        "10M {:.3?}",
        magi_attn::plan::experiment(&m, 1024, 0, Effort::Fast)
    );
}
