//! Which kernels there are. Used by build.rs too, so nothing of this crate is named here.

/// What a kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Attention: written for compute capability 9.0.
    Attention,
    /// Everything else: runs on compute capability 8.0 and later.
    Helper,
}

/// One compilation of a source: what is defined for it, and the kernels that come out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Its name, unique.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Source file, relative to kernels/.
    pub source: String,
    /// Names of its kernels.
    pub entries: Vec<String>,
    /// Macros, `NAME` or `NAME=VALUE`.
    pub defines: Vec<String>,
}

impl Variant {
    /// A variant that is in no list; the name appears in messages and in the cache.
    pub fn new(name: &str, kind: Kind, source: &str, entries: &[&str], defines: &[&str]) -> Variant {
        let owned = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect();
        Variant {
            name: name.to_owned(),
            kind,
            source: source.to_owned(),
            entries: owned(entries),
            defines: owned(defines),
        }
    }
}

/// Reads a list: a line for each variant, `name kind source entries defines...`, `#` starts a comment. Entries are
/// separated by commas; `a_{x,y}` stands for `a_x` and `a_y`. Errors name the line.
pub fn parse(text: &str) -> Result<Vec<Variant>, String> {
    let mut found: Vec<Variant> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else {
            continue;
        };
        let wrong = |what: &str| format!("line {}: {what}", number + 1);
        let kind = match words.next() {
            Some("attention") => Kind::Attention,
            Some("helper") => Kind::Helper,
            other => return Err(wrong(&format!("kind {other:?}; it must be attention or helper"))),
        };
        let (Some(source), Some(entries)) = (words.next(), words.next()) else {
            return Err(wrong("a source and entries must follow the kind"));
        };
        if found.iter().any(|v| v.name == name) {
            return Err(wrong(&format!("{name} is there twice")));
        }
        let entries = expand(entries).ok_or_else(|| wrong(&format!("braces in {entries:?}")))?;
        found.push(Variant {
            name: name.to_owned(),
            kind,
            source: source.to_owned(),
            entries,
            defines: words.map(str::to_owned).collect(),
        });
    }
    Ok(found)
}

/// The words that a text with commas and braces stands for; `None` when a brace has no partner.
fn expand(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, c) in text.char_indices().chain([(text.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                expand_word(&text[start..at], &mut words)?;
                start = at + 1;
            }
            _ => (),
        }
    }
    (depth == 0).then_some(words)
}

/// The words that one word with braces stands for.
fn expand_word(word: &str, into: &mut Vec<String>) -> Option<()> {
    let Some(open) = word.find('{') else {
        into.push(word.to_owned());
        return Some(());
    };
    let close = open + word[open..].find('}')?;
    for choice in word[open + 1..close].split(',') {
        expand_word(&format!("{}{choice}{}", &word[..open], &word[close + 1..]), into)?;
    }
    Some(())
}
