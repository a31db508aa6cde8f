//! The conformance suite in an S3 bucket.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use orbit_etl_connector_delta::{DeltaSink, DeltaSource};
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
        let prefix = format!("delta-{now}-{:?}", std::thread::current().id());
        let prefix = prefix.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let bucket = service("S3", None)?.trim_end_matches('/').to_owned();
        Ok(Box::new(Prefix { bucket, prefix }))
    }

    fn abilities(&self) -> Abilities {
        super::abilities()
    }
}

impl Prefix {
    fn url(&self, below: &str) -> String {
        format!("{}/{}/{below}", self.bucket, self.prefix)
    }
}

#[async_trait]
impl Fixture for Prefix {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(DeltaSink::append(self.url("{stream}"))))
    }

    async fn source(&self, streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        Ok(Some(Arc::new(DeltaSource::new(self.url(&streams[0].name)).name(&streams[0].name))))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        let source: Arc<dyn Source> = match what {
            Breakage::Missing => Arc::new(DeltaSource::new(self.url("nowhere"))),
            Breakage::Unreachable => {
                Arc::new(DeltaSource::new(self.url("rows")).storage_option("endpoint", "http://127.0.0.1:1"))
            }
            _ => return Ok(None),
        };
        Ok(Some(Broken::Source(source)))
    }
}

conformance!(s3, Objects);
