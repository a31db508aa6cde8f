//! The events' JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::datatypes::{DataType, Fields};
use chrono::{DateTime, SecondsFormat, Utc};
use orbit_etl_core::observe::{Ending, NodeCounts, PlanView, PlannedNode, Progress, RunView};
use orbit_etl_core::{ColumnUsage, StreamInfo};
use serde_json::{Map, Value, json};

use super::columns::{From, origins, rows};

const PRODUCER: &str = concat!("https://github.com/orbit-etl/orbit-etl/tree/v", env!("CARGO_PKG_VERSION"));
const EVENT: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";

/// Writes the events of one run.
pub(super) struct Teller {
    namespace: String,
    pipeline: String,
    run_id: String,
    started: SystemTime,
    pub(super) plan: Option<Arc<PlanView>>,
}

impl Teller {
    pub(super) fn new(run: &RunView, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pipeline: run.pipeline.clone(),
            run_id: run.run_id.clone(),
            started: run.started,
            plan: run.plan.borrow().clone(),
        }
    }

    pub(super) fn start(&self) -> Value {
        self.event("START", self.started, &Progress::default(), None)
    }

    pub(super) fn running(&self, look: &Progress) -> Value {
        self.event("RUNNING", SystemTime::now(), look, None)
    }

    /// Without an ending the run's own task has gone.
    pub(super) fn ended(&self, look: &Progress, ending: Option<&Ending>) -> Value {
        let kind = match ending.map(|e| e.outcome) {
            Some("completed" | "stopped") => "COMPLETE",
            Some("cancelled" | "fenced") => "ABORT",
            _ => "FAIL",
        };
        let message = match ending {
            Some(ending) => ending.message.clone(),
            None => Some("the run's own task panicked".to_owned()),
        };
        self.event(kind, SystemTime::now(), look, message)
    }

    fn event(&self, kind: &str, at: SystemTime, look: &Progress, message: Option<String>) -> Value {
        let mut run = Map::new();
        run.insert(
            "processing_engine".into(),
            facet(
                "1-1-1/ProcessingEngineRunFacet",
                json!({ "name": "Orbit ETL", "version": env!("CARGO_PKG_VERSION") }),
            ),
        );
        if let Some(message) = message {
            let error = json!({ "message": message, "programmingLanguage": "RUST" });
            run.insert("errorMessage".into(), facet("1-0-1/ErrorMessageRunFacet", error));
        }
        let plan = self.plan.as_deref();
        let mut job = Map::new();
        if let Some(plan) = plan {
            let bounded = plan.nodes.iter().flat_map(|node| &node.outputs).all(|stream| stream.bounded);
            let processing = if bounded { "BATCH" } else { "STREAMING" };
            let kind =
                json!({ "processingType": processing, "integration": "ORBIT_ETL", "jobType": "PIPELINE" });
            job.insert("jobType".into(), facet("2-0-3/JobTypeJobFacet", kind));
        }
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for (i, node) in plan.map(|p| p.nodes.as_slice()).unwrap_or_default().iter().enumerate() {
            let counts = look.committed.get(&node.info.name).copied().unwrap_or_default();
            let told = kind != "START";
            match node.info.role {
                "source" => inputs.extend(self.inputs(node, told.then_some(counts))),
                "sink" | "dead letters" => {
                    outputs.extend(plan.into_iter().flat_map(|p| self.outputs(p, i, told.then_some(counts))));
                }
                _ => {}
            }
        }
        json!({
            "eventType": kind,
            "eventTime": DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Millis, true),
            "producer": PRODUCER,
            "schemaURL": EVENT,
            "run": { "runId": self.run_id, "facets": run },
            "job": { "namespace": self.namespace, "name": self.pipeline, "facets": job },
            "inputs": inputs,
            "outputs": outputs,
        })
    }

    fn inputs(&self, node: &PlannedNode, counts: Option<NodeCounts>) -> Vec<Value> {
        let only = node.outputs.len() == 1;
        let inputs = node.outputs.iter().map(|stream| {
            let (namespace, name) = self.dataset(node, (!only).then_some(stream));
            let mut facets = Map::new();
            facets.insert("schema".into(), schema(stream));
            let mut own = Map::new();
            // What is counted is counted by node.
            if let Some(counts) = counts.filter(|_| only) {
                let rows = json!({ "rowCount": counts.rows_in, "size": counts.bytes });
                own.insert("inputStatistics".into(), facet("1-0-0/InputStatisticsInputDatasetFacet", rows));
                let metrics =
                    json!({ "rowCount": counts.rows_in, "bytes": counts.bytes, "columnMetrics": {} });
                own.insert(
                    "dataQualityMetrics".into(),
                    facet("1-0-2/DataQualityMetricsInputDatasetFacet", metrics),
                );
                let accepted = json!({ "assertions": [
                    { "assertion": "no_row_rejected", "success": counts.rejected == 0 }
                ] });
                own.insert(
                    "dataQualityAssertions".into(),
                    facet("1-0-1/DataQualityAssertionsDatasetFacet", accepted),
                );
            }
            json!({ "namespace": namespace, "name": name, "facets": facets, "inputFacets": own })
        });
        inputs.collect()
    }

    fn outputs(&self, plan: &PlanView, at: usize, counts: Option<NodeCounts>) -> Vec<Value> {
        let node = &plan.nodes[at];
        let mut own = Map::new();
        if let Some(counts) = counts.filter(|_| node.inputs.len() <= 1) {
            let rows = json!({ "rowCount": counts.rows_out, "size": counts.bytes });
            own.insert("outputStatistics".into(), facet("1-0-2/OutputStatisticsOutputDatasetFacet", rows));
        }
        if node.inputs.is_empty() {
            let (namespace, name) = self.dataset(node, None);
            return vec![json!({ "namespace": namespace, "name": name, "facets": {}, "outputFacets": own })];
        }
        let only = node.inputs.len() == 1;
        let outputs = node.inputs.iter().map(|(from, output, stream)| {
            let (namespace, name) = self.dataset(node, (!only).then_some(stream));
            let mut facets = Map::new();
            facets.insert("schema".into(), schema(stream));
            if let Some(lineage) = self.lineage(plan, *from, *output, stream) {
                facets.insert("columnLineage".into(), lineage);
            }
            json!({ "namespace": namespace, "name": name, "facets": facets, "outputFacets": own })
        });
        outputs.collect()
    }

    fn lineage(&self, plan: &PlanView, from: usize, output: usize, stream: &StreamInfo) -> Option<Value> {
        let mut fields = Map::new();
        for field in stream.schema.fields() {
            let origins = origins(plan, from, output, field.name())?;
            let inputs: Vec<Value> = self.fields(plan, origins);
            fields.insert(field.name().clone(), json!({ "inputFields": inputs }));
        }
        let dataset = self.fields(plan, rows(plan, from)?);
        Some(facet("1-2-0/ColumnLineageDatasetFacet", json!({ "fields": fields, "dataset": dataset })))
    }

    /// One entry for each column, with all that is done with it.
    fn fields(&self, plan: &PlanView, from: impl IntoIterator<Item = From>) -> Vec<Value> {
        let mut by_column: BTreeMap<(usize, usize, String), Vec<Value>> = BTreeMap::new();
        for From { node, output, column, usage } in from {
            by_column.entry((node, output, column)).or_default().push(transformation(usage));
        }
        let fields = by_column.into_iter().filter_map(|((node, output, column), transformations)| {
            let source = plan.nodes.get(node)?;
            let stream = source.outputs.get(output).filter(|_| source.outputs.len() > 1);
            let (namespace, name) = self.dataset(source, stream);
            Some(json!({
                "namespace": namespace, "name": name, "field": column, "transformations": transformations
            }))
        });
        fields.collect()
    }

    /// Namespace and name of what a source reads or a sink writes.
    fn dataset(&self, node: &PlannedNode, stream: Option<&StreamInfo>) -> (String, String) {
        let (namespace, mut name) = match node.info.info.location.as_deref() {
            Some(location) => place(location),
            None => {
                let name = format!("{}.{}", self.pipeline, node.info.name);
                (format!("orbit-etl://{}", node.info.info.type_tag), name)
            }
        };
        if let Some(stream) = stream {
            name = format!("{name}#{}", stream.name);
        }
        (namespace, name)
    }
}

/// As OpenLineage names files and objects.
fn place(location: &str) -> (String, String) {
    match location.split_once("://") {
        Some((scheme, path)) if !scheme.eq_ignore_ascii_case("file") => {
            let (authority, path) = path.split_once('/').unwrap_or((path, "/"));
            (format!("{scheme}://{authority}"), if path.is_empty() { "/".into() } else { path.to_owned() })
        }
        other => {
            let path = other.map_or(location, |(_, path)| path);
            let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
            ("file".into(), whole.to_string_lossy().into_owned())
        }
    }
}

fn facet(schema: &str, mut content: Value) -> Value {
    if let Some(map) = content.as_object_mut() {
        let name = schema.split('/').next_back().unwrap_or_default();
        let url = format!("https://openlineage.io/spec/facets/{schema}.json#/$defs/{name}");
        map.insert("_producer".into(), PRODUCER.into());
        map.insert("_schemaURL".into(), url.into());
    }
    content
}

fn schema(stream: &StreamInfo) -> Value {
    facet("1-1-1/SchemaDatasetFacet", json!({ "fields": fields(stream.schema.fields()) }))
}

fn fields(columns: &Fields) -> Vec<Value> {
    let fields = columns.iter().map(|field| {
        let mut told = json!({ "name": field.name(), "type": field.data_type().to_string() });
        if let DataType::Struct(inner) = field.data_type() {
            told["type"] = "struct".into();
            told["fields"] = fields(inner).into();
        }
        told
    });
    fields.collect()
}

fn transformation(usage: ColumnUsage) -> Value {
    let (kind, subtype) = match usage {
        ColumnUsage::Same => ("DIRECT", "IDENTITY"),
        ColumnUsage::Computed => ("DIRECT", "TRANSFORMATION"),
        ColumnUsage::Aggregated => ("DIRECT", "AGGREGATION"),
        ColumnUsage::Filter => ("INDIRECT", "FILTER"),
        ColumnUsage::Join => ("INDIRECT", "JOIN"),
        ColumnUsage::Group => ("INDIRECT", "GROUP_BY"),
        ColumnUsage::Sort => ("INDIRECT", "SORT"),
        ColumnUsage::Window => ("INDIRECT", "WINDOW"),
    };
    json!({ "type": kind, "subtype": subtype, "description": "", "masking": false })
}
