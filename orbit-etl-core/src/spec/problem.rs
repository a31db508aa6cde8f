//! What is wrong with a spec, and where.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::error::Error;

/// A place in a file: where a key or a value begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// As the user named it; `$NAME` for a variable, `--set` for an override.
    pub(crate) file: Arc<str>,
    /// From 1; 0 where the origin has no lines.
    pub(crate) line: u32,
    /// From 1, in characters.
    pub(crate) column: u32,
}

impl Place {
    /// A place without lines.
    pub(crate) fn whole(file: &str) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// One mistake in a spec.
///
/// `Display` prints it in one line: `orders.yaml:4:3: source.fromat: unknown key; did you mean
/// "format"?`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    place: Place,
    key: String,
    message: String,
    help: Option<String>,
}

impl Problem {
    pub(crate) fn new(place: &Place, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.clone(), key: key.into(), message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Says the nearest of the known words, if one is near, or else all of them.
    pub(crate) fn nearest<'a>(self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: BTreeSet<&str> = known.into_iter().collect();
        match nearest(word, known.iter().copied()) {
            Some(near) => self.help(format!("did you mean {}?", quoted(near))),
            None if known.is_empty() => self,
            None => self.help(format!("known here: {}", known.into_iter().collect::<Vec<_>>().join(", "))),
        }
    }

    /// Replaces texts in what is said.
    pub(crate) fn map(mut self, change: impl Fn(String) -> String) -> Self {
        self.message = change(self.message);
        self.help = self.help.map(change);
        self
    }

    /// The file, as it was named when it was loaded.
    pub fn file(&self) -> &str {
        &self.place.file
    }

    /// The line, from 1; 0 if the mistake has none, as in a variable.
    pub fn line(&self) -> u32 {
        self.place.line
    }

    /// The column, from 1, in characters.
    pub fn column(&self) -> u32 {
        self.place.column
    }

    /// The keys that lead to it: `sinks.lake.path`. Empty for what has none, as broken syntax.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is wrong, without place and help.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Every mistake that was found in a spec, one line each, in the order of files and lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SpecError {
    problems: Vec<Problem>,
}

impl SpecError {
    /// Sorts by place and says the same thing once.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        // The first file stays first, and an include stands after the file that names it.
        let order: Vec<Arc<str>> = problems.iter().fold(Vec::new(), |mut files, problem| {
            if !files.contains(&problem.place.file) {
                files.push(Arc::clone(&problem.place.file));
            }
            files
        });
        problems
            .sort_by_key(|p| (order.iter().position(|f| *f == p.place.file), p.place.line, p.place.column));
        problems.dedup();
        Self { problems }
    }

    /// The mistakes.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::config(error.to_string())
    }
}

/// A word or short text as it stands in a message.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let cut = match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    format!("{cut:?}")
}

/// The known word that was probably meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let word = plain(word);
    let allowed = match word.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&word, &plain(known)), known))
        .filter(|(distance, known)| *distance <= allowed && *distance < known.chars().count())
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_is_a_slip_of_the_finger_and_not_another_word() {
        let known = ["path", "format", "columns", "partition_by"];
        assert_eq!(nearest("fromat", known), Some("format"));
        assert_eq!(nearest("Partition-By", known), Some("partition_by"));
        assert_eq!(nearest("colunm", known), Some("columns"));
        assert_eq!(nearest("delimiter", known), None);
        assert_eq!(nearest("x", ["y"]), None);
    }

    #[test]
    fn problems_stand_in_the_order_of_the_files() {
        let at = |file: &str, line| Place { file: file.into(), line, column: 1 };
        let error = SpecError::new(vec![
            Problem::new(&at("b", 2), "k", "second"),
            Problem::new(&at("a", 9), "", "third").help("so what"),
            Problem::new(&at("b", 1), "k", "first"),
            Problem::new(&at("b", 2), "k", "second"),
        ]);
        assert_eq!(error.to_string(), "b:1:1: k: first\nb:2:1: k: second\na:9:1: third; so what");
    }
}
