//! docs/environment.md is what the table of variables says, and the table is what the library does.
//!
//! `MAGI_UPDATE_DOCS=1 cargo test --test around_env` writes the page instead of complaining.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use magi_attn::types::Status;
use magi_attn::types::env::{Acts, Effect, Kind, Settings, TABLE, Variable, parse, unknown_in};

const HEAD: &str = "\
# Environment variables

The variables below are read once per process, at the first call of `magi_config_init` (or of a function that is given no \
config). They change defaults only: a field of `magi_config` that is set afterwards wins, and a variable that is changed \
later changes nothing. Those that act at *build* are read by cargo's build too, where kernels are compiled ahead of time, and \
otherwise when a kernel is compiled at run time: see [build](build.md). `magi_env_count` and `magi_env_get` list them with the values in force.

A value that does not parse is `MAGI_STATUS_INVALID_ENVIRONMENT`, with the variable and its text in the message; variables \
without effect may hold anything. Booleans take 0, 1, false, true, off, on, no and yes, in letters of any case. A name that \
starts with `MAGI_ATTENTION_` and is not listed is probably misspelt: `magi_config_init` logs a warning, once. Variables of launchers are asked for \
by `magi_comm_create_from_env` alone, which says what is missing; an empty one counts as not set.
";

fn shown(text: &str) -> String {
    if text.is_empty() {
        "unset".to_owned()
    } else {
        format!("`{text}`")
    }
}

fn acts(variable: &Variable) -> &'static str {
    match variable.acts {
        Acts::Build => "build",
        Acts::Key => "key creation",
        Acts::Run => "run",
    }
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(
        "\n## Honoured\n\n| variable | takes | default | acts at | meaning |\n|---|---|---|---|---|\n",
    );
    for v in TABLE {
        if let Effect::Sets(_) | Effect::Builds | Effect::Launches = v.effect {
            let (takes, default) = (v.kind.accepts(), shown(v.default));
            writeln!(
                page,
                "| `{}` | {takes} | {default} | {} | {} |",
                v.name,
                acts(v),
                v.meaning
            )
            .unwrap();
        }
    }
    page.push_str(
        "\n## Accepted, no effect here\n\nScripts that set these need no change.\n\n\
         | variable | default | acts at | what it is for | no effect because |\n|---|---|---|---|---|\n",
    );
    for v in TABLE {
        if let Effect::None(why) = v.effect {
            let default = shown(v.default);
            writeln!(
                page,
                "| `{}` | {default} | {} | {} | {why} |",
                v.name,
                acts(v),
                v.meaning
            )
            .unwrap();
        }
    }
    page
}

#[test]
fn the_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/environment.md");
    let (have, want) = (fs::read_to_string(&path).unwrap_or_default(), page());
    if have == want {
        return;
    }
    if std::env::var_os("MAGI_UPDATE_DOCS").is_some_and(|v| v == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, want).unwrap();
        return;
    }
    panic!(
        "docs/environment.md is out of date; MAGI_UPDATE_DOCS=1 cargo test --test around_env writes it anew"
    );
}

#[test]
fn names_are_unique_and_known() {
    let names: HashSet<&str> = TABLE.iter().map(|v| v.name).collect();
    assert_eq!(names.len(), TABLE.len());
    assert!(unknown_in(TABLE.iter().map(|v| v.name)).is_empty());
    assert!(
        TABLE
            .iter()
            .all(|v| v.meaning.ends_with('.') && !v.meaning.contains('|'))
    );
}

/// What is promised to users of other implementations: names with their defaults, "" for unset. Leaving one out of the
/// table would break their scripts.
const PROMISED: [(&str, &str); 37] = [
    ("MAGI_ATTENTION_FORWARD_HIGH_PRECISION_REDUCE", "0"),
    ("MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE", "0"),
    ("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "none"),
    ("MAGI_ATTENTION_HIERARCHICAL_COMM", "0"),
    ("MAGI_ATTENTION_FFA_FORWARD_SM_MARGIN", ""),
    ("MAGI_ATTENTION_FFA_BACKWARD_SM_MARGIN", ""),
    ("CUDA_DEVICE_MAX_CONNECTIONS", "8"),
    ("MAGI_ATTENTION_QO_COMM", "0"),
    ("MAGI_ATTENTION_NATIVE_GRPCOLL", "0"),
    ("MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE", "100"),
    ("MAGI_ATTENTION_SANITY_CHECK", "0"),
    ("MAGI_ATTENTION_SDPA_BACKEND", "0"),
    ("MAGI_ATTENTION_DETERMINISTIC_MODE", "0"),
    ("MAGI_ATTENTION_PROFILE_MODE", "0"),
    ("MAGI_ATTENTION_WORKSPACE_BASE", ""),
    ("MAGI_ATTENTION_BUILD_VERBOSE", "0"),
    ("MAGI_ATTENTION_BUILD_DEBUG", "0"),
    ("MAGI_ATTENTION_NO_BUILD_CACHE", "0"),
    ("MAGI_ATTENTION_FORCE_JIT_BUILD", "0"),
    ("NVCC_THREADS", "4"),
    ("MAGI_ATTENTION_PREBUILD_FFA", "1"),
    ("MAGI_ATTENTION_PREBUILD_FFA_JOBS", ""),
    ("MAX_JOBS", ""),
    ("MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD", "0"),
    ("MAGI_ATTENTION_SKIP_MAGI_ATTN_EXT_BUILD", "0"),
    ("MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD", "0"),
    ("NVSHMEM_DIR", ""),
    ("MAGI_ATTENTION_MIN_CHUNKS_PER_RANK", "8"),
    ("RANK", ""),
    ("WORLD_SIZE", ""),
    ("LOCAL_RANK", ""),
    ("MASTER_ADDR", ""),
    ("MASTER_PORT", ""),
    ("OMPI_COMM_WORLD_RANK", ""),
    ("PMI_RANK", ""),
    ("SLURM_PROCID", ""),
    ("SLURM_LOCALID", ""),
];

/// Variables of later versions, whose defaults nobody promised.
const LATER: [&str; 9] = [
    "MAGI_ATTENTION_KERNEL_BACKEND",
    "MAGI_ATTENTION_PRECISION",
    "MAGI_ATTENTION_LOG_LEVEL",
    "MAGI_ATTENTION_BWD_HIDE_TAIL_REDUCE",
    "MAGI_ATTENTION_AUTO_RANGE_MERGE",
    "MAGI_ATTENTION_CATGQA",
    "MAGI_ATTENTION_FLATTEN_HEAD_GROUPS",
    "MAGI_ATTENTION_CPP_BACKEND",
    "MAGI_ATTENTION_BUILD_COMPUTE_CAPABILITY",
];

#[test]
fn every_promised_name_is_listed() {
    for (name, default) in PROMISED {
        let variable = TABLE.iter().find(|v| v.name == name);
        assert_eq!(variable.map(|v| v.default), Some(default), "{name}");
    }
    for name in LATER {
        assert!(TABLE.iter().any(|v| v.name == name), "{name}");
    }
}

#[test]
fn defaults_are_those_of_the_config_and_bad_values_are_refused() {
    for v in TABLE {
        match v.effect {
            Effect::Sets(_) | Effect::Builds => {
                let settings = parse([(v.name, v.default)]).unwrap();
                assert_eq!(
                    settings,
                    Settings::default(),
                    "the default of {} is another",
                    v.name
                );
                if v.kind == Kind::Text {
                    continue;
                }
                let e = parse([(v.name, "neither")]).unwrap_err();
                assert_eq!(e.status, Status::InvalidEnvironment);
                assert!(
                    e.message.contains(v.name) && e.message.contains(&v.kind.accepts()),
                    "{}",
                    e.message
                );
            }
            // Only magi_comm_create_from_env reads them, and complains.
            Effect::Launches => {
                let settings = parse([(v.name, "neither")]).unwrap();
                assert_eq!(settings, Settings::default(), "{}", v.name);
                assert!(magi_attn::comm::nccl::launch::VARIABLES.contains(&v.name));
            }
            Effect::None(why) => {
                assert!(!why.is_empty());
                let settings = parse([(v.name, "neither")]).unwrap();
                assert_eq!(settings, Settings::default(), "{}", v.name);
            }
        }
    }
}

#[test]
fn bounds_are_where_the_table_says() {
    for v in TABLE {
        if let (Effect::Sets(_) | Effect::Builds, Kind::Whole(least, most)) = (v.effect, v.kind) {
            for (n, good) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
                assert_eq!(parse([(v.name, n.to_string())]).is_ok(), good, "{} = {n}", v.name);
            }
        }
    }
}
