//! Pipelines that run by themselves: for new files, when they are called, after one another.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::desk::{Desk, Going};

fn spec(name: &str, more: &str) -> String {
    format!(
        "
name: {name}
source: {{type: files, path: 'in/*.csv', schema: {{id: int64}}}}
sink: {{type: files, path: {name}, format: csv}}
checkpoint: {{path: state}}
{more}
"
    )
}

fn desk(more: &str) -> Desk {
    let desk = Desk::new();
    desk.write("in/a.csv", "id\n1\n2\n").write("copy.yaml", &spec("copy", more));
    desk
}

fn end(mut run: Going) {
    run.signal("-TERM");
    run.end().coded(0);
}

#[test]
fn new_files_let_a_pipeline_run() {
    let desk = desk("triggers: {new_files: {every: 10ms}}");
    // One that comes after it runs each time that it has.
    desk.write("then.yaml", &spec("then", "after: [copy]"));
    let run = desk
        .start(&["run", "copy.yaml", "then.yaml", "--schedule"])
        .until("what was there is in", || desk.lines("then") == ["1", "2"]);
    desk.write("in/.part", "id\n3\n");
    std::fs::rename(desk.path("in/.part"), desk.path("in/b.csv")).unwrap();
    let run = run.until("the new file is in", || desk.lines("copy") == ["1", "2", "3"]);
    end(run.until("the other one has run too", || desk.lines("then") == ["1", "2", "3"]));
}

fn post(address: &str, path: &str, token: &str) -> String {
    let mut server = TcpStream::connect(address).unwrap();
    write!(
        server,
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_call_lets_a_pipeline_run_if_it_has_the_token() {
    let desk = desk("triggers: {http: {token: '${TOKEN}'}}");
    desk.write("vars.env", "TOKEN=s3cret\n");
    let args = ["run", "copy.yaml", "--schedule", "--env-file", "vars.env"];
    let done = desk.orbit(&args);
    done.coded(2);
    assert!(
        done.err.contains("copy: is run by calls; say where they come in, with --listen"),
        "{}",
        done.err
    );
    let mut run = desk.start(&[&["--log-format", "json"], &args[..], &["--listen", "127.0.0.1:0"]].concat());
    let line = run.line_with("calls are taken");
    let log: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = log["address"].as_str().unwrap().to_owned();
    assert!(post(&address, "/run/copy", "guess").contains(" 401 "));
    assert!(post(&address, "/run/other", "s3cret").contains(" 401 "));
    assert!(!desk.path("copy").exists());
    assert!(post(&address, "/run/copy", "s3cret").contains(" 202 "));
    end(run.until("it has run", || desk.lines("copy") == ["1", "2"]));
}
