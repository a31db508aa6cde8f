//! An object store that goes wrong where a test says so.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// What a fault waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Put,
    Get,
    List,
    Delete,
}

/// What happens to one request.
pub(crate) enum Fault {
    /// It has its effect, and the answer is lost.
    Lost,
    /// It has no effect, and the caller can't know.
    Dropped,
    /// It has its effect when the test says [`Faults::land`]; the caller hears nothing.
    Delayed,
    /// It is answered with this.
    Refused(object_store::Error),
    /// This happens first.
    After(BoxFuture<'static, ()>),
}

/// A wrapper with a script of faults: the first that fits a request is used up by it.
pub(crate) struct Faults {
    pub(crate) inner: Arc<dyn ObjectStore>,
    script: Mutex<VecDeque<(On, Fault)>>,
    late: Mutex<Vec<(Path, PutPayload, PutOptions)>>,
    pub(crate) puts: Mutex<Vec<Path>>,
}

impl Faults {
    pub(crate) fn over(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner, script: Mutex::default(), late: Mutex::default(), puts: Mutex::default() })
    }

    pub(crate) fn plan(&self, on: On, fault: Fault) {
        self.script.lock().unwrap().push_back((on, fault));
    }

    /// Whether every planned fault has come about.
    pub(crate) fn used_up(&self) -> bool {
        self.script.lock().unwrap().is_empty()
    }

    /// Delayed requests reach the store. Says how many of them had an effect.
    pub(crate) async fn land(&self) -> usize {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        let mut landed = 0;
        for (path, payload, options) in late {
            landed += usize::from(self.inner.put_opts(&path, payload, options).await.is_ok());
        }
        landed
    }

    /// The blobs that were put since the last call.
    pub(crate) fn blobs_put(&self) -> BTreeSet<String> {
        let puts = std::mem::take(&mut *self.puts.lock().unwrap());
        puts.iter().map(ToString::to_string).filter(|path| path.contains("blobs/")).collect()
    }

    async fn next(&self, on: On) -> Option<Fault> {
        let fault = {
            let mut script = self.script.lock().unwrap();
            let found = script.iter().position(|(wanted, _)| *wanted == on)?;
            script.remove(found)?.1
        };
        match fault {
            Fault::After(first) => {
                first.await;
                None
            }
            fault => Some(fault),
        }
    }
}

pub(crate) fn no_answer() -> object_store::Error {
    object_store::Error::Generic { store: "Faults", source: "no answer".into() }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults({})", self.inner)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faults({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faults {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.puts.lock().unwrap().push(path.clone());
        match self.next(On::Put).await {
            Some(Fault::Lost) => {
                let _ = self.inner.put_opts(path, payload, options).await;
                Err(no_answer())
            }
            Some(Fault::Delayed) => {
                self.late.lock().unwrap().push((path.clone(), payload, options));
                Err(no_answer())
            }
            Some(Fault::Refused(error)) => Err(error),
            Some(_) => Err(no_answer()),
            None => self.inner.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        match self.next(On::Get).await {
            Some(Fault::Refused(error)) => Err(error),
            Some(_) => Err(no_answer()),
            None => self.inner.get_opts(path, options).await,
        }
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let fault = self.next(On::Delete).now_or_never().flatten();
        match fault {
            Some(_) => futures::stream::iter([Err(no_answer())]).boxed(),
            None => self.inner.delete_stream(paths),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.next(On::List).await {
            Some(Fault::Refused(error)) => Err(error),
            Some(_) => Err(no_answer()),
            None => self.inner.list_with_delimiter(prefix).await,
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// The whole object.
pub(crate) async fn read(store: &dyn ObjectStore, path: &str) -> Bytes {
    store.get(&Path::from(path)).await.unwrap().bytes().await.unwrap()
}
