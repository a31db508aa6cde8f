//! [OpenLineage](https://openlineage.io) events of runs.
//!
//! Of each run: `START` when it begins, `RUNNING` when its plan is known and from time to time (see
//! [`with_every`](OpenLineage::with_every)), and one of `COMPLETE` (the inputs ended, or the run was stopped
//! after a last epoch), `FAIL`, and `ABORT` (stopped at once, or taken over by another run). The run id is the
//! same over restarts.
//!
//! * A source's stream is an input, a sink's an output; the dead letters are an output too. A dataset is
//!   named by its place (`file` and `/data/orders.csv`, `s3://bucket` and `lake/orders`), or, where there is
//!   none, by the pipeline and the node.
//! * Facets: `schema`; `columnLineage` of outputs that only transforms lead to which tell what they do with
//!   columns (SQL does); `inputStatistics` and `dataQualityMetrics` (rows and bytes), `dataQualityAssertions`
//!   (whether rows were rejected), `outputStatistics`, all of committed epochs; `errorMessage`,
//!   `processing_engine`, `jobType`.
//!
//! In a spec:
//!
//! ```yaml
//! lineage:
//!   url: https://marquez.example/api/v1/lineage
//!   token: ${MARQUEZ_TOKEN}
//!   namespace: warehouse
//! ```

mod columns;
mod event;

use std::io::Write as _;
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use orbit_etl_core::observe::{Observer, RunView};
use orbit_etl_core::spec::{PathText, Period, Secret};
use orbit_etl_core::{Error, Result};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior};

use self::event::Teller;
use crate::http;

const SHORTEST: Duration = Duration::from_millis(10);

/// Tells runs as OpenLineage events. See the [module](self).
///
/// ```
/// use orbit_etl_observe::OpenLineage;
///
/// let lineage = OpenLineage::to_url("http://localhost:5000/api/v1/lineage").with_namespace("warehouse");
/// # let _ = lineage; // Pipeline::builder("orders").observer(lineage)
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenLineage {
    /// Where events are posted to. Either this or `file`.
    #[serde(default)]
    url: Option<String>,
    /// Sent as `Authorization: Bearer …`.
    #[serde(default)]
    #[schemars(with = "Option<Secret>")]
    token: Option<SecretString>,
    /// The file to which each event is appended as a line.
    #[serde(default)]
    #[schemars(with = "Option<PathText>")]
    file: Option<String>,
    /// The namespace of the job; `default` unless given.
    #[serde(default = "default_namespace")]
    namespace: String,
    /// How often a run that goes on is told of; every minute unless given.
    #[serde(default = "default_every")]
    every: Period,
}

fn default_namespace() -> String {
    "default".into()
}

fn default_every() -> Period {
    Period(Duration::from_secs(60))
}

impl OpenLineage {
    /// Posts events.
    pub fn to_url(url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), ..Self::nowhere() }
    }

    /// Appends events to a file, one in a line.
    pub fn to_file(path: impl Into<String>) -> Self {
        Self { file: Some(path.into()), ..Self::nowhere() }
    }

    /// Sends `Authorization: Bearer …` along.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<SecretString>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The namespace of the job; `default` unless given.
    #[must_use]
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How often a run that goes on is told of; every minute unless given.
    #[must_use]
    pub fn with_every(mut self, every: Duration) -> Self {
        self.every = Period(every);
        self
    }

    fn nowhere() -> Self {
        Self { url: None, token: None, file: None, namespace: default_namespace(), every: default_every() }
    }

    /// Without a client, which takes its time to read the system's certificates.
    fn place(&self) -> Result<Place<'_>> {
        match (&self.url, &self.file) {
            (Some(url), None) => {
                let fits = reqwest::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
                if !fits {
                    return Err(Error::config("not an HTTP address").with("option", "url"));
                }
                let mut headers = HeaderMap::new();
                if let Some(token) = &self.token {
                    let bearer = format!("Bearer {}", token.expose_secret());
                    let mut value = HeaderValue::from_str(&bearer).map_err(|_| {
                        Error::config("has characters that a header can't hold").with("option", "token")
                    })?;
                    value.set_sensitive(true);
                    headers.insert(AUTHORIZATION, value);
                }
                Ok(Place::Url(url, headers))
            }
            (None, Some(file)) => Ok(Place::File(file)),
            (Some(_), Some(_)) => Err(Error::config("events go to one place")
                .with("option", "file")
                .remedy("leave one of `url` and `file` out")),
            (None, None) => Err(Error::config("nothing says where events go").remedy("give `url` or `file`")),
        }
    }

    fn destination(&self) -> Result<Destination> {
        Ok(match self.place()? {
            Place::Url(url, headers) => {
                Destination::Http { client: http::client()?, url: url.to_owned(), headers }
            }
            Place::File(file) => Destination::File(file.to_owned()),
        })
    }
}

impl Observer for OpenLineage {
    fn validate(&self) -> Result<()> {
        self.place().map(drop)
    }

    fn watch(&self, run: RunView) -> BoxFuture<'static, ()> {
        let lineage = self.clone();
        async move {
            match lineage.destination() {
                Ok(destination) => tell(run, destination, &lineage.namespace, lineage.every.0).await,
                Err(error) => tracing::warn!(error = %error.report(), "no lineage is told"),
            }
        }
        .boxed()
    }
}

enum Place<'a> {
    Url(&'a str, HeaderMap),
    File(&'a str),
}

enum Destination {
    Http { client: reqwest::Client, url: String, headers: HeaderMap },
    File(String),
}

impl Destination {
    /// What can't be sent is logged and gone.
    async fn send(&self, event: Value) {
        let sent = match self {
            Self::Http { client, url, headers } => {
                http::post(client, url, headers.clone(), event.to_string()).await
            }
            Self::File(path) => append(path, &format!("{event}\n")),
        };
        if let Err(error) = sent {
            tracing::warn!(error = %error.report(), event = %event["eventType"], "a lineage event is lost");
        }
    }
}

/// In one write, so that lines of several pipelines stay whole.
fn append(path: &str, line: &str) -> Result<()> {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|e| Error::unavailable("the file can't be written").with("file", path).caused_by(e))
}

async fn tell(run: RunView, destination: Destination, namespace: &str, every: Duration) {
    let mut teller = Teller::new(&run, namespace);
    destination.send(teller.start()).await;
    let mut ended = pin!(run.end());
    // The plan first: a short run may have ended before this looks.
    tokio::select! {
        biased;
        plan = run.planned() => teller.plan = plan,
        _ = run.end() => {}
    }
    if teller.plan.is_some() {
        let look = run.progress.borrow().clone();
        destination.send(teller.running(&look)).await;
    }
    let every = every.max(SHORTEST);
    let mut clock = tokio::time::interval_at(Instant::now() + every, every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ending = loop {
        tokio::select! {
            biased;
            ending = &mut ended => break ending,
            _ = clock.tick() => {
                let look = run.progress.borrow().clone();
                destination.send(teller.running(&look)).await;
            }
        }
    };
    // It may have come together with the end.
    teller.plan.clone_from(&*run.plan.borrow());
    let look = run.progress.borrow().clone();
    destination.send(teller.ended(&look, ending.as_deref())).await;
}
