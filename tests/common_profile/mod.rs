//! What holds of every measured call, wherever its ranks are.
#![allow(dead_code)] // Every test program includes all of it and uses its own part.

use magi_attn::plan::{Measured, Travel};
use magi_attn::runtime::Key;
use serde_json::Value;

/// What the last call of pass 0 or 1 on one rank did: stages follow each other, transfers lie where the plan has some, and
/// waiting is what computing leaves.
pub fn checked(key: &Key, pass: usize) -> Measured {
    let measured = key.measured(pass).unwrap();
    let stages = &[&key.plan().forward, &key.plan().backward][pass].stages;
    assert_eq!(measured.stages.len(), stages.len());
    let mut free = 0;
    for (i, (times, stage)) in measured.stages.iter().zip(stages).enumerate() {
        let (fetch, compute, reduce) = (times.fetch, times.compute, times.reduce);
        assert!(fetch.end <= compute.start, "stage {i}: {times:?}");
        assert!(free <= compute.start, "stage {i}: {times:?} after {free}");
        let (keys, guests) = (!stage.is_idle(), !stage.guests.transfer.is_empty());
        assert_eq!(fetch.end > 0, keys || guests, "stage {i}: {times:?}");
        assert_eq!(
            reduce.end > 0,
            guests || (keys && pass == 1),
            "stage {i}: {times:?}"
        );
        if reduce.end > 0 {
            assert!(compute.end <= reduce.start, "stage {i}: {times:?}");
        }
        assert!(times.end() <= measured.end, "stage {i}: {times:?}");
        free = compute.end;
    }
    for (i, wait) in measured.waits.iter().enumerate() {
        assert!(0 <= wait.at.start && wait.at.end <= measured.end, "{wait:?}");
        assert!(
            i == 0 || measured.waits[i - 1].at.end <= wait.at.start,
            "{wait:?}"
        );
        let apart = |c: &magi_attn::plan::StageTimes| {
            c.compute.end <= wait.at.start || wait.at.end <= c.compute.start
        };
        assert!(measured.stages.iter().all(apart), "{wait:?}");
    }
    let computing: i64 = measured.stages.iter().map(|s| s.compute.len()).sum();
    assert!(measured.exposed() + computing <= measured.end);
    measured
}

/// The trace of a rank whose passes were both measured as these.
pub fn check_trace(key: &Key, passes: [&Measured; 2]) {
    let text = key.trace().unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let events = all["traceEvents"].as_array().unwrap();
    let rank = key.context().rank() as i64;
    assert!(events.iter().all(|e| e["pid"].as_i64() == Some(rank)));
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).collect::<Vec<_>>();
    assert_eq!(named("process_name")[0]["args"]["name"], format!("rank {rank}"));
    let rows: Vec<&str> = named("thread_name")
        .iter()
        .map(|e| e["args"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(rows, ["compute", "fetch", "reduce"]);
    let mut ends = Vec::new();
    for (name, measured) in ["forward", "backward"].into_iter().zip(passes) {
        let whole = named(name);
        let [whole] = whole[..] else {
            panic!("{name} is there {} times", whole.len());
        };
        let us = |e: &Value, field: &str| e[field].as_f64().unwrap();
        let near = |got: f64, ns: i64| assert!((got - ns as f64 / 1e3).abs() < 1e-2, "{got} {ns}");
        near(us(whole, "dur"), measured.end);
        near(us(&whole["args"], "exposed_us"), measured.exposed());
        let plans = [&key.plan().forward, &key.plan().backward];
        let plan = plans[usize::from(name == "backward")];
        for (i, (times, stage)) in measured.stages.iter().zip(&plan.stages).enumerate() {
            let lanes = [times.compute, times.fetch, times.reduce];
            for (row, (lane, at)) in rows.iter().zip(lanes).enumerate() {
                let found = named(&format!("{name} stage {i}: {lane}"));
                assert_eq!(found.len(), usize::from(!at.is_empty()), "{name} {i} {lane}");
                for e in found {
                    assert_eq!(
                        (e["ph"].as_str(), e["tid"].as_u64()),
                        (Some("X"), Some(row as u64))
                    );
                    near(us(e, "ts") - us(whole, "ts"), at.start);
                    near(us(e, "dur"), at.len());
                    match row {
                        0 => assert_eq!(e["args"]["cells"], stage.cells()),
                        _ => assert_eq!(e["args"]["keys_received"], stage.transfer.recv_rows),
                    }
                }
            }
        }
        ends.push(us(whole, "ts"));
    }
    // The first begins the trace, the other comes after it.
    assert!(
        ends[0] == 0.0 && ends[1] * 1e3 >= passes[0].end as f64 - 10.0,
        "{ends:?}"
    );
}

/// The picture of a rank whose passes were both measured.
pub fn check_drawing(key: &Key) {
    let svg = key.draw_measured().unwrap();
    let world = key.context().size();
    let title = format!(
        "rank {} of {world}, measured above predicted",
        key.context().rank()
    );
    for part in [
        title.as_str(),
        "forward pass, in stages",
        "backward pass, in stages",
        "measured: ",
        "predicted by the config's rates: ",
    ] {
        assert!(svg.contains(part), "{part} is not in {svg}");
    }
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
}

/// How long nothing was computed because of a stage's fetch.
pub fn fetch_wait(measured: &Measured, stage: usize) -> i64 {
    measured.waited(Travel::Fetch, stage)
}
