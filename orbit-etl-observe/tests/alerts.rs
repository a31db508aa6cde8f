//! Alerts of runs.

use std::time::Duration;

use orbit_etl_core::memory::{MemorySink, MemorySource, MemoryTable};
use orbit_etl_core::{OnError, Pipeline, PipelineBuilder, StreamInfo};
use orbit_etl_observe::Alerts;
use orbit_etl_observe::alerts::{Mail, Rule, Severity, Target, Tls};
use orbit_etl_transforms::Sql;
use serde_json::json;

use crate::servers::{Http, orders, smtp, source};

fn casting(alerts: Alerts, on_error: OnError) -> Pipeline {
    Pipeline::builder("casts")
        .source("orders", source())
        .transform("cast", Sql::new("SELECT CAST(code AS BIGINT) AS code FROM input"))
        .sink("lake", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory()
        .on_error(on_error)
        .observer(alerts)
        .build()
        .unwrap()
}

fn endless() -> (PipelineBuilder, orbit_etl_core::memory::MemoryFeed) {
    let stream = StreamInfo::new("orders", orders().schema()).with_bounded(false);
    let (source, feed) = MemorySource::unbounded(vec![stream]);
    feed.add_split("a");
    let pipeline = Pipeline::builder("follow")
        .source("orders", source)
        .sink("lake", MemorySink::new(&MemoryTable::new()))
        .checkpoint_in_memory();
    (pipeline, feed)
}

fn rule(when: &str) -> Rule {
    Rule::new(when.parse().unwrap())
}

#[tokio::test]
async fn a_failure_is_told_once_and_is_over_with_the_next_good_run() {
    let mut server = Http::start(&[500, 429]).await;
    let alerts = Alerts::new()
        .to("hook", Target::webhook(format!("{}/hook", server.url)))
        .rule(rule("failure").named("down").with_severity(Severity::Critical));
    casting(alerts.clone(), OnError::default()).run().await.unwrap_err();
    let posted = server.all();
    assert_eq!(posted.len(), 3, "two refusals and what was taken: {posted:?}");
    let told = &posted[2];
    assert_eq!((&told.body, told.path.as_str()), (&posted[0].body, "/hook"));
    assert_eq!(
        (&told.body["pipeline"], &told.body["rule"], &told.body["status"], &told.body["severity"]),
        (&json!("casts"), &json!("down"), &json!("firing"), &json!("critical"))
    );
    let message = told.body["message"].as_str().unwrap();
    assert!(message.contains("cast") && !message.contains("private"), "{message}");

    casting(alerts.clone(), OnError::skip()).run().await.unwrap();
    let posted = server.all();
    assert_eq!(posted.len(), 1);
    assert_eq!(posted[0].body["status"], "resolved");
    casting(alerts, OnError::skip()).run().await.unwrap();
    assert!(server.all().is_empty());
}

#[tokio::test]
async fn the_share_of_rejected_rows_of_even_a_short_run_is_told_to_those_named() {
    let (mut ops, mut other) = (Http::start(&[]).await, Http::start(&[]).await);
    let alerts = Alerts::new()
        .to("ops", Target::webhook(ops.url.clone()))
        .to("other", Target::slack(other.url.clone()))
        .rule(rule("rejected_share > 20%").to(["ops"]))
        .rule(rule("rejected_share > 30%"))
        .rule(rule("rows_out of lake < 4").to(["other"]));
    casting(alerts, OnError::skip()).run().await.unwrap();
    let told: Vec<_> = ops.all().into_iter().map(|p| p.body).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["value"], &told[0]["condition"]), (&json!(0.25), &json!("rejected_share > 20%")));
    assert_eq!(told[0]["message"], "`rejected_share > 20%` holds: rejected_share is 25.00 %");
    let told = other.all();
    assert!(
        told.iter().all(|p| p.body["text"].as_str().unwrap().contains("rows_out of lake &lt; 4")),
        "{told:?}"
    );
    assert!(!told.is_empty());
}

#[tokio::test]
async fn a_level_is_told_while_the_run_goes_on_and_is_over_with_it() {
    let mut server = Http::start(&[]).await;
    let (pipeline, _feed) = endless();
    let alerts = Alerts::new()
        .every(Duration::from_millis(10))
        .to("hook", Target::webhook(server.url.clone()))
        .rule(rule("lag > 50ms for 50ms"));
    let running = pipeline.epoch_every(Duration::from_secs(3_600)).observer(alerts).build().unwrap().start();
    let told = server.next().await.body;
    assert_eq!((&told["status"], &told["rule"]), (&json!("firing"), &json!("lag > 50ms for 50ms")));
    assert!(told["value"].as_f64().unwrap() > 0.05, "{told}");
    running.stop();
    running.await.unwrap();
    assert_eq!(server.next().await.body["status"], "resolved");
    assert!(server.all().is_empty());
}

#[tokio::test]
async fn a_target_that_hangs_holds_nobody_back() {
    // It takes connections and never answers.
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", hangs.local_addr().unwrap());
    let mut server = Http::start(&[]).await;
    let alerts = Alerts::new()
        .to("hangs", Target::teams(url))
        .to("works", Target::webhook(server.url.clone()))
        .every(Duration::from_millis(10))
        .rule(rule("running >= 1"));
    let (pipeline, feed) = endless();
    let running = pipeline.observer(alerts).epoch_every(Duration::from_millis(10)).build().unwrap().start();
    assert_eq!(server.next().await.body["status"], "firing");
    feed.push("a", orders()).unwrap();
    let mut progress = Box::pin(running.progress());
    let written = async {
        while let Some(look) = futures::StreamExt::next(&mut progress).await {
            if look.committed.get("lake").is_some_and(|c| c.rows_out == 4) {
                return;
            }
        }
        panic!("the run has ended");
    };
    tokio::time::timeout(Duration::from_secs(20), written).await.expect("rows go on");
    running.abort();
    running.await.unwrap_err();
}

#[tokio::test]
async fn mail_is_sent_again_when_it_is_refused_for_now() {
    let (port, mut mails) = smtp(1).await;
    let mail = Mail::new("127.0.0.1", "Orbit <orbit@example.org>", ["ops@example.org", "boss@example.org"])
        .with_port(port)
        .with_tls(Tls::None);
    let alerts = Alerts::new().to("mail", Target::Email(mail)).rule(rule("rejected_share > 20%"));
    casting(alerts, OnError::skip()).run().await.unwrap();
    let mail = mails.recv().await.unwrap();
    for part in [
        "MAIL FROM:<orbit@example.org>",
        "RCPT TO:<ops@example.org>",
        "RCPT TO:<boss@example.org>",
        "Subject: [error] casts: rejected_share > 20%",
        "`rejected_share > 20%` holds: rejected_share is 25.00 %",
        "Pipeline: casts",
    ] {
        assert!(mail.contains(part), "{part} is not in\n{mail}");
    }
    assert!(mails.try_recv().is_err());
}
