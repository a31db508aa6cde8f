//! The conformance suite on Parquet in object stores.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use orbit_etl_connector_files::{FilesSink, FilesSource, Format};
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{
    Abilities, Breakage, Broken, Check, Fixture, Harness, async_trait, conformance, service,
};

/// One kind of store.
#[derive(Clone, Copy)]
enum Objects {
    #[cfg(feature = "s3")]
    S3,
    /// Its service is told by an address of HTTP, behind which comes the container.
    #[cfg(feature = "azure")]
    Azure,
}

/// A part of a bucket or a container.
struct Prefix {
    store: Objects,
    bucket: String,
    prefix: String,
}

#[async_trait]
impl Harness for Objects {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let prefix = format!("conformance-{now}-{:?}", std::thread::current().id());
        let prefix = prefix.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let bucket = match self {
            #[cfg(feature = "s3")]
            Self::S3 => service("S3", None)?.trim_end_matches('/').to_owned(),
            #[cfg(feature = "azure")]
            Self::Azure => {
                let url = service("AZURE", None)?;
                format!("az://{}", url.trim_end_matches('/').rsplit('/').next().unwrap_or_default())
            }
        };
        Ok(Box::new(Prefix { store: *self, bucket, prefix }))
    }

    fn abilities(&self) -> Abilities {
        super::abilities(Format::Parquet)
    }
}

impl Prefix {
    fn url(&self, below: &str) -> String {
        format!("{}/{}/{below}", self.bucket, self.prefix)
    }

    fn store(&self) -> Box<dyn ObjectStore> {
        match self.store {
            #[cfg(feature = "s3")]
            Objects::S3 => {
                let builder = object_store::aws::AmazonS3Builder::from_env().with_url(&self.bucket);
                Box::new(builder.build().unwrap())
            }
            #[cfg(feature = "azure")]
            Objects::Azure => {
                let builder = object_store::azure::MicrosoftAzureBuilder::from_env().with_url(&self.bucket);
                Box::new(builder.build().unwrap())
            }
        }
    }

    /// With a key that isn't the account's. The S3 server of the tests takes any.
    fn stranger(&self) -> Option<FilesSource> {
        match self.store {
            #[cfg(feature = "s3")]
            Objects::S3 => None,
            #[cfg(feature = "azure")]
            Objects::Azure => {
                let source = FilesSource::parquet(self.url("nowhere"));
                Some(source.storage("access_key", "c29tZWJvZHkgZWxzZSdzIGtleQ==".to_string()))
            }
        }
    }

    /// A port that nobody listens on.
    #[cfg(feature = "s3")]
    fn nobody(&self) -> Option<FilesSource> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let source = FilesSource::parquet(self.url("nowhere")).storage("max_retries", "1".to_string());
        let source = source.storage("endpoint", format!("http://127.0.0.1:{port}"));
        matches!(self.store, Objects::S3).then_some(source)
    }

    #[cfg(not(feature = "s3"))]
    fn nobody(&self) -> Option<FilesSource> {
        None
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
        let source = match what {
            Breakage::Missing => Some(FilesSource::parquet(self.url("nowhere"))),
            Breakage::Unreachable => self.nobody(),
            Breakage::BadCredentials => self.stranger(),
        };
        Ok(source.map(|source| Broken::Source(Arc::new(source))))
    }
}

#[cfg(feature = "s3")]
conformance!(s3_parquet, Objects::S3);
#[cfg(feature = "azure")]
conformance!(azure_parquet, Objects::Azure);
