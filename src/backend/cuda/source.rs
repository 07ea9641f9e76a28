//! One text out of a kernel source and the project headers that it includes. Used by build.rs too, so nothing of this
//! crate is named here.
//!
//! Both compilers get this text, so that neither has to find a header and the digest of the text covers all that was
//! compiled. Every header is taken in once, where it is included first; such an include must not stand under a
//! condition that may be false.

/// The text of `name` (relative to kernels/) with every `#include "..."` replaced by the file, looked for beside the
/// including file, then from kernels/ on. `read` gives the text of a file. Errors name the file that is not there.
pub fn flatten<'a>(name: &str, read: &dyn Fn(&str) -> Option<&'a str>) -> Result<String, String> {
    let text = read(name).ok_or_else(|| format!("kernels/{name} is not there"))?;
    let (mut out, mut done) = (String::new(), vec![name.to_owned()]);
    append(name, text, read, &mut done, &mut out)?;
    Ok(out)
}

fn append<'a>(
    name: &str,
    text: &'a str,
    read: &dyn Fn(&str) -> Option<&'a str>,
    done: &mut Vec<String>,
    out: &mut String,
) -> Result<(), String> {
    out.push_str(&format!("#line 1 \"kernels/{name}\"\n"));
    for (number, line) in text.lines().enumerate() {
        if line.trim() == "#pragma once" {
            // Holds anyway, and a compiler warns of it in the file that it is given.
            out.push('\n');
            continue;
        }
        let Some(included) = included(line) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let folder = name.rfind('/').map_or("", |at| &name[..at]);
        let beside = join(folder, included);
        let here = |path: &String| read(path).map(|text| (path.clone(), text));
        let (path, text) = here(&beside)
            .or_else(|| here(&join("", included)))
            .ok_or_else(|| {
                format!(
                    "kernels/{name}, line {}: \"{included}\" is neither {beside} nor {included} in kernels/",
                    number + 1
                )
            })?;
        if !done.contains(&path) {
            done.push(path.clone());
            append(&path, text, read, done, out)?;
        }
        out.push_str(&format!("#line {} \"kernels/{name}\"\n", number + 2));
    }
    Ok(())
}

/// The path in an `#include "..."`.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start();
    let rest = rest.strip_prefix("include")?.trim_start().strip_prefix('"')?;
    rest.split_once('"').map(|(path, _)| path)
}

/// `path` as seen from `folder`, without `.` and `..`.
fn join(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => (),
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
