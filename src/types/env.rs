//! The environment: which variables act, and the settings that they make.
//!
//! The process environment is read once, on first use; a variable changed later changes nothing. `TABLE` holds every
//! variable there is.

use std::sync::OnceLock;

pub use super::env_table::{Acts, Effect, Kind, TABLE, Variable};
use super::{Config, Error, Result, Status};

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

/// The default settings overlaid by `pairs` of (name, value); names that do not act are passed over, and of a name
/// given twice the last value counts.
///
/// `Status::InvalidEnvironment` quotes every value that does not parse, with its name and what is accepted.
pub fn parse<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Config> {
    let mut config = Config::default();
    let mut bad = Vec::new();
    for (name, text) in pairs {
        let (name, text) = (name.as_ref(), text.as_ref());
        if let Some(variable) = find(name)
            && let Effect::Sets(set) = variable.effect
            && set(&mut config, text).is_none()
        {
            bad.push(format!(
                "{name} is {text:?}; it must be {}",
                variable.kind.accepts()
            ));
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
        parse(snapshot().iter().map(|(name, text)| (name, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DsinkReduce;

    fn one(name: &str, text: &str) -> Result<Config> {
        parse([(name, text)])
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let config = parse([("PATH", "/bin"), ("MAGI_ATTENTION_PROFILE_MODE", "perhaps")]).unwrap();
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
            ("MAGI_ATTENTION_QO_COMM", "1"),
            ("MAGI_ATTENTION_FORWARD_HIGH_PRECISION_REDUCE", "on"),
        ])
        .unwrap();
        assert!(config.backward_high_precision_reduce && config.sanity_check);
        assert!(config.forward_high_precision_reduce && config.qo_comm);
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
