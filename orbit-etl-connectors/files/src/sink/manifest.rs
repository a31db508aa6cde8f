//! What is published: one manifest an epoch.

use orbit_etl_core::{Committable, Epoch, Error, Result};
use serde::{Deserialize, Serialize};

use super::Mode;

/// A file that waits for its epoch's commit: the body of a committable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    /// The staged file, or the marker of the upload; below the root.
    pub(crate) staged: String,
    /// Where it will be; below the root.
    pub(crate) path: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<Upload>,
}

/// An upload whose parts are all there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) id: String,
    pub(crate) parts: Vec<String>,
}

impl Staged {
    pub(crate) fn to_committable(&self) -> Result<Committable> {
        serde_json::to_value(self)
            .map(Committable)
            .map_err(|e| Error::internal("can't describe a staged file").caused_by(e))
    }

    pub(crate) fn from_committable(committable: Committable) -> Result<Self> {
        serde_json::from_value(committable.0).map_err(|e| {
            Error::internal("a committable of this sink can't be read")
                .remedy("commit it with the version of the connector that staged it")
                .caused_by(e)
        })
    }
}

/// The marker that an upload leaves while it is in progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The object that is uploaded; below the root.
    pub(crate) path: String,
    pub(crate) upload: String,
}

/// The files of one epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) lineage: String,
    pub(crate) sink: String,
    pub(crate) epoch: Epoch,
    pub(crate) generation: u64,
    pub(crate) claim: u64,
    pub(crate) run: String,
    /// `overwrite`: these files replace those of all manifests of lower generations.
    pub(crate) mode: Mode,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) files: Vec<PublishedFile>,
}

/// One line of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublishedFile {
    /// Below the root.
    pub(crate) path: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

impl Manifest {
    pub(crate) const VERSION: u32 = 1;
}

impl From<&Staged> for PublishedFile {
    fn from(staged: &Staged) -> Self {
        Self { path: staged.path.clone(), rows: staged.rows, bytes: staged.bytes }
    }
}

/// JSON, one document.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal("can't write a sink's own file").caused_by(e))
}

/// The reverse; the error names the file.
pub(crate) fn from_json<T: for<'a> Deserialize<'a>>(bytes: &[u8], file: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::data("one of the sink's own files can't be read")
            .with("file", file)
            .remedy("restore it, or start with an empty target and a new state directory")
            .caused_by(e)
    })
}
