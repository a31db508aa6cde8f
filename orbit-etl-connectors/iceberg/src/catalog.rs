//! Where tables are looked up.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use iceberg::memory::{MEMORY_CATALOG_WAREHOUSE, MemoryCatalogBuilder};
use iceberg::table::Table;
use iceberg::{Catalog, CatalogBuilder, TableIdent};
use iceberg_catalog_rest::{REST_CATALOG_PROP_URI, REST_CATALOG_PROP_WAREHOUSE, RestCatalogBuilder};
use orbit_etl_core::{Error, Result};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::error::from_iceberg;
use crate::storage::{Options, Stores};

/// A catalog of tables.
///
/// ```
/// use orbit_etl_connector_iceberg::IcebergCatalog;
///
/// let catalog = IcebergCatalog::rest("https://catalog.example.org").warehouse("lake");
/// ```
///
/// In a spec: `catalog: {type: rest, uri: …, warehouse: …, token: …}`. Clones share one connection, and a
/// memory catalog's clones its tables.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Config")]
pub struct IcebergCatalog {
    config: Config,
    open: Arc<OnceCell<Opened>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Config {
    Rest {
        uri: String,
        #[serde(default)]
        warehouse: Option<String>,
        #[serde(default)]
        token: Option<SecretString>,
        #[serde(default)]
        credential: Option<SecretString>,
        #[serde(default)]
        properties: BTreeMap<String, SecretString>,
        #[serde(default)]
        storage: Options,
    },
    Memory {
        warehouse: String,
        #[serde(default)]
        storage: Options,
    },
}

impl From<Config> for IcebergCatalog {
    fn from(config: Config) -> Self {
        Self { config, open: Arc::default() }
    }
}

/// A catalog in use, and its tables' files.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) stores: Stores,
}

impl IcebergCatalog {
    /// A catalog that speaks the Iceberg REST protocol.
    pub fn rest(uri: impl Into<String>) -> Self {
        Config::Rest {
            uri: uri.into(),
            warehouse: None,
            token: None,
            credential: None,
            properties: BTreeMap::new(),
            storage: Options::new(),
        }
        .into()
    }

    /// A catalog in this process' memory, with its tables' files below a location. For tests: another
    /// process knows nothing of its tables.
    pub fn memory(warehouse: impl Into<String>) -> Self {
        Config::Memory { warehouse: warehouse.into(), storage: Options::new() }.into()
    }

    /// Which of a REST server's warehouses, or where a memory catalog's files lie.
    #[must_use]
    pub fn warehouse(mut self, name: impl Into<String>) -> Self {
        match &mut self.config {
            Config::Rest { warehouse, .. } => *warehouse = Some(name.into()),
            Config::Memory { warehouse, .. } => *warehouse = name.into(),
        }
        self.open = Arc::default();
        self
    }

    /// The bearer token for a REST server.
    #[must_use]
    pub fn token(mut self, secret: impl Into<String>) -> Self {
        if let Config::Rest { token, .. } = &mut self.config {
            *token = Some(SecretString::from(secret.into()));
        }
        self.open = Arc::default();
        self
    }

    /// An option of the object store that the tables' files lie in: `region`, `endpoint`,
    /// `access_key_id`. What isn't given is taken from the environment.
    #[must_use]
    pub fn storage_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (Config::Rest { storage, .. } | Config::Memory { storage, .. }) = &mut self.config;
        storage.insert(key.into(), SecretString::from(value.into()));
        self.open = Arc::default();
        self
    }

    /// Checks the configuration.
    pub(crate) fn validate(&self) -> Result<()> {
        match &self.config {
            Config::Rest { uri, .. } if !uri.starts_with("http://") && !uri.starts_with("https://") => {
                Err(Error::config("the catalog's address is no http:// or https:// URL")
                    .with("option", "catalog.uri"))
            }
            Config::Memory { warehouse, .. } if warehouse.is_empty() => {
                Err(Error::config("must not be empty").with("option", "catalog.warehouse"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn open(&self) -> Result<&Opened> {
        self.open.get_or_try_init(|| self.connect()).await
    }

    pub(crate) async fn load(&self, ident: &TableIdent) -> Result<Table> {
        let opened = self.open().await?;
        opened.catalog.load_table(ident).await.map_err(|e| from_iceberg(e, "load a table", ident))
    }

    async fn connect(&self) -> Result<Opened> {
        let fail = |e| from_iceberg(e, "open the catalog", self);
        match &self.config {
            Config::Memory { warehouse, storage } => {
                let stores = Stores::new(storage.clone());
                let props = HashMap::from([(MEMORY_CATALOG_WAREHOUSE.to_owned(), warehouse.clone())]);
                let catalog = MemoryCatalogBuilder::default()
                    .with_storage_factory(Arc::new(stores.clone()))
                    .load("orbit", props)
                    .await
                    .map_err(fail)?;
                Ok(Opened { catalog: Arc::new(catalog), stores })
            }
            Config::Rest { uri, warehouse, token, credential, properties, storage } => {
                let stores = Stores::new(storage.clone());
                let mut props: HashMap<String, String> = properties
                    .iter()
                    .map(|(key, value)| (key.clone(), value.expose_secret().to_owned()))
                    .collect();
                props.insert(REST_CATALOG_PROP_URI.to_owned(), uri.clone());
                if let Some(warehouse) = warehouse {
                    props.insert(REST_CATALOG_PROP_WAREHOUSE.to_owned(), warehouse.clone());
                }
                for (key, secret) in [("token", token), ("credential", credential)] {
                    if let Some(secret) = secret {
                        props.insert(key.to_owned(), secret.expose_secret().to_owned());
                    }
                }
                let catalog = RestCatalogBuilder::default()
                    .with_storage_factory(Arc::new(stores.clone()))
                    .load("orbit", props)
                    .await
                    .map_err(fail)?;
                Ok(Opened { catalog: Arc::new(catalog), stores })
            }
        }
    }
}

impl fmt::Display for IcebergCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.config {
            Config::Rest { .. } => "rest",
            Config::Memory { .. } => "memory",
        })
    }
}

/// `namespace.table`, with dots between the parts of a nested namespace.
pub(crate) fn table_ident(name: &str) -> Result<TableIdent> {
    let parts: Vec<&str> = name.split('.').collect();
    if parts.len() < 2 || parts.iter().any(|part| part.is_empty()) {
        return Err(Error::config("a table is named by its namespace and its name")
            .with("table", name)
            .remedy("write `namespace.table`"));
    }
    TableIdent::from_strs(parts)
        .map_err(|e| Error::config("no table's name").with("table", name).caused_by(e))
}
