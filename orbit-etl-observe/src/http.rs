//! Posting JSON, again where that may help.

use std::time::Duration;

use orbit_etl_core::{Error, Result};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap};

/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(5);
const TRIES: u32 = 5;
/// The pause before the second try; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// A client without redirects: what is posted holds secrets.
pub(crate) fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("orbit-etl/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| Error::config("no HTTP client can be made").caused_by(e))
}

/// Posts until it is accepted, refused for good, or tried often enough. The URL is in no error.
pub(crate) async fn post(
    client: &reqwest::Client,
    url: &str,
    headers: HeaderMap,
    body: String,
) -> Result<()> {
    let mut pause = PAUSE;
    let mut tries = 1;
    loop {
        let request = client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .headers(headers.clone())
            .body(body.clone());
        let error = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => refused(answer.status()),
            Err(error) if error.is_builder() => {
                return Err(Error::config("the URL can't be used").caused_by(error.without_url()));
            }
            Err(error) => Error::unavailable("the request failed").caused_by(error.without_url()),
        };
        if !error.is_retryable() || tries == TRIES {
            return Err(error.with("tries", tries));
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
        tries += 1;
    }
}

fn refused(status: StatusCode) -> Error {
    let again = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT;
    let error = if again {
        Error::unavailable("the request was refused for now")
    } else {
        Error::config("the request was refused")
    };
    error.with("status", status.as_u16())
}
