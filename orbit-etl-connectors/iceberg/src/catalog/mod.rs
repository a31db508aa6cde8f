//! Where tables are looked up.

#[cfg(feature = "sql")]
mod sql;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use iceberg::memory::{MEMORY_CATALOG_WAREHOUSE, MemoryCatalogBuilder};
use iceberg::table::Table;
use iceberg::{Catalog, CatalogBuilder, ErrorKind as Iceberg, TableIdent};
use iceberg_catalog_rest::{REST_CATALOG_PROP_URI, REST_CATALOG_PROP_WAREHOUSE, RestCatalogBuilder};
use orbit_etl_core::spec::{PathText, Secret};
use orbit_etl_core::{Error, Result};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::error::{cause, from_iceberg};
use crate::storage::{Options, Stores};

/// How long a REST server may take to be reached, and to answer.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);
/// The name under which a SQL catalog keeps its tables, unless another is given.
const DEFAULT_NAME: &str = "default";

/// A catalog of tables.
///
/// ```
/// use orbit_etl_connector_iceberg::IcebergCatalog;
///
/// let of_a_server = IcebergCatalog::rest("https://catalog.example.org").warehouse("lake");
/// let of_a_database = IcebergCatalog::sql("sqlite:///data/catalog.db").warehouse("s3://lake/tables");
/// ```
///
/// In a spec it is `catalog: {type: rest, uri: …, warehouse: …, token: …}`, `catalog: {type: sql, uri: …,
/// warehouse: …}` or `catalog: {type: memory, warehouse: …}`. Clones share one connection, and a memory
/// catalog's clones its tables.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(from = "Config")]
#[schemars(with = "Config")]
pub struct IcebergCatalog {
    config: Config,
    open: Arc<OnceCell<Opened>>,
}

/// Where tables are looked up.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Config {
    /// A server that speaks the Iceberg REST protocol.
    Rest {
        /// The server's address, `https://…`.
        uri: String,
        /// Which of the server's warehouses; its own choice unless given.
        #[serde(default)]
        warehouse: Option<String>,
        /// The bearer token.
        #[serde(default)]
        #[schemars(with = "Option<Secret>")]
        token: Option<SecretString>,
        /// The client's id and secret, as `id:secret`, where the server gives out tokens.
        #[serde(default)]
        #[schemars(with = "Option<Secret>")]
        credential: Option<SecretString>,
        /// Properties of the connection, such as `scope` or `header.x-tenant`.
        #[serde(default)]
        #[schemars(with = "BTreeMap<String, Secret>")]
        properties: BTreeMap<String, SecretString>,
        /// Options of the object store: `region`, `endpoint`, `access_key_id` …
        #[serde(default)]
        #[schemars(with = "BTreeMap<String, Secret>")]
        storage: Options,
    },
    /// A database, in the two tables that other clients use as well.
    Sql {
        /// `sqlite://` with a path, or `postgresql://`; with a password in it, perhaps.
        #[schemars(with = "Secret")]
        uri: SecretString,
        /// The name under which the catalog keeps its tables; `default` unless given.
        #[serde(default = "default_name")]
        name: String,
        /// Below which location new tables are put: a path or a URL.
        #[schemars(with = "PathText")]
        warehouse: String,
        /// Options of the object store: `region`, `endpoint`, `access_key_id` …
        #[serde(default)]
        #[schemars(with = "BTreeMap<String, Secret>")]
        storage: Options,
    },
    /// The memory of this process; for tests.
    Memory {
        /// Below which location tables are put: a path or a URL.
        #[schemars(with = "PathText")]
        warehouse: String,
        /// Options of the object store: `region`, `endpoint`, `access_key_id` …
        #[serde(default)]
        #[schemars(with = "BTreeMap<String, Secret>")]
        storage: Options,
    },
}

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
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

impl Opened {
    /// The newest metadata of a table.
    pub(crate) async fn load(&self, ident: &TableIdent) -> Result<Table> {
        self.catalog.load_table(ident).await.map_err(|e| from_iceberg(&e, "load the table", ident))
    }

    /// The same; `None` if there is no table.
    pub(crate) async fn try_load(&self, ident: &TableIdent) -> Result<Option<Table>> {
        match self.catalog.load_table(ident).await {
            Ok(table) => Ok(Some(table)),
            Err(e) if matches!(e.kind(), Iceberg::TableNotFound | Iceberg::NamespaceNotFound) => Ok(None),
            Err(e) => Err(from_iceberg(&e, "load the table", ident)),
        }
    }
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

    /// A catalog in a database, in the two tables that other clients use as well: `sqlite://` with a
    /// path, or `postgresql://`. Needs a [`warehouse`](Self::warehouse), and the cargo feature `sql`.
    /// Those two tables, and SQLite's file, are made when the catalog is first looked into.
    pub fn sql(uri: impl Into<String>) -> Self {
        Config::Sql {
            uri: SecretString::from(uri.into()),
            name: default_name(),
            warehouse: String::new(),
            storage: Options::new(),
        }
        .into()
    }

    /// A catalog in this process' memory, with its tables' files below a location. For tests: another
    /// process knows nothing of its tables.
    pub fn memory(warehouse: impl Into<String>) -> Self {
        Config::Memory { warehouse: warehouse.into(), storage: Options::new() }.into()
    }

    /// Which of a REST server's warehouses, or below which location other catalogs put new tables.
    #[must_use]
    pub fn warehouse(mut self, name: impl Into<String>) -> Self {
        match &mut self.config {
            Config::Rest { warehouse, .. } => *warehouse = Some(name.into()),
            Config::Sql { warehouse, .. } | Config::Memory { warehouse, .. } => *warehouse = name.into(),
        }
        self.reset()
    }

    /// The name under which a SQL catalog keeps its tables; `default` unless given. One database may hold
    /// several catalogs.
    #[must_use]
    pub fn name(mut self, to: impl Into<String>) -> Self {
        if let Config::Sql { name, .. } = &mut self.config {
            *name = to.into();
        }
        self.reset()
    }

    /// The bearer token for a REST server.
    #[must_use]
    pub fn token(mut self, secret: impl Into<String>) -> Self {
        if let Config::Rest { token, .. } = &mut self.config {
            *token = Some(SecretString::from(secret.into()));
        }
        self.reset()
    }

    /// The client's id and secret, as `id:secret`, for a REST server that gives out tokens.
    #[must_use]
    pub fn credential(mut self, secret: impl Into<String>) -> Self {
        if let Config::Rest { credential, .. } = &mut self.config {
            *credential = Some(SecretString::from(secret.into()));
        }
        self.reset()
    }

    /// A property for a REST server, such as `scope` or `header.x-tenant`.
    #[must_use]
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        if let Config::Rest { properties, .. } = &mut self.config {
            properties.insert(key.into(), SecretString::from(value.into()));
        }
        self.reset()
    }

    /// An option of the object store that the tables' files lie in: `region`, `endpoint`,
    /// `access_key_id`. What isn't given is taken from the environment.
    #[must_use]
    pub fn storage_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (Config::Rest { storage, .. } | Config::Sql { storage, .. } | Config::Memory { storage, .. }) =
            &mut self.config;
        storage.insert(key.into(), SecretString::from(value.into()));
        self.reset()
    }

    /// Another configuration has a connection of its own.
    fn reset(mut self) -> Self {
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
            Config::Sql { warehouse, .. } | Config::Memory { warehouse, .. } if warehouse.is_empty() => {
                Err(Error::config("the catalog has no warehouse")
                    .with("option", "catalog.warehouse")
                    .remedy("name the location below which new tables are put"))
            }
            Config::Sql { uri, .. } => {
                Database::of(uri.expose_secret())?;
                if cfg!(feature = "sql") { Ok(()) } else { Err(no_sql()) }
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn open(&self) -> Result<&Opened> {
        self.open.get_or_try_init(|| self.connect()).await
    }

    /// A catalog that is open already.
    #[cfg(test)]
    pub(crate) fn of(catalog: Arc<dyn Catalog>, stores: Stores) -> Self {
        let open = Arc::new(OnceCell::new_with(Some(Opened { catalog, stores })));
        Self { open, ..Self::memory("unused") }
    }

    async fn connect(&self) -> Result<Opened> {
        let fail = |e| from_iceberg(&e, "open the catalog", self);
        match &self.config {
            Config::Memory { warehouse, storage } => {
                let stores = Stores::new(storage.clone());
                let props = HashMap::from([(MEMORY_CATALOG_WAREHOUSE.to_owned(), location(warehouse)?)]);
                let builder = MemoryCatalogBuilder::default().with_storage_factory(Arc::new(stores.clone()));
                let catalog = builder.load("orbit", props).await.map_err(fail)?;
                Ok(Opened { catalog: Arc::new(catalog), stores })
            }
            #[cfg(feature = "sql")]
            Config::Sql { uri, name, warehouse, storage } => {
                let stores = Stores::new(storage.clone());
                let warehouse = location(warehouse)?;
                let catalog =
                    sql::SqlCatalog::connect(uri.expose_secret(), name, &warehouse, stores.clone()).await?;
                Ok(Opened { catalog: Arc::new(catalog), stores })
            }
            #[cfg(not(feature = "sql"))]
            Config::Sql { .. } => Err(no_sql()),
            Config::Rest { uri, warehouse, token, credential, properties, storage } => {
                let stores = Stores::new(storage.clone());
                let mut props: HashMap<String, String> =
                    properties.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect();
                props.insert(REST_CATALOG_PROP_URI.to_owned(), uri.trim_end_matches('/').to_owned());
                let rest = [("token", token), ("credential", credential)];
                for (key, secret) in rest {
                    if let Some(secret) = secret {
                        props.insert(key.to_owned(), secret.expose_secret().to_owned());
                    }
                }
                if let Some(warehouse) = warehouse {
                    props.insert(REST_CATALOG_PROP_WAREHOUSE.to_owned(), warehouse.clone());
                }
                let client = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER).build();
                let client = client.map_err(|e| {
                    Error::internal("there is no client for the catalog").caused_by(e.without_url())
                })?;
                let builder = RestCatalogBuilder::default()
                    .with_client(client)
                    .with_storage_factory(Arc::new(stores.clone()));
                let catalog = builder.load("orbit", props).await.map_err(fail)?;
                Ok(Opened { catalog: Arc::new(catalog), stores })
            }
        }
    }
}

/// The databases that may hold a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    fn of(uri: &str) -> Result<Self> {
        // As Python has it, a driver may stand behind the database's name.
        match uri.split([':', '+']).next() {
            Some("sqlite") => Ok(Self::Sqlite),
            Some("postgres" | "postgresql") => Ok(Self::Postgres),
            _ => Err(Error::config("a SQL catalog is in SQLite or in PostgreSQL")
                .with("option", "catalog.uri")
                .remedy("write sqlite:///path/to/catalog.db, or postgresql://user@host/database")),
        }
    }
}

fn no_sql() -> Error {
    Error::config("SQL catalogs are not compiled in")
        .with("option", "catalog.type")
        .remedy("turn the cargo feature `iceberg-sql` on")
}

impl fmt::Display for IcebergCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.config {
            Config::Rest { .. } => "rest",
            Config::Sql { .. } => "sql",
            Config::Memory { .. } => "memory",
        })
    }
}

/// A path as an absolute one; URLs stay as they are.
fn location(warehouse: &str) -> Result<String> {
    let warehouse = warehouse.trim_end_matches('/');
    if warehouse.contains(":/") {
        return Ok(warehouse.to_owned());
    }
    let path = std::path::absolute(warehouse).map_err(|e| {
        Error::config("the warehouse's path can't be made absolute").with("path", warehouse).caused_by(e)
    })?;
    let path = path.to_str().ok_or_else(|| Error::config("the warehouse's path is not UTF-8"))?;
    Ok(format!("file://{path}"))
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
        .map_err(|e| Error::config("no table's name").with("table", name).caused_by(cause(&e)))
}
