//! Which `type` stands for which source, transform or sink.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::observe::Observer;
use crate::sink::Sink;
use crate::source::Source;
use crate::spec::{
    Describe, Fault, Node, Place, Problem, Secrets, SpecError, alone, environment, fit, prepare,
    tree_of_variables,
};
use crate::transform::Transform;

/// Makes sources, transforms and sinks from a `type` and its configuration. Nothing registers itself:
/// a host fills the registry with what it wants to offer, its own types too.
#[derive(Default)]
pub struct Registry {
    sources: BTreeMap<String, Registered<dyn Source>>,
    transforms: BTreeMap<String, Registered<dyn Transform>>,
    sinks: BTreeMap<String, Registered<dyn Sink>>,
    observers: BTreeMap<String, Registered<dyn Observer>>,
    /// Types that could be there, and the feature that they need.
    absent: BTreeMap<String, String>,
}

/// One type.
pub(crate) struct Registered<T: ?Sized> {
    pub(crate) factory: Factory<T>,
    describe: Option<Describe>,
    schema: OnceLock<Value>,
}

type Typed<T> = Box<dyn Fn(&Node) -> Result<Arc<T>, Fault> + Send + Sync>;
type Made<T> = Box<dyn Fn(Value) -> Result<Arc<T>> + Send + Sync>;

/// How a value of the type is made.
pub(crate) enum Factory<T: ?Sized> {
    /// By its own deserialization, whose faults know their places.
    Typed(Typed<T>),
    /// By a host's function.
    Made(Made<T>),
}

impl<T: ?Sized> Registered<T> {
    fn typed(
        make: impl Fn(&Node) -> Result<Arc<T>, Fault> + Send + Sync + 'static,
        describe: Describe,
    ) -> Self {
        Self { factory: Factory::Typed(Box::new(make)), describe: Some(describe), schema: OnceLock::new() }
    }

    fn made(make: impl Fn(Value) -> Result<Arc<T>> + Send + Sync + 'static) -> Self {
        Self { factory: Factory::Made(Box::new(make)), describe: None, schema: OnceLock::new() }
    }

    /// The JSON Schema of the configuration, if its type is known.
    pub(crate) fn schema(&self) -> Option<&Value> {
        let describe = self.describe?;
        Some(self.schema.get_or_init(|| alone(describe)))
    }

    /// A value of a tree that stands in no spec.
    fn make(&self, mut config: Node) -> Result<Arc<T>> {
        let mut problems = Vec::new();
        if let Some(schema) = self.schema() {
            prepare(&mut config, schema, "", &mut problems);
        }
        let mut secrets = Secrets::default();
        secrets.collect(&config);
        match &self.factory {
            Factory::Typed(make) => {
                let place = config.place.clone();
                let made = fit(&config, "", &place, &mut problems, |node: &Node| make(node));
                made.ok_or_else(|| {
                    let hidden = problems.into_iter().map(|p: Problem| p.map(|text| secrets.hide(&text)));
                    SpecError::new(hidden.collect()).into()
                })
            }
            Factory::Made(make) => make(config.to_json()),
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("sources", &self.sources.keys())
            .field("transforms", &self.transforms.keys())
            .field("sinks", &self.sinks.keys())
            .field("observers", &self.observers.keys())
            .finish()
    }
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a source whose configuration deserializes to it. Its JSON Schema says which keys are
    /// secret or paths; see [`spec`](crate::spec).
    pub fn add_source<S: Source + DeserializeOwned + JsonSchema>(&mut self, type_tag: &str) -> &mut Self {
        let make = |node: &Node| -> Result<Arc<dyn Source>, Fault> { Ok(Arc::new(S::deserialize(node)?)) };
        self.sources.insert(type_tag.to_owned(), Registered::typed(make, S::json_schema));
        self
    }

    /// Registers a source that is made by a function.
    pub fn add_source_with(
        &mut self,
        type_tag: &str,
        factory: impl Fn(Value) -> Result<Arc<dyn Source>> + Send + Sync + 'static,
    ) -> &mut Self {
        self.sources.insert(type_tag.to_owned(), Registered::made(factory));
        self
    }

    /// Registers a transform whose configuration deserializes to it, as [`Registry::add_source`].
    pub fn add_transform<T: Transform + DeserializeOwned + JsonSchema>(
        &mut self,
        type_tag: &str,
    ) -> &mut Self {
        let make = |node: &Node| -> Result<Arc<dyn Transform>, Fault> { Ok(Arc::new(T::deserialize(node)?)) };
        self.transforms.insert(type_tag.to_owned(), Registered::typed(make, T::json_schema));
        self
    }

    /// Registers a transform that is made by a function.
    pub fn add_transform_with(
        &mut self,
        type_tag: &str,
        factory: impl Fn(Value) -> Result<Arc<dyn Transform>> + Send + Sync + 'static,
    ) -> &mut Self {
        self.transforms.insert(type_tag.to_owned(), Registered::made(factory));
        self
    }

    /// Registers a sink whose configuration deserializes to it, as [`Registry::add_source`].
    pub fn add_sink<S: Sink + DeserializeOwned + JsonSchema>(&mut self, type_tag: &str) -> &mut Self {
        let make = |node: &Node| -> Result<Arc<dyn Sink>, Fault> { Ok(Arc::new(S::deserialize(node)?)) };
        self.sinks.insert(type_tag.to_owned(), Registered::typed(make, S::json_schema));
        self
    }

    /// Registers a sink that is made by a function.
    pub fn add_sink_with(
        &mut self,
        type_tag: &str,
        factory: impl Fn(Value) -> Result<Arc<dyn Sink>> + Send + Sync + 'static,
    ) -> &mut Self {
        self.sinks.insert(type_tag.to_owned(), Registered::made(factory));
        self
    }

    /// Registers what the top-level key `alerts` or `lineage` of a spec stands for.
    pub fn add_observer<O: Observer + DeserializeOwned + JsonSchema>(&mut self, key: &str) -> &mut Self {
        let make = |node: &Node| -> Result<Arc<dyn Observer>, Fault> { Ok(Arc::new(O::deserialize(node)?)) };
        self.observers.insert(key.to_owned(), Registered::typed(make, O::json_schema));
        self
    }

    /// Notes a type (or a key of observers) that this build lacks and the cargo feature that brings it.
    pub fn add_absent(&mut self, type_tag: &str, feature: &str) -> &mut Self {
        self.absent.insert(type_tag.to_owned(), feature.to_owned());
        self
    }

    /// Makes a source.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): an unknown type, or a configuration that doesn't fit it.
    pub fn source(&self, type_tag: &str, config: Value) -> Result<Arc<dyn Source>> {
        self.find(&self.sources, "source", type_tag)?
            .make(unplaced(config))
            .map_err(|e| e.with("type", type_tag))
    }

    /// Makes a transform.
    ///
    /// # Errors
    /// As [`Registry::source`].
    pub fn transform(&self, type_tag: &str, config: Value) -> Result<Arc<dyn Transform>> {
        self.find(&self.transforms, "transform", type_tag)?
            .make(unplaced(config))
            .map_err(|e| e.with("type", type_tag))
    }

    /// Makes a sink.
    ///
    /// # Errors
    /// As [`Registry::source`].
    pub fn sink(&self, type_tag: &str, config: Value) -> Result<Arc<dyn Sink>> {
        self.find(&self.sinks, "sink", type_tag)?.make(unplaced(config)).map_err(|e| e.with("type", type_tag))
    }

    /// Makes a source from environment variables: `ORBIT_ORDERS__TYPE`, `ORBIT_ORDERS__PATH` … for the
    /// node `orders`. [`from_env`](crate::spec::from_env) says how they are named.
    ///
    /// # Errors
    /// As [`Registry::source`], and if the type isn't set.
    pub fn source_from_env(&self, node: &str) -> Result<Arc<dyn Source>> {
        let (type_tag, config) = variables(node)?;
        self.find(&self.sources, "source", &type_tag)?.make(config).map_err(|e| e.with("node", node))
    }

    /// Makes a transform from environment variables, as [`Registry::source_from_env`].
    ///
    /// # Errors
    /// As [`Registry::source_from_env`].
    pub fn transform_from_env(&self, node: &str) -> Result<Arc<dyn Transform>> {
        let (type_tag, config) = variables(node)?;
        self.find(&self.transforms, "transform", &type_tag)?.make(config).map_err(|e| e.with("node", node))
    }

    /// Makes a sink from environment variables, as [`Registry::source_from_env`].
    ///
    /// # Errors
    /// As [`Registry::source_from_env`].
    pub fn sink_from_env(&self, node: &str) -> Result<Arc<dyn Sink>> {
        let (type_tag, config) = variables(node)?;
        self.find(&self.sinks, "sink", &type_tag)?.make(config).map_err(|e| e.with("node", node))
    }

    /// The types of sources, transforms and sinks that are registered.
    pub fn types(&self) -> (Vec<&str>, Vec<&str>, Vec<&str>) {
        fn names<T: ?Sized>(map: &BTreeMap<String, Registered<T>>) -> Vec<&str> {
            map.keys().map(String::as_str).collect()
        }
        (names(&self.sources), names(&self.transforms), names(&self.sinks))
    }

    /// The feature that would bring a type which this build lacks.
    pub fn absent(&self, type_tag: &str) -> Option<&str> {
        self.absent.get(type_tag).map(String::as_str)
    }

    /// Every type that this build lacks, with the feature that would bring it.
    pub fn absent_types(&self) -> impl Iterator<Item = (&str, &str)> {
        self.absent.iter().map(|(tag, feature)| (tag.as_str(), feature.as_str()))
    }

    pub(crate) fn source_entry(&self, type_tag: &str) -> Option<&Registered<dyn Source>> {
        self.sources.get(type_tag)
    }

    pub(crate) fn transform_entry(&self, type_tag: &str) -> Option<&Registered<dyn Transform>> {
        self.transforms.get(type_tag)
    }

    pub(crate) fn sink_entry(&self, type_tag: &str) -> Option<&Registered<dyn Sink>> {
        self.sinks.get(type_tag)
    }

    pub(crate) fn observer_entry(&self, key: &str) -> Option<&Registered<dyn Observer>> {
        self.observers.get(key)
    }

    pub(crate) fn described_observers(&self) -> Described<'_> {
        self.observers.iter().map(|(key, entry)| (key.as_str(), entry.describe)).collect()
    }

    /// The types of sources, transforms and sinks with their schemas.
    pub(crate) fn described(&self) -> (Described<'_>, Described<'_>, Described<'_>) {
        fn all<T: ?Sized>(map: &BTreeMap<String, Registered<T>>) -> Described<'_> {
            map.iter().map(|(tag, entry)| (tag.as_str(), entry.describe)).collect()
        }
        (all(&self.sources), all(&self.transforms), all(&self.sinks))
    }

    fn find<'a, T: ?Sized>(
        &self,
        map: &'a BTreeMap<String, Registered<T>>,
        role: &str,
        type_tag: &str,
    ) -> Result<&'a Registered<T>> {
        map.get(type_tag).ok_or_else(|| {
            let error = Error::config(format!("there is no {role} of this type")).with("type", type_tag);
            match self.absent.get(type_tag) {
                Some(feature) => error.remedy(format!("build with the cargo feature `{feature}`")),
                None => error.remedy(format!(
                    "the types are: {}",
                    map.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
                )),
            }
        })
    }
}

type Described<'a> = Vec<(&'a str, Option<Describe>)>;

fn unplaced(config: Value) -> Node {
    Node::from_json(&Place::whole("configuration"), config)
}

/// The type and the configuration that the environment holds for a node.
fn variables(node: &str) -> Result<(String, Node)> {
    let mut problems = Vec::new();
    let mut config = tree_of_variables(node, environment(), &mut problems);
    if !problems.is_empty() {
        return Err(SpecError::new(problems).into());
    }
    let type_tag = config.take("type").and_then(|entry| Some(entry.node.as_text()?.value.clone()));
    match type_tag {
        Some(type_tag) => Ok((type_tag, config)),
        None => Err(Error::config("no variable says the type of this node")
            .with("node", node)
            .remedy(format!("set {}TYPE", crate::spec::prefix_of_variables(node)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_type_says_what_there_is() {
        let mut registry = Registry::new();
        registry.add_absent("kafka", "kafka");
        let error = registry.source("kafka", Value::Null).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no source of this type (type: kafka); build with the cargo feature `kafka`"
        );
        assert!(registry.sink("nope", Value::Null).unwrap_err().to_string().contains("type: nope"));
    }
}
