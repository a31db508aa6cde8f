//! From files to one tree: reading, `${…}`, `include`, overrides.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::fit::fit;
use super::problem::{Place, Problem, SpecError, quoted};
use super::tree::{Entry, Node, Value};
use super::variables::{Lookup, plain, substitute};
use super::{Spec, json, toml, yaml};

/// How many files one spec may be made of.
const FILES: usize = 100;

/// How a spec is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// YAML 1.2.
    Yaml,
    /// JSON.
    Json,
    /// TOML 1.
    Toml,
}

impl Syntax {
    /// What a file's name says; YAML unless it ends in `.json` or `.toml`.
    pub fn of(path: impl AsRef<Path>) -> Self {
        match path.as_ref().extension().and_then(|e| e.to_str()) {
            Some("json") => Self::Json,
            Some("toml") => Self::Toml,
            _ => Self::Yaml,
        }
    }

    fn read(self, file: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
        match self {
            Self::Yaml => yaml::read(file, text, problems),
            Self::Json => json::read(file, text, problems),
            Self::Toml => toml::read(file, text, problems),
        }
    }
}

/// Loads specs with variables of one's own, or with values that stand above the file's.
///
/// ```
/// use orbit_etl_core::spec::{Loader, Syntax};
///
/// let spec = Loader::new()
///     .variables(|name| (name == "STAGE").then(|| "test".to_owned()))
///     .set("parallelism", "2")
///     .parse("name: orders-${STAGE}", Syntax::Yaml)?;
/// assert_eq!(spec.name(), Some("orders-test"));
/// # Ok::<(), orbit_etl_core::spec::SpecError>(())
/// ```
#[derive(Clone)]
pub struct Loader {
    lookup: Lookup,
    overrides: Vec<(String, String)>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        let keys: Vec<_> = self.overrides.iter().map(|(key, _)| key).collect();
        f.debug_struct("Loader").field("overrides", &keys).finish_non_exhaustive()
    }
}

impl Default for Loader {
    fn default() -> Self {
        Self { lookup: Arc::new(|name| std::env::var(name).ok()), overrides: Vec::new() }
    }
}

impl Loader {
    /// Takes variables from the process's environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes variables from here instead.
    #[must_use]
    pub fn variables(mut self, lookup: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.lookup = Arc::new(lookup);
        self
    }

    /// Puts a value in the place of the spec's own: `set("sinks.lake.path", "out")`,
    /// `set("transforms[0].query", …)`. The value is read as YAML.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.overrides.push((key.into(), value.into()));
        self
    }

    /// Loads a file and what it includes.
    ///
    /// # Errors
    /// The file can't be read, or isn't YAML, JSON or TOML. Other mistakes come with
    /// [`Spec::build`], all at once.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Spec, SpecError> {
        let path = path.as_ref();
        let file: Arc<str> = path.to_string_lossy().into();
        let mut problems = Vec::new();
        let mut files = Files { lookup: &self.lookup, chain: Vec::new(), count: 0 };
        let origin = Place::whole(&file);
        let root = files.file(path, &origin, "", &mut problems);
        self.finish(file, root, problems)
    }

    /// Reads another file of the same languages as its own kind of document: with variables and includes,
    /// and with every mistake at its place.
    ///
    /// # Errors
    /// The file can't be read, or doesn't hold what is wanted.
    pub fn read<T: DeserializeOwned>(&self, path: impl AsRef<Path>) -> Result<T, SpecError> {
        let path = path.as_ref();
        let mut problems = Vec::new();
        let mut files = Files { lookup: &self.lookup, chain: Vec::new(), count: 0 };
        let origin = Place::whole(&path.to_string_lossy());
        let root = files.file(path, &origin, "", &mut problems);
        let value = root
            .and_then(|root| fit(&root, "", &root.place, &mut problems, |node: &Node| T::deserialize(node)));
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ => Err(SpecError::new(problems)),
        }
    }

    /// Reads a text. Relative paths in it stay relative to the working directory.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn parse(&self, text: &str, syntax: Syntax) -> Result<Spec, SpecError> {
        let file: Arc<str> = "spec".into();
        let mut problems = Vec::new();
        let mut files = Files { lookup: &self.lookup, chain: Vec::new(), count: 0 };
        let root = files.text(&file, Path::new(""), text, syntax, &mut problems);
        self.finish(file, root, problems)
    }

    fn finish(
        &self,
        file: Arc<str>,
        root: Option<Node>,
        mut problems: Vec<Problem>,
    ) -> Result<Spec, SpecError> {
        let Some(mut root) = root else { return Err(SpecError::new(problems)) };
        for (key, value) in &self.overrides {
            self.apply(&mut root, key, value, &mut problems);
        }
        Ok(Spec::new(file, root, problems))
    }

    fn apply(&self, root: &mut Node, key: &str, value: &str, problems: &mut Vec<Problem>) {
        let origin: Arc<str> = "--set".into();
        let place = Place::whole(&origin);
        let Some(mut node) = yaml::read(&origin, value, problems) else { return };
        unplace(&mut node, &place);
        substitute(&mut node, Path::new(""), &self.lookup, problems);
        let steps = key.replace('[', ".").replace(']', "");
        match reach(root, &steps.split('.').collect::<Vec<_>>(), &place) {
            Some(target) => *target = node,
            None => problems.push(Problem::new(&place, key, "there is no such place in the spec")),
        }
    }
}

/// The node at the end of these keys; what isn't there yet is made.
fn reach<'a>(node: &'a mut Node, steps: &[&str], place: &Place) -> Option<&'a mut Node> {
    let Some((step, rest)) = steps.split_first() else { return Some(node) };
    if matches!(node.value, Value::Null) {
        node.value = Value::Map(Vec::new());
    }
    let next = match &mut node.value {
        Value::List(items) => items.get_mut(step.parse::<usize>().ok()?)?,
        Value::Map(entries) if !step.is_empty() => {
            let at = match entries.iter().position(|e| e.key == *step) {
                Some(at) => at,
                None => {
                    let node = Node::new(place.clone(), Value::Null);
                    entries.push(Entry { key: (*step).to_owned(), place: place.clone(), node });
                    entries.len() - 1
                }
            };
            &mut entries[at].node
        }
        _ => return None,
    };
    reach(next, rest, place)
}

/// What comes from the command line has no lines.
fn unplace(node: &mut Node, place: &Place) {
    node.place = place.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| unplace(item, place)),
        Value::Map(entries) => {
            for entry in entries {
                entry.place = place.clone();
                unplace(&mut entry.node, place);
            }
        }
        _ => {}
    }
}

/// The files of one spec.
struct Files<'a> {
    lookup: &'a Lookup,
    /// Those that are being read, from the first to the innermost.
    chain: Vec<(PathBuf, String)>,
    count: usize,
}

impl Files<'_> {
    fn file(
        &mut self,
        path: &Path,
        named_at: &Place,
        key: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Node> {
        let shown = path.to_string_lossy().into_owned();
        let fail = |message: String| Problem::new(named_at, key, message);
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let why = plain(&error);
                let message = if key.is_empty() {
                    format!("the file can't be read: {why}")
                } else {
                    format!("the file {} can't be read: {why}", quoted(&shown))
                };
                problems.push(fail(message));
                return None;
            }
        };
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(begin) = self.chain.iter().position(|(known, _)| *known == canonical) {
            let mut names: Vec<_> = self.chain[begin..].iter().map(|(_, name)| name.as_str()).collect();
            names.push(&shown);
            problems.push(fail(format!("files include one another in a circle: {}", names.join(" → "))));
            return None;
        }
        self.count += 1;
        if self.count > FILES {
            problems.push(fail(format!("the spec is made of more than {FILES} files")));
            return None;
        }
        self.chain.push((canonical, shown.clone()));
        let dir = path.parent().unwrap_or(Path::new(""));
        let node = self.text(&shown.as_str().into(), dir, &text, Syntax::of(path), problems);
        self.chain.pop();
        node
    }

    fn text(
        &mut self,
        file: &Arc<str>,
        dir: &Path,
        text: &str,
        syntax: Syntax,
        problems: &mut Vec<Problem>,
    ) -> Option<Node> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut node = syntax.read(file, text, problems)?;
        substitute(&mut node, dir, self.lookup, problems);
        if let Some(include) = node.take("include") {
            // Of two included files the later one stands above the earlier one.
            for (path, place, key) in included(&include, problems).into_iter().rev() {
                if let Some(base) = self.file(&dir.join(path), &place, &key, problems) {
                    match (&base.value, &base.place) {
                        (Value::Map(_) | Value::Null, _) => node.merge_under(&base),
                        (_, place) => problems.push(
                            Problem::new(place, "", format!("expected a map, found {}", base.described()))
                                .help("an included file is written as the spec itself"),
                        ),
                    }
                }
            }
        }
        Some(node)
    }
}

fn included(include: &Entry, problems: &mut Vec<Problem>) -> Vec<(String, Place, String)> {
    let items: Vec<(&Node, String)> = match &include.node.value {
        Value::List(items) => {
            items.iter().enumerate().map(|(i, item)| (item, format!("include[{i}]"))).collect()
        }
        _ => vec![(&include.node, "include".to_owned())],
    };
    let mut paths = Vec::new();
    for (item, key) in items {
        match item.as_text() {
            Some(text) => paths.push((text.value.clone(), item.place.clone(), key)),
            None => problems.push(Problem::new(
                &item.place,
                key,
                format!("expected a path or a list of paths, found {}", item.described()),
            )),
        }
    }
    paths
}
