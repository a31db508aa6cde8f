//! The suite that every connector runs, on a disk.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use orbit_etl_connector_iceberg::{IcebergCatalog, IcebergSink, IcebergSource};
use orbit_etl_core::{Sink, Source, StreamInfo};
use orbit_etl_testkit::{
    Abilities, Breakage, Broken, Check, Comes, Fixture, Harness, async_trait, conformance,
};
use tempfile::TempDir;

struct OnDisk;

struct Lake {
    _dir: TempDir,
    catalog: IcebergCatalog,
}

#[async_trait]
impl Harness for OnDisk {
    async fn fresh(&self) -> Check<Box<dyn Fixture>> {
        let dir = TempDir::new().unwrap();
        let catalog = IcebergCatalog::memory(dir.path().to_str().unwrap());
        Ok(Box::new(Lake { _dir: dir, catalog }))
    }

    fn abilities(&self) -> Abilities {
        Abilities { types: comes, several_streams: false, ..Abilities::default() }
    }
}

#[async_trait]
impl Fixture for Lake {
    fn sink(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(IcebergSink::append(self.catalog.clone(), "suite.rows")))
    }

    async fn source(&self, _streams: &[StreamInfo]) -> Check<Option<Arc<dyn Source>>> {
        Ok(Some(Arc::new(IcebergSource::new(self.catalog.clone(), "suite.rows"))))
    }

    async fn broken(&self, what: Breakage) -> Check<Option<Broken>> {
        Ok(match what {
            Breakage::Missing => {
                Some(Broken::Source(Arc::new(IcebergSource::new(self.catalog.clone(), "suite.none"))))
            }
            Breakage::Unreachable => {
                let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                let nobody = IcebergCatalog::rest(format!("http://127.0.0.1:{port}"));
                Some(Broken::Source(Arc::new(IcebergSource::new(nobody, "suite.rows"))))
            }
            Breakage::BadCredentials => None,
        })
    }
}

fn comes(of: &DataType) -> Comes {
    use DataType::*;
    const NO_TYPE: &str = "Iceberg has no such type";
    match of {
        Int8 | Int16 | UInt8 | UInt16 => Comes::As(Int32),
        UInt32 => Comes::As(Int64),
        Float16 => Comes::As(Float32),
        LargeUtf8 | Utf8View => Comes::As(Utf8),
        Binary | BinaryView => Comes::As(LargeBinary),
        Decimal32(p, s) | Decimal64(p, s) if *s >= 0 => Comes::As(Decimal128(*p, *s)),
        Decimal32(_, _) | Decimal64(_, _) | Decimal256(_, _) => Comes::Never(NO_TYPE),
        Decimal128(_, s) if *s < 0 => Comes::Never(NO_TYPE),
        Time32(_) => Comes::As(Time64(TimeUnit::Microsecond)),
        Timestamp(TimeUnit::Nanosecond, _) | Time64(TimeUnit::Nanosecond) => Comes::Never(NO_TYPE),
        Timestamp(TimeUnit::Microsecond, None) => Comes::Same,
        Timestamp(_, None) => Comes::As(Timestamp(TimeUnit::Microsecond, None)),
        Timestamp(_, Some(_)) => Comes::As(Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))),
        Dictionary(_, values) => match comes(values) {
            Comes::Same => Comes::As(values.as_ref().clone()),
            other => other,
        },
        UInt64
        | Date64
        | Null
        | Duration(_)
        | Interval(_)
        | Union(_, _)
        | ListView(_)
        | LargeListView(_)
        | RunEndEncoded(_, _) => Comes::Never(NO_TYPE),
        _ => Comes::Same,
    }
}

conformance!(on_disk, OnDisk);
