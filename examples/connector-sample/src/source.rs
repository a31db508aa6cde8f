//! Reading: a split is a file, a position counts its bytes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use orbit_etl_core::{
    Context, Error, FilterPushdown, Position, Pushdown, Replay, Result, ResultExt, ScanRequest, Source,
    SourceEvent, Split, SplitChange, StreamId, StreamInfo,
};
use serde_json::json;

use crate::{KeyValueLog, failed, line};

#[async_trait]
impl Source for KeyValueLog {
    async fn streams(&self, _cx: &Context) -> Result<Vec<StreamInfo>> {
        use orbit_etl_core::Connector;
        self.validate()?;
        Ok(vec![StreamInfo::new("rows", self.schema.clone())])
    }

    fn replay(&self) -> Replay {
        Replay::Exact
    }

    fn pushdown(&self, wanted: &ScanRequest) -> Pushdown {
        Pushdown { projection: true, filters: vec![FilterPushdown::Unsupported; wanted.filters.len()] }
    }

    /// The enumerator's position is the name of the last file told of: later files sort after it.
    async fn splits(
        &self,
        _cx: &Context,
        after: Option<&Position>,
    ) -> Result<BoxStream<'static, Result<SplitChange>>> {
        let after = after.and_then(|p| p.0.get("file")?.as_str());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(|e| failed("can't list", &self.directory, e))? {
            let entry = entry.map_err(|e| failed("can't list", &self.directory, e))?;
            names.extend(entry.file_name().into_string().ok().filter(|n| n.ends_with(".log")));
        }
        names.retain(|name| after.is_none_or(|after| name.as_str() > after));
        names.sort_unstable();
        let Some(last) = names.last() else { return Ok(stream::empty().boxed()) };
        let position = Position(json!({ "file": last }));
        let added = names.iter().map(|name| Split::new(name.as_str(), json!({ "file": name }))).collect();
        let change = SplitChange { added, revoked: Vec::new(), position };
        Ok(stream::once(async { Ok(change) }).boxed())
    }

    async fn open(
        &self,
        _cx: &Context,
        split: &Split,
        after: Option<&Position>,
        scan: &[ScanRequest],
    ) -> Result<BoxStream<'static, Result<SourceEvent>>> {
        let path = self.directory.join(split.id.as_str());
        let offset = match after {
            None => 0,
            Some(position) => {
                position.0.get("byte").and_then(serde_json::Value::as_u64).ok_or_else(|| {
                    Error::config("a position looks like {\"byte\": 7}").with("position", position)
                })?
            }
        };
        let mut file = File::open(&path).map_err(|e| failed("can't open", &path, e))?;
        file.seek(SeekFrom::Start(offset)).map_err(|e| failed("can't seek", &path, e))?;
        let wanted = scan.first();
        let schema = match wanted.and_then(|s| s.projection.as_ref()) {
            None => self.schema.clone(),
            Some(names) => {
                let indices = names.iter().map(|n| self.schema.index_of(n)).collect::<Result<Vec<_>, _>>();
                let schema = indices.and_then(|i| self.schema.project(&i));
                Arc::new(schema.map_err(|e| Error::schema("a wanted column isn't there").caused_by(e))?)
            }
        };
        let batch_rows = wanted.map_or(1_024, |s| s.batch_rows.max(1));
        let reader = Reader { file: BufReader::new(file), path, offset, schema, batch_rows, done: false };
        let events = stream::unfold(reader, |mut reader| async move {
            if reader.done {
                return None;
            }
            let event = reader.next();
            reader.done = !matches!(event, Ok(SourceEvent::Batch { .. }));
            Some((event, reader))
        });
        Ok(events.boxed())
    }
}

struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    offset: u64,
    schema: SchemaRef,
    batch_rows: usize,
    done: bool,
}

impl Reader {
    fn next(&mut self) -> Result<SourceEvent> {
        let (mut text, mut rows) = (String::new(), 0);
        while rows < self.batch_rows {
            let read = self.file.read_line(&mut text).map_err(|e| failed("can't read", &self.path, e))?;
            if read == 0 {
                break;
            }
            rows += 1;
        }
        if rows == 0 {
            return Ok(SourceEvent::Finished);
        }
        let batch = line::read(text.lines(), &self.schema)
            .with("file", self.path.display())
            .with("after byte", self.offset)?;
        self.offset += text.len() as u64;
        let position = Some(Position(json!({ "byte": self.offset })));
        Ok(SourceEvent::Batch { stream: StreamId(0), batch, position })
    }
}
