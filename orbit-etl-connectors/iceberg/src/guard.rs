//! Commits that look before they leap.
//!
//! The crate's transaction loads the table again when it commits, and builds the commit on just that
//! metadata. A check beforehand would say nothing of it. The guard stands between the transaction and
//! the catalog and checks *what is loaded*: the catalog refuses the commit if the branch has moved on
//! since.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::transaction::Transaction;
use iceberg::{
    Catalog, ErrorKind, Namespace, NamespaceIdent, Result, TableCommit, TableCreation, TableIdent,
};

/// Why a commit was not sent.
pub(crate) enum Refused<S> {
    /// The check said so, of the newest metadata.
    Check(S),
    /// The catalog failed.
    Catalog(iceberg::Error),
}

/// Commits unless `check` objects to the metadata that the commit builds on.
pub(crate) async fn commit<S: Send>(
    transaction: Transaction,
    catalog: &dyn Catalog,
    check: impl Fn(&TableMetadata) -> std::result::Result<(), S> + Send + Sync,
) -> std::result::Result<Table, Refused<S>> {
    let guard = Guard { catalog, check, said: Mutex::new(None) };
    let outcome = transaction.commit(&guard).await;
    match guard.said.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(objection) => Err(Refused::Check(objection)),
        None => outcome.map_err(Refused::Catalog),
    }
}

struct Guard<'a, C, S> {
    catalog: &'a dyn Catalog,
    check: C,
    said: Mutex<Option<S>>,
}

impl<C, S> fmt::Debug for Guard<'_, C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.catalog).finish()
    }
}

#[async_trait]
impl<C, S> Catalog for Guard<'_, C, S>
where
    C: Fn(&TableMetadata) -> std::result::Result<(), S> + Send + Sync,
    S: Send,
{
    async fn load_table(&self, table: &TableIdent) -> Result<Table> {
        let loaded = self.catalog.load_table(table).await?;
        match (self.check)(loaded.metadata()) {
            Ok(()) => Ok(loaded),
            Err(objection) => {
                *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(objection);
                // Not retryable, so that the transaction ends here.
                Err(iceberg::Error::new(ErrorKind::PreconditionFailed, "the commit is not wanted any more"))
            }
        }
    }

    async fn update_table(&self, commit: TableCommit) -> Result<Table> {
        // A lost commit is tried again by whoever checks and builds it, not by the transaction.
        self.catalog.update_table(commit).await.map_err(|error| error.with_retryable(false))
    }

    async fn list_namespaces(&self, parent: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>> {
        self.catalog.list_namespaces(parent).await
    }

    async fn create_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<Namespace> {
        self.catalog.create_namespace(namespace, properties).await
    }

    async fn get_namespace(&self, namespace: &NamespaceIdent) -> Result<Namespace> {
        self.catalog.get_namespace(namespace).await
    }

    async fn namespace_exists(&self, namespace: &NamespaceIdent) -> Result<bool> {
        self.catalog.namespace_exists(namespace).await
    }

    async fn update_namespace(
        &self,
        namespace: &NamespaceIdent,
        properties: HashMap<String, String>,
    ) -> Result<()> {
        self.catalog.update_namespace(namespace, properties).await
    }

    async fn drop_namespace(&self, namespace: &NamespaceIdent) -> Result<()> {
        self.catalog.drop_namespace(namespace).await
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<TableIdent>> {
        self.catalog.list_tables(namespace).await
    }

    async fn create_table(&self, namespace: &NamespaceIdent, creation: TableCreation) -> Result<Table> {
        self.catalog.create_table(namespace, creation).await
    }

    async fn drop_table(&self, table: &TableIdent) -> Result<()> {
        self.catalog.drop_table(table).await
    }

    async fn purge_table(&self, table: &TableIdent) -> Result<()> {
        self.catalog.purge_table(table).await
    }

    async fn table_exists(&self, table: &TableIdent) -> Result<bool> {
        self.catalog.table_exists(table).await
    }

    async fn rename_table(&self, src: &TableIdent, dest: &TableIdent) -> Result<()> {
        self.catalog.rename_table(src, dest).await
    }

    async fn register_table(&self, table: &TableIdent, metadata_location: String) -> Result<Table> {
        self.catalog.register_table(table, metadata_location).await
    }
}
