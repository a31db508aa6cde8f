//! A catalog in a database, in the tables that the Java, Python and Rust clients of Iceberg use as well.
//!
//! A commit writes a new metadata file and then moves the table's pointer to it, if that still points to
//! the file that the commit was built on. Of two commits that build on the same file one loses.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use iceberg::io::{FileIO, FileIOBuilder};
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::table::Table;
use iceberg::{
    Catalog, Error, ErrorKind, MetadataLocation, Namespace, NamespaceIdent, Result, Runtime, TableCommit,
    TableCreation, TableIdent,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{PgPool, SqlitePool};

use super::Database;
use crate::storage::Stores;

/// How long a database may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many connections a catalog uses.
const CONNECTIONS: u32 = 4;

const CREATE_TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL,
        property_value VARCHAR(1000) NOT NULL,
        PRIMARY KEY (catalog_name, namespace, property_key))",
];

/// What a namespace without properties is known by.
const EXISTS: (&str, &str) = ("exists", "true");

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Runs a statement with texts as parameters; gives the number of rows that it changed.
macro_rules! execute {
    ($pool:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $pool {
            Pool::Sqlite(pool) => {
                sqlx::query($sql)$(.bind($bind))*.execute(pool).await.map(|done| done.rows_affected())
            }
            Pool::Postgres(pool) => {
                sqlx::query($sql)$(.bind($bind))*.execute(pool).await.map(|done| done.rows_affected())
            }
        }
    };
}

/// Runs a query whose rows are of this type.
macro_rules! fetch {
    ($row:ty, $pool:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        match $pool {
            Pool::Sqlite(pool) => sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(pool).await,
            Pool::Postgres(pool) => sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(pool).await,
        }
    };
}

/// The catalog.
#[derive(Debug)]
pub(super) struct SqlCatalog {
    name: String,
    warehouse: String,
    pool: Pool,
    /// Whether tables are told from views by a column of their own, as newer clients do.
    has_types: bool,
    io: FileIO,
    stores: Stores,
    runtime: Runtime,
}

impl SqlCatalog {
    pub(super) async fn connect(
        uri: &str,
        name: &str,
        warehouse: &str,
        stores: Stores,
    ) -> orbit_etl_core::Result<Self> {
        use orbit_etl_core::{Error, ErrorKind};

        // What the driver says of an address may quote the password.
        let refuse = |_| Error::config("the catalog's address can't be read").with("option", "catalog.uri");
        let pool = match Database::of(uri)? {
            Database::Sqlite => {
                let path = uri.split_once(':').map_or(uri, |(_, path)| path);
                // Three slashes before a relative path, four before an absolute one, says Python; two
                // or three, says sqlx.
                let path = match path.strip_prefix("////") {
                    Some(path) => format!("/{path}"),
                    None => path.strip_prefix("//").unwrap_or(path).to_owned(),
                };
                let options =
                    SqliteConnectOptions::new().filename(path).create_if_missing(true).busy_timeout(PATIENCE);
                Pool::Sqlite(SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options))
            }
            Database::Postgres => {
                let uri = match (uri.split_once('+'), uri.split_once(':')) {
                    (Some((kind, _)), Some((both, rest))) if both.starts_with(kind) => {
                        format!("{kind}:{rest}")
                    }
                    _ => uri.to_owned(),
                };
                let options = PgConnectOptions::from_str(&uri).map_err(refuse)?;
                let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE);
                Pool::Postgres(pool.connect_lazy_with(options))
            }
        };
        let fail = |e: sqlx::Error| {
            let (kind, remedy) = match &e {
                sqlx::Error::Database(e) if e.code().is_some_and(|code| code.starts_with("28")) => {
                    (ErrorKind::Auth, "check the user and the password")
                }
                sqlx::Error::Database(e) if e.code().as_deref() == Some("14") => {
                    (ErrorKind::NotFound, "check that the database's folder is there")
                }
                sqlx::Error::Database(_) => (ErrorKind::Unavailable, "check the database"),
                _ => (ErrorKind::Unavailable, "check that the server runs and can be reached"),
            };
            Error::new(kind, "can't open the catalog's database").remedy(remedy).caused_by(e)
        };
        for statement in CREATE_TABLES {
            // Two that make the table at the same time disturb each other in PostgreSQL.
            if execute!(&pool, statement).is_err() {
                execute!(&pool, statement).map_err(fail)?;
            }
        }
        let typed = "SELECT iceberg_type FROM iceberg_tables LIMIT 0";
        let has_types = fetch!((Option<String>,), &pool, typed).is_ok();
        Ok(Self {
            name: name.to_owned(),
            warehouse: warehouse.to_owned(),
            pool,
            has_types,
            io: FileIOBuilder::new(Arc::new(stores.clone())).build(),
            stores,
            runtime: Runtime::try_current()
                .map_err(|e| Error::internal("there is no runtime").caused_by(crate::error::cause(&e)))?,
        })
    }

    /// Where a table's metadata is; `None` if there is no such table.
    async fn pointer(&self, table: &TableIdent) -> Result<Option<String>> {
        const TYPED: &str = "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = $1 \
            AND table_namespace = $2 AND table_name = $3 AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)";
        const PLAIN: &str = "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = $1 \
            AND table_namespace = $2 AND table_name = $3";
        let sql = if self.has_types { TYPED } else { PLAIN };
        let namespace = joined(table.namespace());
        let found = fetch!((Option<String>,), &self.pool, sql, &self.name, &namespace, table.name())
            .map_err(|e| failed("look the table up", e))?;
        Ok(found.into_iter().next().and_then(|(location,)| location))
    }

    async fn insert(&self, table: &TableIdent, location: &str) -> Result<()> {
        const TYPED: &str = "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, \
            metadata_location, iceberg_type) VALUES ($1, $2, $3, $4, 'TABLE')";
        const PLAIN: &str = "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, \
            metadata_location) VALUES ($1, $2, $3, $4)";
        let sql = if self.has_types { TYPED } else { PLAIN };
        let namespace = joined(table.namespace());
        match execute!(&self.pool, sql, &self.name, &namespace, table.name(), location) {
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(e)) if e.is_unique_violation() => {
                Err(Error::new(ErrorKind::TableAlreadyExists, "the table is there already"))
            }
            Err(e) => Err(failed("make the table", e)),
        }
    }

    fn table(&self, ident: &TableIdent, location: &str, metadata: TableMetadata) -> Result<Table> {
        Table::builder()
            .identifier(ident.clone())
            .metadata(metadata)
            .metadata_location(location.to_owned())
            .file_io(self.io.clone())
            .runtime(self.runtime.clone())
            .build()
    }

    async fn properties(&self, namespace: &NamespaceIdent) -> Result<HashMap<String, String>> {
        let sql = "SELECT property_key, property_value FROM iceberg_namespace_properties \
            WHERE catalog_name = $1 AND namespace = $2";
        let found = fetch!((String, String), &self.pool, sql, &self.name, joined(namespace))
            .map_err(|e| failed("look the namespace up", e))?;
        Ok(found.into_iter().collect())
    }

    async fn need(&self, namespace: &NamespaceIdent) -> Result<()> {
        match self.namespace_exists(namespace).await? {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::NamespaceNotFound, "there is no such namespace")),
        }
    }
}

#[async_trait]
impl Catalog for SqlCatalog {
    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>> {
        let sql = "SELECT DISTINCT namespace FROM iceberg_namespace_properties WHERE catalog_name = $1 \
            UNION SELECT DISTINCT table_namespace FROM iceberg_tables WHERE catalog_name = $1";
        let all =
            fetch!((String,), &self.pool, sql, &self.name).map_err(|e| failed("list the namespaces", e))?;
        let depth = parent.map_or(0, |parent| parent.len());
        let mut found: Vec<Vec<String>> = all
            .into_iter()
            .map(|(name,)| name.split('.').map(str::to_owned).collect::<Vec<_>>())
            .filter(|parts| parts.len() > depth && parent.is_none_or(|p| parts.starts_with(p)))
            .map(|mut parts| {
                parts.truncate(depth + 1);
                parts
            })
            .collect();
        found.sort();
        found.dedup();
        found.into_iter().map(NamespaceIdent::from_vec).collect()
    }

    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<Namespace> {
        if self.namespace_exists(namespace).await? {
            return Err(Error::new(ErrorKind::NamespaceAlreadyExists, "the namespace is there already"));
        }
        self.update_namespace(namespace, properties.clone()).await?;
        Ok(Namespace::with_properties(namespace.clone(), properties))
    }

    async fn get_namespace(&self, namespace: &NamespaceIdent) -> Result<Namespace> {
        self.need(namespace).await?;
        Ok(Namespace::with_properties(namespace.clone(), self.properties(namespace).await?))
    }

    async fn namespace_exists(&self, namespace: &NamespaceIdent) -> Result<bool> {
        if !self.properties(namespace).await?.is_empty() {
            return Ok(true);
        }
        let sql = "SELECT DISTINCT table_namespace FROM iceberg_tables WHERE catalog_name = $1 \
            AND table_namespace = $2";
        let tables = fetch!((String,), &self.pool, sql, &self.name, joined(namespace))
            .map_err(|e| failed("look the namespace up", e))?;
        Ok(!tables.is_empty())
    }

    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        mut properties: HashMap<String, String>,
    ) -> Result<()> {
        let upsert = "INSERT INTO iceberg_namespace_properties \
            (catalog_name, namespace, property_key, property_value) VALUES ($1, $2, $3, $4) \
            ON CONFLICT (catalog_name, namespace, property_key) \
            DO UPDATE SET property_value = excluded.property_value";
        let name = joined(namespace);
        let fail = |e| failed("change the namespace", e);
        properties.entry(EXISTS.0.to_owned()).or_insert_with(|| EXISTS.1.to_owned());
        for key in self.properties(namespace).await?.into_keys().filter(|key| !properties.contains_key(key)) {
            let sql = "DELETE FROM iceberg_namespace_properties WHERE catalog_name = $1 \
                AND namespace = $2 AND property_key = $3";
            execute!(&self.pool, sql, &self.name, &name, &key).map_err(fail)?;
        }
        for (key, value) in &properties {
            execute!(&self.pool, upsert, &self.name, &name, key, value).map_err(fail)?;
        }
        Ok(())
    }

    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<()> {
        self.need(namespace).await?;
        if !self.list_tables(namespace).await?.is_empty() {
            return Err(Error::new(ErrorKind::PreconditionFailed, "the namespace still has tables"));
        }
        let sql = "DELETE FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2";
        execute!(&self.pool, sql, &self.name, joined(namespace))
            .map(drop)
            .map_err(|e| failed("drop the namespace", e))
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>> {
        let sql = "SELECT table_name FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2 \
            ORDER BY table_name";
        let found = fetch!((String,), &self.pool, sql, &self.name, joined(namespace))
            .map_err(|e| failed("list the tables", e))?;
        Ok(found.into_iter().map(|(name,)| TableIdent::new(namespace.clone(), name)).collect())
    }

    async fn create_table(&self, namespace: &NamespaceIdent, mut creation: TableCreation) -> Result<Table> {
        self.need(namespace).await?;
        let ident = TableIdent::new(namespace.clone(), creation.name.clone());
        if self.pointer(&ident).await?.is_some() {
            return Err(Error::new(ErrorKind::TableAlreadyExists, "the table is there already"));
        }
        let location = match creation.location.take() {
            Some(location) => location,
            None => {
                let above = match self.properties(namespace).await?.remove("location") {
                    Some(location) => location,
                    None => format!("{}/{}", self.warehouse, namespace.join("/")),
                };
                format!("{}/{}", above.trim_end_matches('/'), ident.name())
            }
        };
        creation.location = Some(location.clone());
        let metadata = TableMetadataBuilder::from_table_creation(creation)?.build()?.metadata;
        let at = MetadataLocation::new_with_metadata(location, &metadata);
        metadata.write_to(&self.io, &at).await?;
        self.insert(&ident, &at.to_string()).await?;
        self.table(&ident, &at.to_string(), metadata)
    }

    async fn load_table(&self, table: &TableIdent) -> Result<Table> {
        let Some(location) = self.pointer(table).await? else {
            return Err(Error::new(ErrorKind::TableNotFound, "there is no such table"));
        };
        let metadata = TableMetadata::read_from(&self.io, &location).await?;
        self.table(table, &location, metadata)
    }

    async fn drop_table(&self, table: &TableIdent) -> Result<()> {
        let sql = "DELETE FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2 \
            AND table_name = $3";
        match execute!(&self.pool, sql, &self.name, joined(table.namespace()), table.name()) {
            Ok(0) => Err(Error::new(ErrorKind::TableNotFound, "there is no such table")),
            Ok(_) => Ok(()),
            Err(e) => Err(failed("drop the table", e)),
        }
    }

    async fn purge_table(&self, table: &TableIdent) -> Result<()> {
        // What belongs to a table alone can't be told from here.
        let _ = table;
        Err(Error::new(ErrorKind::FeatureUnsupported, "this catalog drops tables, but not their files"))
    }

    async fn table_exists(&self, table: &TableIdent) -> Result<bool> {
        Ok(self.pointer(table).await?.is_some())
    }

    async fn rename_table(&self, src: &TableIdent, dest: &TableIdent) -> Result<()> {
        self.need(dest.namespace()).await?;
        let sql = "UPDATE iceberg_tables SET table_namespace = $1, table_name = $2 WHERE catalog_name = $3 \
            AND table_namespace = $4 AND table_name = $5";
        let (to, from) = (joined(dest.namespace()), joined(src.namespace()));
        match execute!(&self.pool, sql, &to, dest.name(), &self.name, &from, src.name()) {
            Ok(0) => Err(Error::new(ErrorKind::TableNotFound, "there is no such table")),
            Ok(_) => Ok(()),
            Err(sqlx::Error::Database(e)) if e.is_unique_violation() => {
                Err(Error::new(ErrorKind::TableAlreadyExists, "the table is there already"))
            }
            Err(e) => Err(failed("rename the table", e)),
        }
    }

    async fn register_table(&self, table: &TableIdent, metadata_location: String) -> Result<Table> {
        self.need(table.namespace()).await?;
        let metadata = TableMetadata::read_from(&self.io, &metadata_location).await?;
        self.insert(table, &metadata_location).await?;
        self.table(table, &metadata_location, metadata)
    }

    async fn update_table(&self, commit: TableCommit) -> Result<Table> {
        let ident = commit.identifier().clone();
        let before = self.load_table(&ident).await?;
        let old = before.metadata_location_result()?.to_owned();
        let after = commit.apply(before)?;
        let at = MetadataLocation::from_str(after.metadata_location_result()?)?;
        let new = at.to_string();
        after.metadata().write_to(&self.io, &at).await?;
        let sql = "UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = $2 \
            WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 AND metadata_location = $2";
        let namespace = joined(ident.namespace());
        match execute!(&self.pool, sql, &new, &old, &self.name, &namespace, ident.name()) {
            Ok(0) => {
                // Nobody knows of it; if it can't be removed it is left behind.
                let _ = self.stores.remove(&new).await;
                Err(Error::new(ErrorKind::CatalogCommitConflicts, "another commit was quicker")
                    .with_retryable(true))
            }
            Ok(_) => Ok(after),
            Err(e) => Err(failed("commit", e)),
        }
    }
}

fn joined(namespace: &NamespaceIdent) -> String {
    namespace.join(".")
}

fn failed(doing: &str, error: sqlx::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("can't {doing} in the catalog's database")).with_source(error)
}
