//! The process environment, in processes of their own.

use std::process::Command;

use magi_attn::types::{Config, Rates, env};

/// Set for the process that reports, not a name of the library.
const REPORT: &str = "REPORT_SETTINGS";

/// What a process with these variables reports: its settings twice, then the names it does not know.
fn report(variables: &[(&str, &str)]) -> String {
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "settings_follow_the_environment_of_the_process",
            "--nocapture",
        ])
        .env_clear()
        .env(REPORT, "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn settings_follow_the_environment_of_the_process() {
    if std::env::var_os(REPORT).is_some() {
        for call in ["first", "second"] {
            match Config::from_env() {
                Ok(config) => println!(
                    "\n{call}: cache_size {} {:?} {:?}",
                    config.cache_size, config.bwd_hide_tail_reduce, config.rates
                ),
                Err(error) => println!("\n{call}: {:?} {error}", error.status),
            }
        }
        println!("unknown: {:?}", env::unknown());
        return;
    }
    let size = "MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE";
    let good = report(&[(size, "7"), ("MAGI_ATTENTION_QO_COMM", "1")]);
    let settings = |order, rates: Rates| format!("cache_size 7 {order} {rates:?}");
    let plain = settings("Auto", Rates::default());
    for line in [
        format!("first: {plain}"),
        format!("second: {plain}"),
        "unknown: []".to_owned(),
    ] {
        assert!(good.lines().any(|l| l == line), "{good}");
    }
    let (order, rates) = ("MAGI_ATTENTION_BWD_HIDE_TAIL_REDUCE", "MAGI_ATTENTION_RATES");
    let text = "backward_gflops=400,500,600;link_mb_per_s=70;kernel_latency_ns=0";
    let measured = report(&[(size, "7"), (order, "1"), (rates, text)]);
    let want = Rates {
        backward_gflops: [400, 500, 600],
        link_mb_per_s: 70,
        kernel_latency_ns: 0,
        ..Rates::default()
    };
    let line = format!("first: {}", settings("Last", want));
    assert!(measured.lines().any(|l| l == line), "{measured}");
    for (name, text, accepted) in [
        (order, "3", "a whole number, -1 to 2"),
        (order, "true", "a whole number, -1 to 2"),
        (rates, "link_mb_per_s=0", "name=value parts joined by"),
        (
            rates,
            "link_mb_per_s=1,link_latency_ns=1",
            "name=value parts joined by",
        ),
    ] {
        let told = report(&[(name, text)]);
        let start = format!("first: InvalidEnvironment {name} is {text:?}; it must be {accepted}");
        assert!(told.lines().any(|l| l.starts_with(&start)), "{told}");
    }
    let bad = report(&[(size, "many"), ("MAGI_ATTENTION_QOCOMM", "1")]);
    for line in [
        format!("first: InvalidEnvironment {size} is \"many\"; it must be a whole number, 0 to 1000000"),
        format!("second: InvalidEnvironment {size} is \"many\"; it must be a whole number, 0 to 1000000"),
        "unknown: [\"MAGI_ATTENTION_QOCOMM\"]".to_owned(),
    ] {
        assert!(bad.lines().any(|l| l == line), "{bad}");
    }
}
