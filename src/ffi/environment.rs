//! The environment variables that the library knows.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use super::{guard::guard, input};
use crate::types::env::{self, Effect};
use crate::types::{Error, Result, Status};

/// When an environment variable acts.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum magi_env_acts {
    /// When the library or a kernel is compiled.
    Build = 0,
    /// When a key is created, through magi_config_init.
    Key = 1,
    /// In calls.
    Run = 2,
}

/// An environment variable. Strings are static: they live as long as the library.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_env_variable {
    /// sizeof(magi_env_variable), set by the caller.
    pub size: usize,
    /// Its name.
    pub name: *const c_char,
    /// "boolean", "integer", "word" or "text".
    pub kind: *const c_char,
    /// What it accepts.
    pub accepts: *const c_char,
    /// What holds when it is not set; "" where that means something of its own.
    pub default_value: *const c_char,
    /// What it was set to when the environment was read, once per process; default_value when it was not set.
    pub value: *const c_char,
    /// What it does, where it has an effect.
    pub meaning: *const c_char,
    /// NULL when the library honours it, else why it is accepted without effect.
    pub no_effect_because: *const c_char,
    /// A magi_env_acts.
    pub acts: i32,
    /// 1 when it was set, else 0.
    pub is_set: i32,
}

/// The strings of one variable.
struct Texts {
    name: CString,
    accepts: CString,
    default_value: CString,
    value: CString,
    meaning: CString,
    why_not: Option<CString>,
}

/// The strings of all variables, made at the first call.
fn texts() -> &'static [Texts] {
    static TEXTS: OnceLock<Vec<Texts>> = OnceLock::new();
    // A value of the environment holds no zero byte, and neither does the table.
    let owned = |text: &str| CString::new(text).unwrap_or_default();
    TEXTS.get_or_init(|| {
        env::TABLE
            .iter()
            .map(|v| Texts {
                name: owned(v.name),
                accepts: owned(&v.kind.accepts()),
                default_value: owned(v.default),
                value: owned(env::given(v).unwrap_or(v.default)),
                meaning: owned(v.meaning),
                why_not: match v.effect {
                    Effect::Sets(_) | Effect::Builds | Effect::Launches => None,
                    Effect::None(why) => Some(owned(why)),
                },
            })
            .collect()
    })
}

/// Number of environment variables that the library knows. Errors: NULL_POINTER. Any thread.
///
/// # Safety
/// `count` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_env_count(count: *mut usize) -> Status {
    guard("magi_env_count", || {
        // SAFETY: the caller's promise.
        unsafe { input::write_out("count", count, env::TABLE.len()) }
    })
}

/// Fills `variable`, whose `size` the caller has set, with variable `index`, 0 to count - 1.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT. Any thread.
///
/// # Safety
/// `variable` must point to a magi_env_variable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_env_get(index: usize, variable: *mut magi_env_variable) -> Status {
    guard("magi_env_get", || {
        // SAFETY: the caller's promise.
        let size = unsafe { input::sized("variable", variable) }?.size;
        let filled = described(index, size)?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("variable", variable, filled) }
    })
}

fn described(index: usize, size: usize) -> Result<magi_env_variable> {
    let (Some(v), Some(t)) = (env::TABLE.get(index), texts().get(index)) else {
        let most = env::TABLE.len() - 1;
        return Err(Error::argument(format!(
            "index is {index}; it must be 0 to {most}"
        )));
    };
    Ok(magi_env_variable {
        size,
        name: t.name.as_ptr(),
        kind: v.kind.name().as_ptr(),
        accepts: t.accepts.as_ptr(),
        default_value: t.default_value.as_ptr(),
        value: t.value.as_ptr(),
        meaning: t.meaning.as_ptr(),
        no_effect_because: t.why_not.as_ref().map_or(std::ptr::null(), |w| w.as_ptr()),
        acts: v.acts as i32,
        is_set: i32::from(env::given(v).is_some()),
    })
}
