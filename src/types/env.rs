//! The environment: which variables act, and the settings that they make.
//!
//! The process environment is read once, on first use; a variable changed later changes nothing.

use std::sync::OnceLock;

use super::{Config, DsinkReduce, Error, Result, Status};

/// A variable that sets a field of `Config`.
struct Variable {
    name: &'static str,
    /// What it accepts, as messages print it.
    accepts: &'static str,
    /// Sets the field; `None` when the text does not parse.
    set: fn(&mut Config, &str) -> Option<()>,
}

const BOOLEAN: &str = "0 or 1 (also false, true, off, on, no, yes)";

const ACTING: [Variable; 6] = [
    Variable {
        name: "MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE",
        accepts: BOOLEAN,
        set: |config, text| {
            config.backward_high_precision_reduce = boolean(text)?;
            Some(())
        },
    },
    Variable {
        name: "MAGI_ATTENTION_DSINK_ALL_REDUCE_OP",
        accepts: "none, sum or avg",
        set: |config, text| {
            config.dsink_reduce = match text.to_ascii_lowercase().as_str() {
                "none" => DsinkReduce::None,
                "sum" => DsinkReduce::Sum,
                "avg" => DsinkReduce::Avg,
                _ => return None,
            };
            Some(())
        },
    },
    Variable {
        name: "MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE",
        accepts: "a whole number, 0 to 1000000",
        set: |config, text| {
            config.cache_size = text.parse().ok().filter(|&n| n <= Config::MAX_CACHE_SIZE)?;
            Some(())
        },
    },
    Variable {
        name: "MAGI_ATTENTION_HIERARCHICAL_COMM",
        accepts: BOOLEAN,
        set: |config, text| {
            config.hierarchical_comm = boolean(text)?;
            Some(())
        },
    },
    Variable {
        name: "MAGI_ATTENTION_SANITY_CHECK",
        accepts: BOOLEAN,
        set: |config, text| {
            config.sanity_check = boolean(text)?;
            Some(())
        },
    },
    Variable {
        name: "MAGI_ATTENTION_MIN_CHUNKS_PER_RANK",
        accepts: "a whole number, 1 to 4096",
        set: |config, text| {
            let range = 1..=Config::MAX_MIN_CHUNKS_PER_RANK;
            config.min_chunks_per_rank = text.parse().ok().filter(|n| range.contains(n))?;
            Some(())
        },
    },
];

/// Every name with the library's prefix that has a meaning in this or a later version; each is accepted.
const KNOWN: [&str; 33] = [
    "MAGI_ATTENTION_AUTO_RANGE_MERGE",
    "MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE",
    "MAGI_ATTENTION_BUILD_COMPUTE_CAPABILITY",
    "MAGI_ATTENTION_BUILD_DEBUG",
    "MAGI_ATTENTION_BUILD_VERBOSE",
    "MAGI_ATTENTION_BWD_HIDE_TAIL_REDUCE",
    "MAGI_ATTENTION_CATGQA",
    "MAGI_ATTENTION_CPP_BACKEND",
    "MAGI_ATTENTION_DETERMINISTIC_MODE",
    "MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE",
    "MAGI_ATTENTION_DSINK_ALL_REDUCE_OP",
    "MAGI_ATTENTION_FFA_BACKWARD_SM_MARGIN",
    "MAGI_ATTENTION_FFA_FORWARD_SM_MARGIN",
    "MAGI_ATTENTION_FLATTEN_HEAD_GROUPS",
    "MAGI_ATTENTION_FORCE_JIT_BUILD",
    "MAGI_ATTENTION_FORWARD_HIGH_PRECISION_REDUCE",
    "MAGI_ATTENTION_HIERARCHICAL_COMM",
    "MAGI_ATTENTION_KERNEL_BACKEND",
    "MAGI_ATTENTION_LOG_LEVEL",
    "MAGI_ATTENTION_MIN_CHUNKS_PER_RANK",
    "MAGI_ATTENTION_NATIVE_GRPCOLL",
    "MAGI_ATTENTION_NO_BUILD_CACHE",
    "MAGI_ATTENTION_PREBUILD_FFA",
    "MAGI_ATTENTION_PREBUILD_FFA_JOBS",
    "MAGI_ATTENTION_PRECISION",
    "MAGI_ATTENTION_PROFILE_MODE",
    "MAGI_ATTENTION_QO_COMM",
    "MAGI_ATTENTION_SANITY_CHECK",
    "MAGI_ATTENTION_SDPA_BACKEND",
    "MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD",
    "MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD",
    "MAGI_ATTENTION_SKIP_MAGI_ATTN_EXT_BUILD",
    "MAGI_ATTENTION_WORKSPACE_BASE",
];

const PREFIX: &str = "MAGI_ATTENTION_";

/// Booleans in any case of letters.
fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" => Some(true),
        "0" | "false" | "off" | "no" => Some(false),
        _ => None,
    }
}

/// The default settings overlaid by `pairs` of (name, value); names that do not act are passed over, and of a name
/// given twice the last value counts.
///
/// `Status::InvalidEnvironment` quotes every value that does not parse, with its name and what is accepted.
pub fn parse<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Config> {
    let mut config = Config::default();
    let mut bad = Vec::new();
    for (name, text) in pairs {
        let (name, text) = (name.as_ref(), text.as_ref());
        if let Some(variable) = ACTING.iter().find(|v| v.name == name)
            && (variable.set)(&mut config, text).is_none()
        {
            bad.push(format!("{name} is {text:?}; it must be {}", variable.accepts));
        }
    }
    if bad.is_empty() {
        return Ok(config);
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
        .filter(|name| name.starts_with(PREFIX) && !KNOWN.contains(&name.as_str()))
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}

/// The variables with the library's prefix as they stood on first use. Bytes that are no UTF-8 are replaced, which
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
            .filter(|(name, _)| name.starts_with(PREFIX))
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
        parse(snapshot().iter().map(|(name, text)| (name, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, text: &str) -> Result<Config> {
        parse([(name, text)])
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let config = parse([("PATH", "/bin"), ("MAGI_ATTENTION_QO_COMM", "perhaps")]).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn every_acting_variable_sets_its_field() {
        let config = parse([
            ("MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE", "1"),
            ("MAGI_ATTENTION_DSINK_ALL_REDUCE_OP", "avg"),
            ("MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE", "0"),
            ("MAGI_ATTENTION_SANITY_CHECK", "yes"),
            ("MAGI_ATTENTION_MIN_CHUNKS_PER_RANK", "3"),
        ])
        .unwrap();
        assert!(config.backward_high_precision_reduce && config.sanity_check);
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
                BOOLEAN,
            ),
            (
                "MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE",
                vec!["fp32"],
                BOOLEAN,
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
        assert!(unknown_in(ACTING.iter().map(|v| v.name)).is_empty());
    }
}
