//! The conformance suite on Parquet in an S3 bucket.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use orbit_etl_connector_files::{FilesSink, FilesSource, Format};
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{
    Abilities, Breakage, Broken, Check, Fixture, Harness, async_trait, conformance, service,
};

struct Objects;

struct Prefix {
    bucket: String,
    prefix: String,
}

#[async_trait]
impl Harness for Objects {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let prefix = format!("conformance-{now}-{:?}", std::thread::current().id());
        let prefix = prefix.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let bucket = service("S3", None)?.trim_end_matches('/').to_owned();
        Ok(Box::new(Prefix { bucket, prefix }))
    }

    fn abilities(&self) -> Abilities {
        super::abilities(Format::Parquet)
    }
}

impl Prefix {
    fn url(&self, below: &str) -> String {
        format!("{}/{}/{below}", self.bucket, self.prefix)
    }

    fn store(&self) -> AmazonS3 {
        AmazonS3Builder::from_env().with_url(&self.bucket).build().unwrap()
    }
}

#[async_trait]
impl Fixture for Prefix {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(FilesSink::parquet(self.url("{stream}"))))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        let url = self.url(&streams[0].name);
        Ok(Some(Arc::new(super::source(url, Format::Parquet, &streams[0]))))
    }

    /// Each upload that isn't completed has a marker.
    async fn staged(&self) -> Check<Option<usize>> {
        let folder = Path::from(format!("{}/_orbit/staged", self.prefix));
        let markers: Vec<_> = self.store().list(Some(&folder)).try_collect().await.unwrap();
        Ok(Some(markers.len()))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let source: Arc<dyn Source> = match what {
            Breakage::Missing => Arc::new(FilesSource::parquet(self.url("nowhere"))),
            _ => return Ok(None),
        };
        Ok(Some(Broken::Source(source)))
    }
}

conformance!(s3_parquet, Objects);
