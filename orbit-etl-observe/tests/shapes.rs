//! What OpenLineage asks of an event (core 2-0-2 and its facets), by required key and type.

use serde_json::Value;

/// Panics where the event isn't as it should be.
pub(crate) fn check(event: &Value) {
    let kind = text(event, "eventType");
    assert!(["START", "RUNNING", "COMPLETE", "FAIL", "ABORT"].contains(&kind), "{kind}");
    let at = text(event, "eventTime");
    assert!(at.len() == 24 && at.ends_with('Z') && at.as_bytes()[10] == b'T', "{at}");
    uri(text(event, "producer"));
    assert_eq!(
        text(event, "schemaURL"),
        "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
    );
    let run = text(&event["run"], "runId");
    let dashes: Vec<_> = run.match_indices('-').map(|(at, _)| at).collect();
    assert!(run.len() == 36 && dashes == [8, 13, 18, 23], "{run}");
    facets(&event["run"]["facets"]);
    text(&event["job"], "namespace");
    text(&event["job"], "name");
    facets(&event["job"]["facets"]);
    for (side, own) in [("inputs", "inputFacets"), ("outputs", "outputFacets")] {
        for dataset in list(event, side) {
            assert!(!text(dataset, "namespace").is_empty() && !text(dataset, "name").is_empty());
            facets(&dataset["facets"]);
            facets(&dataset[own]);
        }
    }
}

fn facets(of: &Value) {
    for (key, facet) in of.as_object().expect("facets are an object") {
        uri(text(facet, "_producer"));
        let schema = text(facet, "_schemaURL");
        let (path, name) = schema.split_once(".json#/$defs/").unwrap();
        let version = path.strip_prefix("https://openlineage.io/spec/facets/").unwrap();
        let (version, file) = version.split_once('/').unwrap();
        assert_eq!(version.split('-').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{schema}");
        assert_eq!(file, name);
        match key.as_str() {
            "processing_engine" => drop(text(facet, "version")),
            "errorMessage" => {
                text(facet, "message");
                assert_eq!(text(facet, "programmingLanguage"), "RUST");
            }
            "jobType" => {
                assert!(["BATCH", "STREAMING"].contains(&text(facet, "processingType")));
                text(facet, "integration");
            }
            "schema" => {
                for field in list(facet, "fields") {
                    text(field, "name");
                    text(field, "type");
                }
            }
            "columnLineage" => {
                let fields = facet["fields"].as_object().unwrap();
                let of_columns = fields.values().flat_map(|field| list(field, "inputFields"));
                for input in of_columns.chain(list(facet, "dataset")) {
                    text(input, "namespace");
                    text(input, "name");
                    text(input, "field");
                    for how in list(input, "transformations") {
                        assert!(["DIRECT", "INDIRECT"].contains(&text(how, "type")));
                        text(how, "subtype");
                        assert!(how["masking"].is_boolean());
                    }
                }
            }
            "inputStatistics" | "outputStatistics" => {
                assert!(facet["rowCount"].is_u64() && facet["size"].is_u64());
            }
            "dataQualityMetrics" => {
                assert!(
                    facet["rowCount"].is_u64()
                        && facet["bytes"].is_u64()
                        && facet["columnMetrics"].is_object()
                );
            }
            "dataQualityAssertions" => {
                for assertion in list(facet, "assertions") {
                    text(assertion, "assertion");
                    assert!(assertion["success"].is_boolean());
                }
            }
            other => panic!("an unknown facet: {other}"),
        }
    }
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {of}"))
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().unwrap_or_else(|| panic!("{key} is no list in {of}"))
}

fn uri(text: &str) {
    assert!(text.starts_with("https://") && !text.contains(' '), "{text}");
}
