//! Malformed records: one reject each, at the right place, and no row lost around it.

use std::fs;

use arrow::datatypes::{DataType, Field, Schema};
use orbit_etl_connector_files::FilesSource;
use orbit_etl_core::{ErrorKind, ScanRequest, StreamId};
use tempfile::tempdir;

use super::{assert_exact, read, read_with};

#[tokio::test]
async fn malformed_csv_lines() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    let mut text = b"id,name,amount\n".to_vec();
    let mut expected = Vec::new();
    let mut line = 2;
    for i in 0..2_000 {
        let (record, message) = match i {
            3 => (format!("{i},too,many,fields\n"), Some("the line has 4 fields instead of 3")),
            10 => (format!("x{i},\"a\nb\",1\n"), Some("column `id` is not a valid Int64")),
            11 => ("only\r\n".to_string(), Some("the line has 1 fields instead of 3")),
            1_500 => (format!("{i},ok,?\n"), Some("column `amount` is not a valid Float64")),
            1_999 => (format!("{i},\"never closed,1\n"), Some("a quote is not closed")),
            _ => (format!("{i},\"na,me\n\"\"{i}\"\"\",1.5\n"), None),
        };
        if let Some(message) = message {
            expected.push((message, text.len(), line, record.trim_end().to_string()));
        }
        line += record.matches('\n').count();
        text.extend_from_slice(record.as_bytes());
    }
    fs::write(&path, &text).unwrap();
    let name = path.to_str().unwrap();
    for size in [None, Some(4_000_u64)] {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("amount", DataType::Float64, true),
        ]);
        let source = FilesSource::csv(name).schema(schema.into()).split_size(size);
        let found = read_with(&source, &ScanRequest::all(StreamId(0), 300)).await.unwrap();
        assert_eq!(found.rows(), 1_995);
        assert_eq!(found.rejects.len(), expected.len());
        for (reject, (message, byte, line, record)) in found.rejects.iter().zip(&expected) {
            assert_eq!(reject.kind, ErrorKind::Data);
            assert_eq!(reject.message, *message);
            assert_eq!(reject.origin.place.as_deref(), Some(&*format!("{name}, byte {byte}, line {line}")));
            assert!(!reject.message.contains(&record[..3]));
        }
        let raw: Vec<String> = found.raw().iter().map(|r| r.trim_end().to_string()).collect();
        assert_eq!(raw, expected.iter().map(|e| e.3.clone()).collect::<Vec<_>>());
        assert_exact(&source, 300).await;
    }
}

#[tokio::test]
async fn csv_that_is_not_utf8() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.csv");
    fs::write(&path, b"id,name\n1,good\n2,b\xffd\n3,good\n").unwrap();
    let found = read(&FilesSource::csv(path.to_str().unwrap())).await.unwrap();
    assert_eq!(found.rows(), 2);
    assert_eq!(found.rejects[0].message, "the line is not UTF-8");
}

#[tokio::test]
async fn malformed_json_lines() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.json");
    let lines = [
        ("{\"id\": 1, \"in\": {\"x\": [1]}}", None),
        ("{\"id\": \"x\"}", Some("column `id` is not a valid Int64")),
        ("", None),
        ("{\"id\": 2", Some("the line is not valid JSON from character 8 on")),
        ("  {\"id\": 3}", None),
        ("[1]", Some("the line is not a JSON object")),
        ("{\"id\": 4} {\"id\": 5}", Some("the line is not valid JSON from character 11 on")),
        ("{\"id\": 6}", None),
    ];
    let text: Vec<&str> = lines.iter().map(|l| l.0).collect();
    fs::write(&path, text.join("\n")).unwrap();
    let source = FilesSource::json(path.to_str().unwrap()).sample_rows(1);
    let found = read(&source).await.unwrap();
    assert_eq!(found.rows(), 3, "{}", found.table());
    let expected: Vec<_> = lines.iter().enumerate().filter_map(|(i, l)| Some((i + 1, l.1?))).collect();
    let messages: Vec<_> = found.rejects.iter().map(|r| r.message.as_str()).collect();
    assert_eq!(messages, expected.iter().map(|e| e.1).collect::<Vec<_>>());
    for (reject, (line, _)) in found.rejects.iter().zip(&expected) {
        assert!(reject.origin.place.as_ref().unwrap().ends_with(&format!("line {line}")), "{reject:?}");
    }
    for rows in 1..6 {
        assert_exact(&source, rows).await;
    }
}

#[tokio::test]
async fn broken_avro_blocks() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.avro");
    let part = |from: i64| {
        RecordBatch::try_from_iter([
            ("id", std::sync::Arc::new(Int64Array::from_iter_values(from..from + 10)) as ArrayRef),
            (
                "text",
                std::sync::Arc::new(StringArray::from_iter_values(
                    (from..from + 10).map(|i| format!("t{i}")),
                )),
            ),
        ])
        .unwrap()
    };
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    let mut writer =
        arrow_avro::writer::AvroWriter::new(Vec::new(), part(0).schema().as_ref().clone()).unwrap();
    for block in 0..5 {
        writer.write(&part(block * 10)).unwrap();
    }
    writer.finish().unwrap();
    bytes.append(&mut writer.into_inner());
    // The last sixteen bytes are the marker; every block ends with it.
    let marker = bytes[bytes.len() - 16..].to_vec();
    for at in 0..=bytes.len() - 16 {
        if bytes[at..at + 16] == marker[..] {
            ends.push(at + 16);
        }
    }
    assert_eq!(ends.len(), 6);
    let source = FilesSource::avro(path.to_str().unwrap());
    // The third block's marker, and the fourth's text lengths.
    bytes[ends[3] - 1] ^= 0xff;
    fs::write(&path, &bytes).unwrap();
    let found = read(&source).await.unwrap();
    // Without its marker a block can't be told from the next one.
    assert_eq!(found.rows(), 30);
    assert_eq!(found.rejects.len(), 1);
    assert!(found.rejects[0].origin.place.as_ref().unwrap().ends_with(&format!("byte {}", ends[2])));
    assert_exact(&source, 4).await;

    bytes[ends[3] - 1] ^= 0xff;
    let cut = bytes.len() - 20;
    fs::write(&path, &bytes[..cut]).unwrap();
    let found = read(&source).await.unwrap();
    assert_eq!((found.rows(), found.rejects.len()), (40, 1));
    assert_eq!(found.rejects[0].message, "the block is cut short");
    assert_exact(&source, 4).await;
}

#[tokio::test]
async fn an_avro_block_that_claims_too_many_rows_is_one_reject() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.avro");
    let ids: arrow::array::ArrayRef = std::sync::Arc::new(arrow::array::Int64Array::from_iter_values(0..10));
    let batch = arrow::array::RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let mut writer =
        arrow_avro::writer::AvroWriter::new(Vec::new(), batch.schema().as_ref().clone()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let whole = writer.into_inner();
    // Behind the header come the counts of rows and bytes: 10 in one byte, then the block.
    let sync: &[u8] = &whole[whole.len() - 16..];
    let head = whole.windows(16).position(|w| w == sync).unwrap() + 16;
    assert_eq!(whole[head], 20);
    // As many as fit into a number, three times.
    let many = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let broken = [&many[..], &whole[head + 1..]].concat();
    let file = [&whole[..], &broken, &broken, &broken, &whole[head..]].concat();
    fs::write(&path, file).unwrap();
    let found = read(&FilesSource::avro(path.to_str().unwrap())).await.unwrap();
    assert_eq!(found.rows(), 20);
    assert_eq!(found.rejects.len(), 3);
    assert!(found.rejects.iter().all(|reject| reject.rows == 1), "{:?}", found.rejects);
}
