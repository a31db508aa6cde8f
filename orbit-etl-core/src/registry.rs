//! Which `type` stands for which source, transform or sink.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::sink::Sink;
use crate::source::Source;
use crate::transform::Transform;

type Factory<T> = Box<dyn Fn(Value) -> Result<Arc<T>> + Send + Sync>;

/// Makes sources, transforms and sinks from a `type` and its configuration. Nothing registers itself:
/// a host fills the registry with what it wants to offer, its own types too.
#[derive(Default)]
pub struct Registry {
    sources: BTreeMap<String, Factory<dyn Source>>,
    transforms: BTreeMap<String, Factory<dyn Transform>>,
    sinks: BTreeMap<String, Factory<dyn Sink>>,
    /// Types that could be there, and the feature that they need.
    absent: BTreeMap<String, String>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("sources", &self.sources.keys())
            .field("transforms", &self.transforms.keys())
            .field("sinks", &self.sinks.keys())
            .finish()
    }
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a source whose configuration deserializes to it.
    pub fn add_source<S: Source + DeserializeOwned>(&mut self, type_tag: &str) -> &mut Self {
        self.add_source_with(type_tag, |config| Ok(Arc::new(read::<S>(config)?)))
    }

    /// Registers a source that is made by a function.
    pub fn add_source_with(
        &mut self,
        type_tag: &str,
        factory: impl Fn(Value) -> Result<Arc<dyn Source>> + Send + Sync + 'static,
    ) -> &mut Self {
        self.sources.insert(type_tag.to_owned(), Box::new(factory));
        self
    }

    /// Registers a transform whose configuration deserializes to it.
    pub fn add_transform<T: Transform + DeserializeOwned>(&mut self, type_tag: &str) -> &mut Self {
        self.add_transform_with(type_tag, |config| Ok(Arc::new(read::<T>(config)?)))
    }

    /// Registers a transform that is made by a function.
    pub fn add_transform_with(
        &mut self,
        type_tag: &str,
        factory: impl Fn(Value) -> Result<Arc<dyn Transform>> + Send + Sync + 'static,
    ) -> &mut Self {
        self.transforms.insert(type_tag.to_owned(), Box::new(factory));
        self
    }

    /// Registers a sink whose configuration deserializes to it.
    pub fn add_sink<S: Sink + DeserializeOwned>(&mut self, type_tag: &str) -> &mut Self {
        self.add_sink_with(type_tag, |config| Ok(Arc::new(read::<S>(config)?)))
    }

    /// Registers a sink that is made by a function.
    pub fn add_sink_with(
        &mut self,
        type_tag: &str,
        factory: impl Fn(Value) -> Result<Arc<dyn Sink>> + Send + Sync + 'static,
    ) -> &mut Self {
        self.sinks.insert(type_tag.to_owned(), Box::new(factory));
        self
    }

    /// Notes a type that this build lacks and the cargo feature that brings it.
    pub fn add_absent(&mut self, type_tag: &str, feature: &str) -> &mut Self {
        self.absent.insert(type_tag.to_owned(), feature.to_owned());
        self
    }

    /// Makes a source.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config): an unknown type, or a configuration that doesn't fit it.
    pub fn source(&self, type_tag: &str, config: Value) -> Result<Arc<dyn Source>> {
        self.find(&self.sources, "source", type_tag)?(config).map_err(|e| e.with("type", type_tag))
    }

    /// Makes a transform.
    ///
    /// # Errors
    /// As [`Registry::source`].
    pub fn transform(&self, type_tag: &str, config: Value) -> Result<Arc<dyn Transform>> {
        self.find(&self.transforms, "transform", type_tag)?(config).map_err(|e| e.with("type", type_tag))
    }

    /// Makes a sink.
    ///
    /// # Errors
    /// As [`Registry::source`].
    pub fn sink(&self, type_tag: &str, config: Value) -> Result<Arc<dyn Sink>> {
        self.find(&self.sinks, "sink", type_tag)?(config).map_err(|e| e.with("type", type_tag))
    }

    /// The types of sources, transforms and sinks that are registered.
    pub fn types(&self) -> (Vec<&str>, Vec<&str>, Vec<&str>) {
        fn names<T: ?Sized>(map: &BTreeMap<String, Factory<T>>) -> Vec<&str> {
            map.keys().map(String::as_str).collect()
        }
        (names(&self.sources), names(&self.transforms), names(&self.sinks))
    }

    fn find<'a, T: ?Sized>(
        &self,
        map: &'a BTreeMap<String, Factory<T>>,
        role: &str,
        type_tag: &str,
    ) -> Result<&'a Factory<T>> {
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

fn read<T: DeserializeOwned>(config: Value) -> Result<T> {
    // serde's messages name keys and types; of values they repeat only those of the configuration.
    serde_json::from_value(config).map_err(|e| Error::config("the configuration doesn't fit").caused_by(e))
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
