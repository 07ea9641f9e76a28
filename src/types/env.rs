//! The environment: which variables act, and the settings that they make.
//!
//! The process environment is read once, on first use; a variable changed later changes nothing. `TABLE` holds every
//! variable there is.

use std::sync::OnceLock;

pub use super::env_table::{Acts, Effect, Kind, TABLE, Variable};
use super::{Config, Error, KernelBuild, Result, Status};

const PREFIX: &str = "MAGI_ATTENTION_";

/// The variable called `name`.
fn find(name: &str) -> Option<&'static Variable> {
    TABLE.iter().find(|v| v.name == name)
}

/// What the process environment held for `variable` on first use; `None` when it was not set.
pub fn given(variable: &Variable) -> Option<&'static str> {
    let set = snapshot().iter().find(|(name, _)| name == variable.name);
    set.map(|(_, text)| text.as_str())
}

/// What the process environment held for the variable called `name`, one of the table, on first use.
pub fn value_of(name: &str) -> Option<&'static str> {
    find(name).and_then(given)
}

/// What the environment sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Defaults of keys.
    pub config: Config,
    /// How kernels are compiled.
    pub build: KernelBuild,
}

/// The default settings overlaid by `pairs` of (name, value); names that do not act are passed over, and of a name
/// given twice the last value counts.
///
/// `Status::InvalidEnvironment` quotes every value that does not parse, with its name and what is accepted.
pub fn parse<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Settings> {
    let mut config = Config::default();
    let mut build = KernelBuild::default();
    let mut bad = Vec::new();
    for (name, text) in pairs {
        let (name, text) = (name.as_ref(), text.as_ref());
        let Some(variable) = find(name) else {
            continue;
        };
        let taken = match variable.effect {
            Effect::Sets(set) => set(&mut config, text),
            Effect::Builds => build.set(name, text),
            Effect::Launches | Effect::None(_) => Some(()),
        };
        if taken.is_none() {
            bad.push(format!(
                "{name} is {text:?}; it must be {}",
                variable.kind.accepts()
            ));
        }
    }
    if bad.is_empty() {
        return Ok(Settings { config, build });
    }
    // The environment has no order of its own; the message should not change from run to run.
    bad.sort_unstable();
    Err(Error::new(Status::InvalidEnvironment, bad.join("; ")))
}

/// The names that have the library's prefix and no meaning, sorted, each once.
pub fn unknown_in<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Vec<String> {
    let mut out: Vec<String> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .filter(|name| name.starts_with(PREFIX) && find(name).is_none())
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// The variables of the table, and others with the library's prefix, as they stood on first use. Bytes that are no UTF-8 are replaced, which
/// no accepted value survives.
fn snapshot() -> &'static [(String, String)] {
    static SNAPSHOT: OnceLock<Vec<(String, String)>> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        std::env::vars_os()
            .map(|(name, text)| {
                (
                    name.to_string_lossy().into_owned(),
                    text.to_string_lossy().into_owned(),
                )
            })
            .filter(|(name, _)| name.starts_with(PREFIX) || find(name).is_some())
            .collect()
    })
}

/// The names in the process environment that have the library's prefix and no meaning: probably misspelt.
pub fn unknown() -> Vec<String> {
    unknown_in(snapshot().iter().map(|(name, _)| name))
}

impl Config {
    /// The default settings overlaid by the process environment as it stood on first use; errors as `env::parse`,
    /// the same at every call.
    pub fn from_env() -> Result<Config> {
        Ok(from_env()?.config)
    }
}

impl KernelBuild {
    /// The default settings overlaid by the process environment as it stood on first use; errors as `env::parse`,
    /// the same at every call.
    pub fn from_env() -> Result<KernelBuild> {
        Ok(from_env()?.build)
    }
}

fn from_env() -> Result<Settings> {
    parse(snapshot().iter().map(|(name, text)| (name, text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DsinkReduce;

    fn one(name: &str, text: &str) -> Result<Config> {
        Ok(parse([(name, text)])?.config)
    }

    #[test]
    fn every_build_variable_sets_its_field() {
        let build = parse([
            ("MAGI_ATTENTION_WORKSPACE_BASE", "/scratch"),
            ("MAGI_ATTENTION_BUILD_VERBOSE", "1"),
            ("MAGI_ATTENTION_BUILD_DEBUG", "on"),
            ("MAGI_ATTENTION_NO_BUILD_CACHE", "yes"),
            ("MAGI_ATTENTION_FORCE_JIT_BUILD", "true"),
            ("MAGI_ATTENTION_PREBUILD_FFA", "0"),
            ("MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD", "1"),
            ("MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD", "1"),
            ("MAGI_ATTENTION_PREBUILD_FFA_JOBS", "3"),
            ("MAX_JOBS", "5"),
            ("NVCC_THREADS", "2"),
        ])
        .unwrap()
        .build;
        let want = KernelBuild {
            workspace_base: Some("/scratch".to_owned()),
            verbose: true,
            debug: true,
            no_cache: true,
            force_jit: true,
            prebuild: false,
            skip_helpers: true,
            skip_collectives: true,
            attention_jobs: Some(3),
            jobs: Some(5),
            threads: 2,
        };
        assert_eq!(build, want);
        assert_eq!((build.attention_jobs_on(64), build.jobs_on(64)), (3, 5));
        let plain = KernelBuild::default();
        assert_eq!([1, 2, 10, 11].map(|n| plain.jobs_on(n)), [1, 2, 9, 10]);
        let folder = |build: &KernelBuild, home| build.cache_folder(home).map(|f| f.display().to_string());
        assert_eq!(
            folder(&build, Some("/root")).unwrap(),
            "/scratch/.magi_attention/kernels"
        );
        assert_eq!(
            folder(&plain, Some("/root")).unwrap(),
            "/root/.magi_attention/kernels"
        );
        assert_eq!((folder(&plain, None), folder(&plain, Some(""))), (None, None));
        let table = TABLE.iter().filter(|v| matches!(v.effect, Effect::Builds));
        let mut names: Vec<_> = table.map(|v| v.name).collect();
        let mut known = KernelBuild::VARIABLES;
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let settings = parse([("PATH", "/bin"), ("MAGI_ATTENTION_CATGQA", "perhaps")]).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn every_acting_variable_sets_its_field() {
        let config = parse([
            ("MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE", "1"),
            ("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "avg"),
            ("MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE", "0"),
            ("MAGI_ATTENTION_SANITY_CHECK", "yes"),
            ("MAGI_ATTENTION_MIN_CHUNKS_PER_RANK", "3"),
            ("MAGI_ATTENTION_QO_COMM", "1"),
            ("MAGI_ATTENTION_FORWARD_HIGH_PRECISION_REDUCE", "on"),
            ("MAGI_ATTENTION_PROFILE_MODE", "1"),
        ])
        .unwrap()
        .config;
        assert!(config.backward_high_precision_reduce && config.sanity_check);
        assert!(config.forward_high_precision_reduce && config.qo_comm && config.compute.profile);
        assert_eq!(config.dsink_reduce, DsinkReduce::Avg);
        assert_eq!((config.cache_size, config.min_chunks_per_rank), (0, 3));
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn booleans() {
        for (texts, want) in [
            (["1", "true", "on", "yes", "True"], true),
            (["0", "false", "off", "no", "OFF"], false),
        ] {
            for text in texts {
                let config = one("MAGI_ATTENTION_SANITY_CHECK", text).unwrap();
                assert_eq!(config.sanity_check, want, "{text}");
            }
        }
    }

    #[test]
    fn bad_texts_are_quoted_with_what_is_accepted() {
        for (name, texts, accepted) in [
            (
                "MAGI_ATTENTION_SANITY_CHECK",
                vec!["", "2", " 1", "y", "tru\u{fffd}"],
                "0 or 1 (also false, true, off, on, no, yes)",
            ),
            (
                "MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE",
                vec!["fp32"],
                "0 or 1 (also false, true, off, on, no, yes)",
            ),
            (
                "MAGI_ATTENTION_DSINK_ALL_REDUCE_OP",
                vec!["mean", ""],
                "none, sum or avg",
            ),
            (
                "MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE",
                vec!["-1", "1000001", "1e3"],
                "0 to 1000000",
            ),
            (
                "MAGI_ATTENTION_MIN_CHUNKS_PER_RANK",
                vec!["0", "4097", "eight"],
                "1 to 4096",
            ),
        ] {
            for text in texts {
                let error = one(name, text).unwrap_err();
                assert_eq!(error.status, Status::InvalidEnvironment);
                assert!(
                    error.message.starts_with(&format!("{name} is {text:?}; ")),
                    "{}",
                    error.message
                );
                assert!(error.message.ends_with(accepted), "{}", error.message);
            }
        }
    }

    #[test]
    fn all_bad_texts_are_named_whatever_their_order() {
        let a = ("MAGI_ATTENTION_SANITY_CHECK", "maybe");
        let b = ("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "max");
        let message = parse([a, b]).unwrap_err().message;
        assert!(
            message.contains("\"maybe\"") && message.contains("\"max\""),
            "{message}"
        );
        assert_eq!(parse([b, a]).unwrap_err().message, message);
    }

    #[test]
    fn unknown_names_are_those_with_the_prefix_and_no_meaning() {
        let names = [
            "MAGI_ATTENTION_SANITYCHECK",
            "MAGI_ATTENTION_QO_COMM",
            "PATH",
            "MAGI_ATTENTION_A",
        ];
        assert_eq!(
            unknown_in(names),
            ["MAGI_ATTENTION_A", "MAGI_ATTENTION_SANITYCHECK"]
        );
        assert!(unknown_in(TABLE.iter().map(|v| v.name)).is_empty());
    }
}
