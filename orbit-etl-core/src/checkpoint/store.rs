//! Requests to the object store that the log lives in: retries, outcomes, errors.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::error::{Error, ErrorKind, Result};
use crate::planted::{Bug, planted};

/// How often a request is sent before its error counts. All requests of the log may be repeated:
/// reads, and writes of the same bytes under the same name.
const ATTEMPTS: u32 = 5;

/// Doubled after every attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Whether it is unknown if the request that failed has taken effect. Only the next claim decides:
/// nothing that belongs to the epoch may be discarded.
pub fn is_undecided(error: &Error) -> bool {
    error.context(UNDECIDED).is_some()
}

/// Marks an error as one for [`is_undecided`].
pub(super) fn undecided(error: Error) -> Error {
    error.with(UNDECIDED, true)
}

const UNDECIDED: &str = "undecided";

/// What came of a create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Created {
    /// The object is there, with these bytes.
    Mine,
    /// An object with other bytes is there.
    Foreign,
    /// The store says that something is there, again and again, but nothing is.
    Gone,
}

/// An object store as the log uses it.
#[derive(Debug, Clone)]
pub(crate) struct Store(pub(crate) Arc<dyn ObjectStore>);

impl Store {
    /// Creates an object unless there is one of that name. An answer that was lost is found out by
    /// sending the same bytes again.
    ///
    /// # Errors
    /// [`is_undecided`] unless the store has refused.
    pub(super) async fn create(&self, path: &Path, bytes: &Bytes) -> Result<Created> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        let mut lost = false;
        loop {
            let put = self.0.put_opts(path, PutPayload::from(bytes.clone()), options.clone()).await;
            let error = match put {
                Ok(_) => return Ok(Created::Mine),
                // Some stores also answer so while another request for the same name is under way.
                Err(
                    taken @ (object_store::Error::AlreadyExists { .. }
                    | object_store::Error::Precondition { .. }),
                ) => match self.read_once(path).await {
                    Ok(Some(found)) if found == *bytes || planted(Bug::NoHashCheck) => {
                        return Ok(Created::Mine);
                    }
                    Ok(Some(_)) => return Ok(Created::Foreign),
                    Ok(None) if attempt == ATTEMPTS => return Ok(Created::Gone),
                    Ok(None) => taken,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let refused = is_refusal(&error);
            if refused && !lost {
                return Err(store_error(error, "can't write to the checkpoint log", path));
            }
            if refused || attempt == ATTEMPTS {
                return Err(undecided(store_error(
                    error,
                    "can't tell whether a log entry was written",
                    path,
                )));
            }
            lost = true;
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Writes an object whose name stands for its content.
    pub(super) async fn put(&self, path: &Path, bytes: &Bytes) -> Result<()> {
        retried(path, "can't write a part of a checkpoint", || async {
            self.0.put(path, PutPayload::from(bytes.clone())).await.map(|_| ())
        })
        .await
    }

    /// Reads an object; `None` if there is none.
    pub(super) async fn read(&self, path: &Path) -> Result<Option<Bytes>> {
        retried(path, "can't read the checkpoint log", || self.read_once(path)).await
    }

    async fn read_once(&self, path: &Path) -> object_store::Result<Option<Bytes>> {
        match self.0.get(path).await {
            Ok(found) => match found.bytes().await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            },
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the objects directly below `prefix`.
    pub(super) async fn names(&self, prefix: &Path) -> Result<Vec<String>> {
        retried(prefix, "can't list the checkpoint log", || async {
            let listed = self.0.list_with_delimiter(Some(prefix)).await?;
            let names = listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned));
            Ok(names.collect())
        })
        .await
    }

    /// Deletes objects, in any order; what is missing is gone. Doesn't try again.
    pub(super) async fn delete(&self, paths: Vec<Path>) -> Result<()> {
        for path in paths {
            match self.0.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(store_error(error, "can't delete old checkpoints", &path)),
            }
        }
        Ok(())
    }
}

async fn retried<T, F>(path: &Path, failure: &str, request: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match request().await {
            Ok(done) => return Ok(done),
            Err(error) if is_refusal(&error) => return Err(store_error(error, failure, path)),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause *= 2;
    }
    request().await.map_err(|error| store_error(error, failure, path))
}

/// Whether the store has decided against the request, so that it had no effect and never will.
fn is_refusal(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(
        error,
        E::InvalidPath { .. }
            | E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::PermissionDenied { .. }
            | E::Unauthenticated { .. }
            | E::UnknownConfigurationKey { .. }
    )
}

/// The store's error as the engine's.
pub(super) fn store_error(error: object_store::Error, message: &str, path: &Path) -> Error {
    use object_store::Error as E;
    let (kind, remedy) = match &error {
        E::NotFound { .. } => (ErrorKind::NotFound, None),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            (ErrorKind::Auth, Some("give the pipeline the right to list, read, write and delete there"))
        }
        E::NotSupported { .. } | E::NotImplemented { .. } => (
            ErrorKind::Unsupported,
            Some("keep the checkpoints in a store that can create an object only if there is none"),
        ),
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => (ErrorKind::Config, None),
        _ => match io_kind(&error) {
            Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
                (ErrorKind::Resources, Some("free some space where the checkpoints are kept"))
            }
            Some(std::io::ErrorKind::TimedOut) => (ErrorKind::Timeout, None),
            Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
                (ErrorKind::Auth, Some("give the pipeline the right to list, read, write and delete there"))
            }
            _ => (ErrorKind::Unavailable, None),
        },
    };
    let made = Error::new(kind, message).with("path", path).caused_by(error);
    match remedy {
        Some(remedy) => made.remedy(remedy),
        None => made,
    }
}

fn io_kind(error: &object_store::Error) -> Option<std::io::ErrorKind> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}
