//! The object store of the log: one for all instances, answering each of them badly.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use orbit_etl_core::ErrorKind;

use super::world::{Fate, Instance};
use crate::log::faults::no_answer;

pub(crate) struct Store {
    pub(crate) inner: Arc<InMemory>,
    pub(crate) instance: Arc<Instance>,
}

impl Store {
    async fn request(&self, call: &str, write: bool) -> Result<Fate> {
        if self.outage() {
            self.instance.alive().await;
            let lost = self.instance.world.random(|r| r.one_in(3));
            self.instance.world.note(|| format!("{}: {call}: no answer, done: {lost}", self.instance.id));
            return if lost && write { Ok(Fate::Late) } else { Err(no_answer()) };
        }
        match self.instance.fate(call, write).await {
            Ok(fate) => Ok(fate),
            Err(error) if error.kind() == ErrorKind::Auth => {
                Err(object_store::Error::PermissionDenied { path: call.into(), source: error.into() })
            }
            Err(_) => {
                let mut state = self.instance.world.lock();
                // Most outages pass while the log tries again, some don't.
                state.outage = if state.random.one_in(2) { state.random.below(30) } else { 0 };
                Err(no_answer())
            }
        }
    }

    fn outage(&self) -> bool {
        let mut state = self.instance.world.lock();
        if state.rate.is_none() {
            state.outage = 0;
        }
        let out = state.outage > 0;
        state.outage = state.outage.saturating_sub(1);
        out
    }

    async fn answer<T>(&self, call: &str, done: T) -> Result<T> {
        self.instance.after(call).await.map(|()| done).map_err(|_| no_answer())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated log")
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated log")
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let call = format!("log put {path}");
        if self.request(&call, true).await? == Fate::Late {
            if self.instance.world.random(|r| r.one_in(2)) {
                let _ = self.inner.put_opts(path, payload, options).await;
            } else {
                let (inner, path) = (Arc::clone(&self.inner), path.clone());
                let request = move || {
                    async move {
                        let _ = inner.put_opts(&path, payload, options).await;
                    }
                    .boxed()
                };
                self.instance.world.delayed(call, Box::new(request));
            }
            return Err(no_answer());
        }
        let put = self.inner.put_opts(path, payload, options).await?;
        self.answer(&call, put).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.request(&format!("log get {path}"), false).await?;
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.instance.world.note(|| format!("{}: log delete", self.instance.id));
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request("log list", false).await?;
        let listed = self.inner.list_with_delimiter(prefix).await?;
        self.answer("log list", listed).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
