//! What lets a pipeline run besides the clock.

use std::time::Duration;

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::schema::Secret;
use super::units::Period;

/// How often is looked for new files unless said.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What lets a pipeline run by itself: `triggers: {new_files: {every: 30s}}`. One of them is enough.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Triggers {
    /// A source has files, or whatever it reads, that no run has read.
    pub new_files: Option<NewFiles>,
    /// Somebody calls: `POST /run/NAME` with the token as bearer.
    pub http: Option<OnCall>,
}

/// A run for what is new.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewFiles {
    /// How often the sources are looked at; `30s` unless given.
    every: Option<Period>,
}

/// A run for each call.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnCall {
    /// What callers must know.
    #[schemars(with = "Secret")]
    token: SecretString,
}

impl NewFiles {
    /// How often the sources are looked at.
    pub fn every(&self) -> Duration {
        self.every.map_or(LOOK_EVERY, Into::into)
    }
}

impl OnCall {
    /// Whether a caller knows the token. The time that this takes doesn't tell how much of it was right.
    pub fn admits(&self, token: &str) -> bool {
        let own = self.token.expose_secret().as_bytes();
        let given = token.as_bytes();
        let differ = own
            .iter()
            .enumerate()
            .fold(0, |differ, (i, byte)| differ | (byte ^ given.get(i).copied().unwrap_or(!byte)));
        differ == 0 && own.len() == given.len() && !own.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_admits() {
        let call = |token: &str| OnCall { token: token.to_owned().into() };
        assert!(call("secret").admits("secret"));
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert!(!call("secret").admits(wrong), "{wrong}");
        }
        assert!(!call("").admits(""));
    }
}
