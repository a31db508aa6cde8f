//! From file names to specs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orbit_etl::spec::{Loader, Spec};
use orbit_etl::{Pipeline, Registry};

use crate::args::SpecArgs;
use crate::failure::Failure;

/// A spec and the pipeline that it stands for.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) spec: Spec,
    pub(crate) pipeline: Pipeline,
}

/// Every connector and transform of this build.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    orbit_etl::register_enabled(&mut registry);
    registry
}

/// Loads and builds one spec.
pub(crate) fn one(file: &Path, args: &SpecArgs, registry: &Registry) -> Result<Loaded, Failure> {
    build(&loader(args)?, file, registry)
}

/// Loads and builds specs, and those of folders; the mistakes of all of them are told together.
pub(crate) fn all(files: &[PathBuf], args: &SpecArgs, registry: &Registry) -> Result<Vec<Loaded>, Failure> {
    let loader = loader(args)?;
    let mut loaded: Vec<Loaded> = Vec::new();
    let mut failure: Option<Failure> = None;
    for file in expand(files)? {
        match build(&loader, &file, registry) {
            Ok(one) => loaded.push(one),
            Err(other) => {
                failure = Some(match failure {
                    Some(failure) => failure.and(other),
                    None => other,
                });
            }
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(loaded),
    }
}

fn build(loader: &Loader, file: &Path, registry: &Registry) -> Result<Loaded, Failure> {
    let spec = loader.load(file)?;
    let pipeline = spec.build(registry)?;
    Ok(Loaded { spec, pipeline })
}

/// A folder stands for the specs that lie directly in it.
fn expand(files: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut expanded = Vec::new();
    for file in files {
        if !file.is_dir() {
            expanded.push(file.clone());
            continue;
        }
        let fail = |error| Failure::failed(format!("{}: can't be listed: {error}", file.display()));
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(file).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if path.is_file() && matches!(ending, "yaml" | "yml" | "json" | "toml") {
                inside.push(path);
            }
        }
        if inside.is_empty() {
            return Err(Failure::mistake(format!("{}: there is no spec in this folder", file.display())));
        }
        inside.sort();
        expanded.append(&mut inside);
    }
    Ok(expanded)
}

fn loader(args: &SpecArgs) -> Result<Loader, Failure> {
    let mut loader = Loader::new();
    if let Some(file) = &args.env_file {
        let given = variables(file)?;
        loader = loader.variables(move |name| std::env::var(name).ok().or_else(|| given.get(name).cloned()));
    }
    for (key, value) in &args.set {
        loader = loader.set(key, value);
    }
    Ok(loader)
}

/// `NAME=VALUE` lines. A value is taken as it stands, without quotes or variables of its own; lines that
/// begin with `#` are comments.
fn variables(file: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::mistake(format!("{}: can't be read: {error}", file.display())))?;
    let mut variables = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line isn't shown: it may hold a secret.
        let Some((name, value)) = line.split_once('=').filter(|(name, _)| is_name(name)) else {
            return Err(Failure::mistake(format!(
                "{}:{}: not a NAME=VALUE; a name is made of letters, digits and `_`",
                file.display(),
                i + 1
            )));
        };
        variables.insert(name.to_owned(), value.to_owned());
    }
    Ok(variables)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
