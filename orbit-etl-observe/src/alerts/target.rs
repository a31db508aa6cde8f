//! Where alerts go, and how they look there.

use std::collections::BTreeMap;

use orbit_etl_core::spec::Secret;
use orbit_etl_core::{Error, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Notice, Severity};
use crate::http;

const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";

/// Where alerts go.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Target {
    /// Any HTTP address that takes JSON.
    Webhook(Webhook),
    /// An incoming webhook of Slack.
    Slack(Address),
    /// A webhook of a workflow in Teams.
    Teams(Address),
    /// Events of PagerDuty, which are resolved by themselves.
    Pagerduty(PagerDuty),
    /// Mail.
    #[cfg(feature = "smtp")]
    Email(super::mail::Mail),
}

/// Any HTTP address that takes JSON.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The address; it often holds a secret.
    #[schemars(with = "Secret")]
    url: SecretString,
    /// Sent along.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Secret>")]
    headers: BTreeMap<String, SecretString>,
    /// A text in JSON in which `{{pipeline}}`, `{{rule}}`, `{{condition}}`, `{{status}}`, `{{severity}}`,
    /// `{{value}}`, `{{message}}`, `{{run_id}}` and `{{at}}` are replaced, within quotes. An object with all of
    /// these unless given.
    #[serde(default)]
    body: Option<String>,
}

/// A webhook whose address is a secret.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address, which is all that is needed to write there.
    #[schemars(with = "Secret")]
    url: SecretString,
}

/// Events of PagerDuty.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PagerDuty {
    /// The integration's routing key.
    #[schemars(with = "Secret")]
    key: SecretString,
    /// Another address than PagerDuty's own: `https://events.eu.pagerduty.com/v2/enqueue`.
    #[serde(default)]
    url: Option<String>,
}

impl Target {
    /// A webhook with the default body.
    pub fn webhook(url: impl Into<SecretString>) -> Self {
        Self::Webhook(Webhook { url: url.into(), headers: BTreeMap::new(), body: None })
    }

    /// An incoming webhook of Slack.
    pub fn slack(url: impl Into<SecretString>) -> Self {
        Self::Slack(Address { url: url.into() })
    }

    /// A webhook of a workflow in Teams.
    pub fn teams(url: impl Into<SecretString>) -> Self {
        Self::Teams(Address { url: url.into() })
    }

    /// Events of PagerDuty by an integration's routing key.
    pub fn pagerduty(key: impl Into<SecretString>) -> Self {
        Self::Pagerduty(PagerDuty { key: key.into(), url: None })
    }

    pub(super) fn validate(&self) -> Result<()> {
        match self {
            Self::Webhook(hook) => {
                check_url(hook.url.expose_secret())?;
                hook.headers()?;
                let sample = hook.body(&Notice::sample());
                serde_json::from_str::<Value>(&sample).map_err(|_| {
                    Error::config("is no JSON once its places are filled in").with("option", "body")
                })?;
                Ok(())
            }
            Self::Slack(address) | Self::Teams(address) => check_url(address.url.expose_secret()),
            Self::Pagerduty(duty) => check_url(duty.url.as_deref().unwrap_or(PAGERDUTY)),
            #[cfg(feature = "smtp")]
            Self::Email(mail) => mail.validate(),
        }
    }

    /// Sends one notice; tries again where that may help.
    pub(super) async fn send(&self, client: &reqwest::Client, notice: &Notice) -> Result<()> {
        let post = |url: &str, headers: HeaderMap, body: String| {
            let url = url.to_owned();
            async move { http::post(client, &url, headers, body).await }
        };
        match self {
            Self::Webhook(hook) => post(hook.url.expose_secret(), hook.headers()?, hook.body(notice)).await,
            Self::Slack(address) => {
                post(address.url.expose_secret(), HeaderMap::new(), slack(notice).to_string()).await
            }
            Self::Teams(address) => {
                post(address.url.expose_secret(), HeaderMap::new(), teams(notice).to_string()).await
            }
            Self::Pagerduty(duty) => {
                let event = pagerduty(notice, duty.key.expose_secret());
                post(duty.url.as_deref().unwrap_or(PAGERDUTY), HeaderMap::new(), event.to_string()).await
            }
            #[cfg(feature = "smtp")]
            Self::Email(mail) => mail.send(notice).await,
        }
    }
}

/// The address is not shown.
fn check_url(url: &str) -> Result<()> {
    match reqwest::Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(()),
        _ => Err(Error::config("not an HTTP address").with("option", "url")),
    }
}

impl Webhook {
    fn headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let fail = || Error::config("can't be a header").with("option", format!("headers.{name}"));
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| fail())?;
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| fail())?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(headers)
    }

    fn body(&self, notice: &Notice) -> String {
        let Some(template) = &self.body else { return notice.to_json().to_string() };
        let Value::Object(values) = notice.to_json() else { return template.clone() };
        values.iter().fold(template.clone(), |text, (name, value)| {
            let plain = match value {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            // As it stands between quotes.
            let quoted = Value::String(plain).to_string();
            text.replace(&format!("{{{{{name}}}}}"), &quoted[1..quoted.len() - 1])
        })
    }
}

fn slack(notice: &Notice) -> Value {
    // The three characters that have a meaning there.
    let plain = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let sign = if notice.firing { ":rotating_light:" } else { ":white_check_mark:" };
    json!({
        "text": format!("{sign} *{}*: {}", plain(&notice.title()), plain(&notice.message)),
        "attachments": [{
            "color": color(notice),
            "fields": facts(notice)
                .into_iter()
                .map(|(title, value)| json!({ "title": title, "value": plain(&value), "short": true }))
                .collect::<Vec<_>>(),
        }],
    })
}

fn color(notice: &Notice) -> &'static str {
    match (notice.firing, notice.severity) {
        (false, _) => "#2eb67d",
        (true, Severity::Info) => "#36c5f0",
        (true, Severity::Warning) => "#ecb22e",
        (true, Severity::Error | Severity::Critical) => "#e01e5a",
    }
}

fn teams(notice: &Notice) -> Value {
    let color = match (notice.firing, notice.severity) {
        (false, _) => "Good",
        (true, Severity::Info) => "Accent",
        (true, Severity::Warning) => "Warning",
        (true, Severity::Error | Severity::Critical) => "Attention",
    };
    let facts = facts(notice).into_iter().map(|(title, value)| json!({ "title": title, "value": value }));
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": [
                    { "type": "TextBlock", "text": notice.title(), "weight": "Bolder", "color": color, "wrap": true },
                    { "type": "TextBlock", "text": notice.message, "wrap": true },
                    { "type": "FactSet", "facts": facts.collect::<Vec<_>>() },
                ],
            },
        }],
    })
}

pub(super) fn facts(notice: &Notice) -> Vec<(&'static str, String)> {
    vec![
        ("Pipeline", notice.pipeline.clone()),
        ("Rule", notice.condition.clone()),
        ("Severity", notice.severity.as_str().to_owned()),
        ("Run", notice.run_id.clone()),
        ("At", notice.at.clone()),
    ]
}

fn pagerduty(notice: &Notice, key: &str) -> Value {
    let mut event = json!({
        "routing_key": key,
        "event_action": if notice.firing { "trigger" } else { "resolve" },
        "dedup_key": format!("orbit-etl/{}/{}", notice.pipeline, notice.rule),
    });
    if notice.firing {
        event["payload"] = json!({
            "summary": shortened(&format!("{}: {}", notice.title(), notice.message)),
            "source": notice.pipeline,
            "severity": notice.severity.as_str(),
            "timestamp": notice.at,
            "component": "orbit-etl",
            "custom_details": notice.to_json(),
        });
    }
    event
}

/// PagerDuty takes no longer summary.
fn shortened(text: &str) -> String {
    text.chars().take(1_024).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_within_quotes() {
        let hook: Webhook = serde_json::from_value(json!({
            "url": "https://example.org",
            "body": r#"{"text": "{{pipeline}} {{status}}: {{message}}", "n": {"v": "{{value}}"}, "raw": "{{other}}"}"#
        }))
        .unwrap();
        let mut notice = Notice::sample();
        notice.message = "a \"quoted\"\nline \\ end".into();
        let body: Value = serde_json::from_str(&hook.body(&notice)).unwrap();
        assert_eq!(body["text"], "orders firing: a \"quoted\"\nline \\ end");
        assert_eq!((&body["n"]["v"], &body["raw"]), (&json!("361.0"), &json!("{{other}}")));
    }

    #[test]
    fn slack_teams_and_pagerduty_get_what_they_take() {
        let mut notice = Notice::sample();
        notice.message = "5 > 4 & rising".into();
        let slack = slack(&notice);
        assert!(slack["text"].as_str().unwrap().ends_with("5 &gt; 4 &amp; rising"), "{slack}");
        assert_eq!(
            slack["attachments"][0]["fields"][0],
            json!({"title": "Pipeline", "value": "orders", "short": true})
        );
        let teams = teams(&notice);
        let card = &teams["attachments"][0]["content"];
        assert_eq!(
            (&teams["type"], &card["type"], &card["body"][1]["text"]),
            (&json!("message"), &json!("AdaptiveCard"), &json!("5 > 4 & rising"))
        );
        let event = pagerduty(&notice, "k");
        assert_eq!(
            (&event["event_action"], &event["payload"]["severity"]),
            (&json!("trigger"), &json!("critical"))
        );
        notice.firing = false;
        let resolved = pagerduty(&notice, "k");
        assert_eq!(
            resolved,
            json!({"routing_key": "k", "event_action": "resolve", "dedup_key": event["dedup_key"]})
        );
    }

    #[test]
    fn no_secret_is_in_what_is_printed() {
        let target = Target::slack("https://hooks.slack.com/services/very-secret");
        let bad = Target::webhook("very-secret");
        let told = format!("{target:?} {bad:?} {}", bad.validate().unwrap_err().report());
        assert!(!told.contains("very-secret"), "{told}");
    }
}
