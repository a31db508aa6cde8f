//! `alerts` and `lineage` in specs.

use orbit_etl_core::memory::{MemorySink, MemoryTable};
use orbit_etl_core::{Registry, Spec};
use std::sync::Arc;

use crate::servers::{Http, source};

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.add_source_with("rows", |_| Ok(Arc::new(source())));
    registry.add_sink_with("table", |_| Ok(Arc::new(MemorySink::new(&MemoryTable::new()))));
    orbit_etl_observe::register_enabled(&mut registry);
    registry
}

fn load(more: &str) -> (tempfile::TempDir, Spec) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    let head = "name: p\nsource: {type: rows}\nsink: {type: table}\ncheckpoint: {in_memory: true}\n";
    std::fs::write(&path, format!("{head}{more}")).unwrap();
    let spec = Spec::load(&path).unwrap();
    (dir, spec)
}

#[tokio::test]
async fn both_work_from_a_spec_and_their_secrets_are_not_printed() {
    let mut server = Http::start(&[]).await;
    let url = &server.url;
    let (dir, spec) = load(&format!(
        "lineage: {{file: events.ndjson}}
alerts:
  to:
    hook: {{type: webhook, url: {url}/very-secret, headers: {{x-key: very-secret}}}}
    pager: {{type: pagerduty, key: very-secret, url: {url}/pager}}
  rules:
    - {{name: all, when: rows_out > 3, severity: warning}}
"
    ));
    let printed = format!("{} {:?}", spec.to_yaml(&registry()), spec.build(&registry()).unwrap());
    assert!(!printed.contains("very-secret"), "{printed}");
    spec.build(&registry()).unwrap().run().await.unwrap();
    let mut told = server.all();
    told.sort_by(|a, b| a.path.cmp(&b.path));
    let paths: Vec<_> = told.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["/pager", "/very-secret"]);
    assert_eq!(told[0].body["routing_key"], "very-secret");
    assert_eq!(told[0].body["dedup_key"], "orbit-etl/p/all");
    assert_eq!(told[1].body["severity"], "warning");
    assert!(std::fs::read_to_string(dir.path().join("events.ndjson")).unwrap().contains("\"COMPLETE\""));
}

#[test]
fn mistakes_are_told_at_their_places() {
    for (more, expected) in [
        ("lineage: {}\n", ["5:1: lineage: nothing says where events go"].as_slice()),
        ("lineage: {url: ftp://x}\n", &["5:16: lineage.url: not an HTTP address"]),
        ("lineage: {fil: x}\n", &["lineage.fil: unknown key"]),
        (
            "alerts:\n  to: {a: {type: slack, url: very-secret}}\n  rules: [{when: lag > 5 apples}]\n",
            &["7:", "alerts.rules[0].when", "apples"],
        ),
        (
            "alerts:\n  to: {a: {type: slack, url: very-secret}}\n  rules: []\n",
            &["alerts.to.a.url: not an HTTP address"],
        ),
        (
            "alerts:\n  to: {a: {type: slack, url: 'http://x'}}\n  rules: [{when: failure, to: [b]}]\n",
            &["alerts.rules: a rule tells a target that isn't there (target: b)", "the targets are: a"],
        ),
        (
            "alerts:\n  to: {m: {type: email, host: h, from: a@b.c, to: [nobody], }}\n  rules: [{when: failure}]\n",
            &["alerts.to.m.to: is no mail address"],
        ),
    ] {
        let (_dir, spec) = load(more);
        let told = spec.build(&registry()).unwrap_err().to_string();
        for part in expected {
            assert!(told.contains(part), "{part} is not in\n{told}");
        }
        assert!(!told.contains("very-secret"), "{told}");
    }
}

#[test]
fn a_build_without_them_says_what_it_lacks() {
    let mut registry = registry();
    let (_dir, spec) = load("lineage: {file: x}\n");
    spec.build(&registry).unwrap();
    registry = Registry::new();
    registry.add_source_with("rows", |_| Ok(Arc::new(source())));
    registry.add_sink_with("table", |_| Ok(Arc::new(MemorySink::new(&MemoryTable::new()))));
    registry.add_absent("lineage", "openlineage");
    let told = spec.build(&registry).unwrap_err().to_string();
    assert!(
        told.contains("lineage: this build doesn't know the key") && told.contains("`openlineage`"),
        "{told}"
    );
}
