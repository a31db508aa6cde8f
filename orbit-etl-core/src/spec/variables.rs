//! `${…}` in texts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::problem::{Place, Problem, nearest, quoted};
use super::tree::{Node, Text};

/// The longest file that is put into a text.
const LONGEST: u64 = 1 << 20;

/// What a variable stands for, if it is set.
pub(crate) type Lookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Replaces every `${…}` in the texts of a tree. What is put in is text and nothing else: it can't
/// bring keys, lists or other `${…}` along.
pub(crate) fn substitute(node: &mut Node, dir: &Path, lookup: &Lookup, problems: &mut Vec<Problem>) {
    node.each_text("", &mut |key, place, text| {
        if let Err(problem) = expand(text, place, key, dir, lookup) {
            problems.push(problem);
            // Shown as it was written, and never used.
            text.written = Some(text.value.clone());
            text.failed = true;
        }
    });
}

fn expand(text: &mut Text, place: &Place, key: &str, dir: &Path, lookup: &Lookup) -> Result<(), Problem> {
    if !text.value.contains('$') {
        return Ok(());
    }
    let wrong = |message: String| Problem::new(place, key, message);
    let mut out = String::with_capacity(text.value.len());
    let (mut replaced, mut from_file) = (false, false);
    let mut rest = text.value.as_str();
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$${") {
            out.push_str("${");
            replaced = true;
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let Some(end) = after.find('}') else {
                return Err(wrong("a `${` is not closed".into())
                    .help("add the `}`, or write `$${` for the two characters"));
            };
            let inside = &after[..end];
            replaced = true;
            if let Some(file) = inside.strip_prefix("file:") {
                out.push_str(&read(file, dir).map_err(|why| {
                    wrong(format!("the file of {} can't be read: {why}", quoted(&format!("${{{inside}}}"))))
                })?);
                from_file = true;
            } else {
                let (name, default) = match inside.split_once(":-") {
                    Some((name, default)) => (name, Some(default)),
                    None => (inside, None),
                };
                check_name(name)
                    .map_err(|why| wrong(why).help("write ${NAME}, ${NAME:-default} or ${file:/path}"))?;
                match (lookup(name).filter(|value| default.is_none() || !value.is_empty()), default) {
                    (Some(value), _) => out.push_str(&value),
                    (None, Some(default)) => out.push_str(default),
                    (None, None) => {
                        return Err(wrong(format!("the variable {name} is not set"))
                            .help(format!("set it, or give a default: ${{{name}:-…}}")));
                    }
                }
            }
            rest = &after[end + 1..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    if replaced {
        text.written = Some(std::mem::replace(&mut text.value, out));
        text.from_file = from_file;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() {
        return Err("a variable without a name".into());
    }
    if let Some((scheme, _)) = name.split_once(':') {
        return Err(match nearest(scheme, ["file"]) {
            Some(_) => format!("{} is not known; only `file:` is", quoted(scheme)),
            None => format!("{} is not a variable's name", quoted(name)),
        });
    }
    if name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits) {
        return Err(format!("{} is not a variable's name", quoted(name)));
    }
    Ok(())
}

/// A file's text without the line break at its end.
fn read(path: &str, dir: &Path) -> Result<String, String> {
    let path: PathBuf = dir.join(path);
    let size = std::fs::metadata(&path).map_err(|e| plain(&e))?.len();
    if size > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| plain(&e))?;
    Ok(text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_owned())
}

/// Without the system's number, which differs between systems.
pub(crate) fn plain(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "it isn't there".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::IsADirectory => "it is a directory".into(),
        ErrorKind::InvalidData => "it isn't UTF-8 text".into(),
        _ => error.to_string(),
    }
}
