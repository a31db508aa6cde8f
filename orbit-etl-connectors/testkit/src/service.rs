//! Servers that tests need.

use std::env;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::harness::{Check, Stop};

/// The URL of a test server: `ORBIT_TEST_<NAME>_URL`, or else `default`, if it answers. For a bucket,
/// `s3://…`, the server at `AWS_ENDPOINT_URL` must answer.
///
/// # Errors
/// [`Stop::Skip`] if there is none or nobody listens; [`Stop::Fail`] instead if `ORBIT_TEST_REQUIRE`
/// (names separated by commas) lists the server.
pub fn service(name: &str, default: Option<&str>) -> Check<String> {
    let name = name.to_uppercase();
    let variable = format!("ORBIT_TEST_{name}_URL");
    let url = env::var(&variable).ok().or_else(|| default.map(str::to_owned));
    let required = env::var("ORBIT_TEST_REQUIRE").unwrap_or_default();
    decide(&name, url, &required, listens)
}

fn decide(name: &str, url: Option<String>, required: &str, listens: fn(&str) -> bool) -> Check<String> {
    let problem = match url {
        Some(url) if listens(&url) => return Ok(url),
        Some(_) => format!("no {name} server answers at the URL of ORBIT_TEST_{name}_URL"),
        None => format!("ORBIT_TEST_{name}_URL isn't set"),
    };
    if required.split(',').any(|r| r.trim().eq_ignore_ascii_case(name)) {
        return Err(Stop::fail(format!("{problem}, and ORBIT_TEST_REQUIRE names it")));
    }
    Err(Stop::skip(problem))
}

fn listens(url: &str) -> bool {
    // A bucket's URL doesn't say which server has it.
    let endpoint = env::var("AWS_ENDPOINT_URL").unwrap_or_else(|_| "https://s3.amazonaws.com".into());
    let server = if url.starts_with("s3://") { &endpoint } else { url };
    let Some(address) = address(server) else { return false };
    let Ok(mut addresses) = address.to_socket_addrs() else { return false };
    addresses.any(|a| TcpStream::connect_timeout(&a, Duration::from_secs(2)).is_ok())
}

/// `host:port` of a URL.
fn address(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        return Some(host.to_owned());
    }
    let port = match scheme {
        "http" => 80,
        "https" => 443,
        "postgres" | "postgresql" => 5432,
        "mysql" => 3306,
        "redis" => 6379,
        "kafka" => 9092,
        _ => return None,
    };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_skipped_unless_it_is_required() {
        let url = Some("http://h".to_owned());
        assert_eq!(decide("S3", url.clone(), "S3", |_| true), Ok("http://h".into()));
        for (url, required, fails) in
            [(None, "kafka", false), (url.clone(), "", false), (url, "kafka, s3", true), (None, "S3", true)]
        {
            match decide("S3", url, required, |_| false) {
                Err(Stop::Skip(_)) => assert!(!fails),
                Err(Stop::Fail(_)) => assert!(fails),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_address_is_found_in_the_url() {
        assert_eq!(address("http://127.0.0.1:5000/bucket").as_deref(), Some("127.0.0.1:5000"));
        assert_eq!(address("postgres://me:pw@db/x?y").as_deref(), Some("db:5432"));
        assert_eq!(address("nonsense"), None);
    }
}
