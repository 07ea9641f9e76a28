//! The process environment, in processes of their own.

use std::process::Command;

use magi_attn::types::{Config, env};

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
                Ok(config) => println!("\n{call}: cache_size {}", config.cache_size),
                Err(error) => println!("\n{call}: {:?} {error}", error.status),
            }
        }
        println!("unknown: {:?}", env::unknown());
        return;
    }
    let size = "MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE";
    let good = report(&[(size, "7"), ("MAGI_ATTENTION_QO_COMM", "1")]);
    for line in ["first: cache_size 7", "second: cache_size 7", "unknown: []"] {
        assert!(good.lines().any(|l| l == line), "{good}");
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
