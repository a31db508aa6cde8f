//! A web service that runs pipelines: it starts, pauses, watches and gracefully stops them.
//!
//! `cargo run --example host-app --features generate -- examples/specs/nightly/load.yaml`, and then:
//!
//! ```sh
//! curl -X POST localhost:3000/pipelines/nightly-load/start
//! curl localhost:3000/pipelines/nightly-load
//! curl -X POST localhost:3000/pipelines/nightly-load/pause   # commits what was read, then waits
//! ```
//!
//! `start` goes on where a pause, a crash or the end of the service left off. Ctrl-C lets every run commit
//! what it has read before the service ends.

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use orbit_etl::observe::{Outcome, Progress};
use orbit_etl::{Pipeline, Registry, Spec};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The pipelines by their names.
type Pipelines = Arc<BTreeMap<String, Hosted>>;

struct Hosted {
    pipeline: Pipeline,
    state: Arc<Mutex<Seen>>,
    /// The run that goes on.
    run: tokio::sync::Mutex<Option<Run>>,
}

/// What was last seen of a pipeline.
#[derive(Default)]
struct Seen {
    status: &'static str,
    progress: Progress,
    error: Option<String>,
}

struct Run {
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut registry = Registry::new();
    orbit_etl::register_enabled(&mut registry);
    let mut pipelines = BTreeMap::new();
    for file in std::env::args().skip(1) {
        let pipeline = Spec::load(&file)?.build(&registry)?;
        let state = Arc::new(Mutex::new(Seen { status: "idle", ..Seen::default() }));
        let name = pipeline.name().to_owned();
        pipelines.insert(name, Hosted { pipeline, state, run: tokio::sync::Mutex::new(None) });
    }
    let pipelines: Pipelines = Arc::new(pipelines);
    let app = Router::new()
        .route("/pipelines", get(all))
        .route("/pipelines/{name}", get(one))
        .route("/pipelines/{name}/start", post(start))
        .route("/pipelines/{name}/pause", post(pause))
        .with_state(Arc::clone(&pipelines));
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    for hosted in pipelines.values() {
        hosted.pause().await;
    }
    println!("stopped; every run has committed what it had read");
    Ok(())
}

impl Hosted {
    /// Starts a run, unless one goes on.
    async fn start(&self) -> bool {
        let mut run = self.run.lock().await;
        if run.as_ref().is_some_and(|run| !run.ended.is_finished()) {
            return false;
        }
        let running = self.pipeline.start();
        let stop = running.stop_token();
        let state = Arc::clone(&self.state);
        let mut looks = Box::pin(running.progress());
        see(&state, |seen| *seen = Seen { status: "running", ..Seen::default() });
        let ended = tokio::spawn(async move {
            let watched = Arc::clone(&state);
            let watching = async move {
                while let Some(look) = looks.next().await {
                    see(&watched, |seen| seen.progress = look);
                }
            };
            // The looks end with the run.
            let (result, ()) = tokio::join!(running.into_future(), watching);
            see(&state, |seen| match result {
                Ok(report) => {
                    seen.status = if report.outcome == Outcome::Stopped { "paused" } else { "done" };
                }
                Err(error) => {
                    seen.status = "failed";
                    seen.error = Some(error.report());
                }
            });
        });
        *run = Some(Run { stop, ended });
        true
    }

    /// Lets the run commit what it has read, and waits until it has.
    async fn pause(&self) -> bool {
        match self.run.lock().await.take() {
            Some(run) if !run.ended.is_finished() => {
                run.stop.cancel();
                run.ended.await.is_ok()
            }
            _ => false,
        }
    }

    fn to_json(&self) -> Value {
        let seen = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "pipeline": self.pipeline.name(),
            "status": seen.status,
            "error": seen.error,
            "epoch": seen.progress.epoch,
            "elapsed_s": seen.progress.elapsed.as_secs_f64(),
            "nodes": seen.progress.nodes.iter().cloned().collect::<BTreeMap<_, _>>(),
        })
    }
}

fn see(state: &Mutex<Seen>, change: impl FnOnce(&mut Seen)) {
    change(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
}

async fn all(State(pipelines): State<Pipelines>) -> Json<Vec<Value>> {
    Json(pipelines.values().map(Hosted::to_json).collect())
}

async fn one(
    State(pipelines): State<Pipelines>,
    Path(name): Path<String>,
) -> Result<Json<Value>, StatusCode> {
    pipelines.get(&name).map(|hosted| Json(hosted.to_json())).ok_or(StatusCode::NOT_FOUND)
}

async fn start(State(pipelines): State<Pipelines>, Path(name): Path<String>) -> StatusCode {
    match pipelines.get(&name) {
        Some(hosted) if hosted.start().await => StatusCode::ACCEPTED,
        Some(_) => StatusCode::CONFLICT,
        None => StatusCode::NOT_FOUND,
    }
}

async fn pause(State(pipelines): State<Pipelines>, Path(name): Path<String>) -> StatusCode {
    match pipelines.get(&name) {
        Some(hosted) if hosted.pause().await => StatusCode::OK,
        Some(_) => StatusCode::CONFLICT,
        None => StatusCode::NOT_FOUND,
    }
}
