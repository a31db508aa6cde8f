//! `POST /run/NAME`: pipelines that run when they are called.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use orbit_etl::spec::OnCall;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// The pipelines that can be called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    callees: BTreeMap<String, Callee>,
}

#[derive(Debug, Clone)]
struct Callee {
    on_call: OnCall,
    called: Arc<Notify>,
}

impl Calls {
    /// Lets a pipeline be called.
    pub(crate) fn expect(&mut self, pipeline: &str, on_call: OnCall) {
        self.callees.insert(pipeline.to_owned(), Callee { on_call, called: Arc::default() });
    }

    /// What tells a pipeline that it was called. Calls that come during a run make one more.
    pub(crate) fn of(&self, pipeline: &str) -> Option<Arc<Notify>> {
        self.callees.get(pipeline).map(|callee| Arc::clone(&callee.called))
    }

    /// Takes calls until the token is cancelled.
    pub(crate) async fn serve(&self, address: SocketAddr, until: CancellationToken) -> Result<(), Failure> {
        let fail = |error| Failure::failed(format!("{address}: calls can't be taken there: {error}"));
        let listener = tokio::net::TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        tracing::info!(%address, "calls are taken");
        let router = Router::new().route("/run/{pipeline}", post(call)).with_state(self.clone());
        tokio::spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(until.cancelled_owned()).await;
            if let Err(error) = served {
                tracing::error!(%error, "calls are not taken any more");
            }
        });
        Ok(())
    }
}

/// Without the token nobody learns which pipelines there are.
async fn call(
    State(calls): State<Calls>,
    Path(pipeline): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, &'static str) {
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    match calls.callees.get(&pipeline).filter(|callee| callee.on_call.admits(token)) {
        Some(callee) => {
            callee.called.notify_one();
            (StatusCode::ACCEPTED, "it will run\n")
        }
        None => (StatusCode::UNAUTHORIZED, "there is no such pipeline, or this is not its token\n"),
    }
}
