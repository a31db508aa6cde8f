//! Alerts by mail.

use std::fmt::Write as _;
use std::time::Duration;

use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use orbit_etl_core::spec::Secret;
use orbit_etl_core::{Error, Result};
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::Notice;
use super::target::facts;

const TIMEOUT: Duration = Duration::from_secs(10);
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);

/// Mail through a server.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// The server.
    host: String,
    /// Its port: 587 with `starttls`, 465 with `implicit`, 25 with `none`, unless given.
    #[serde(default)]
    port: Option<u16>,
    /// How the connection is encrypted.
    #[serde(default)]
    tls: Tls,
    /// Who signs in.
    #[serde(default)]
    user: Option<String>,
    /// The password.
    #[serde(default)]
    #[schemars(with = "Option<Secret>")]
    password: Option<SecretString>,
    /// The sender: `orbit@example.org` or `Orbit <orbit@example.org>`.
    from: String,
    /// The receivers.
    to: Vec<String>,
}

/// How a connection is encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tls {
    /// Begins in plain text and must go over to TLS before anything is said.
    #[default]
    Starttls,
    /// TLS from the first byte on.
    Implicit,
    /// Not at all; no password is sent then.
    None,
}

impl Mail {
    /// Mail from a sender to receivers, through a server with STARTTLS.
    pub fn new(
        host: impl Into<String>,
        from: impl Into<String>,
        to: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            host: host.into(),
            port: None,
            tls: Tls::default(),
            user: None,
            password: None,
            from: from.into(),
            to: to.into_iter().map(Into::into).collect(),
        }
    }

    /// Another port than the usual one.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// How the connection is encrypted.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Signs in.
    #[must_use]
    pub fn with_login(mut self, user: impl Into<String>, password: impl Into<SecretString>) -> Self {
        self.user = Some(user.into());
        self.password = Some(password.into());
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.message(&Notice::sample())?;
        if self.user.is_some() != self.password.is_some() {
            return Err(Error::config("`user` and `password` belong together").with("option", "user"));
        }
        if self.tls == Tls::None && self.password.is_some() {
            return Err(Error::config("a password would be sent in plain text").with("option", "tls"));
        }
        self.transport().map(drop)
    }

    pub(super) async fn send(&self, notice: &Notice) -> Result<()> {
        let (message, transport) = (self.message(notice)?, self.transport()?);
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let Err(error) = transport.send(message.clone()).await else { return Ok(()) };
            if error.is_permanent() || tries == TRIES {
                // What the server says may repeat what it was told.
                let code = error.status().map(|code| code.to_string()).unwrap_or_default();
                return Err(Error::unavailable("the mail was not taken")
                    .with("code", code)
                    .with("tries", tries));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            tries += 1;
        }
    }

    fn message(&self, notice: &Notice) -> Result<Message> {
        let mailbox = |text: &str, option: &str| {
            text.parse::<Mailbox>()
                .map_err(|_| Error::config("is no mail address").with("option", option.to_owned()))
        };
        let mut builder = Message::builder().from(mailbox(&self.from, "from")?).subject(notice.title());
        if self.to.is_empty() {
            return Err(Error::config("names nobody").with("option", "to"));
        }
        for to in &self.to {
            builder = builder.to(mailbox(to, "to")?);
        }
        let mut text = format!("{}\n\n", notice.message);
        for (title, value) in facts(notice) {
            let _ = writeln!(text, "{title}: {value}");
        }
        builder.body(text).map_err(|e| Error::internal("no mail can be made").caused_by(e))
    }

    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>> {
        type Transport = AsyncSmtpTransport<Tokio1Executor>;
        let fail = |e| Error::config("no connection can be set up").with("option", "host").caused_by(e);
        let mut builder = match self.tls {
            Tls::Starttls => Transport::starttls_relay(&self.host).map_err(fail)?,
            Tls::Implicit => Transport::relay(&self.host).map_err(fail)?,
            Tls::None => Transport::builder_dangerous(&self.host),
        };
        builder = builder.timeout(Some(TIMEOUT));
        if let Some(port) = self.port {
            builder = builder.port(port);
        }
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            builder =
                builder.credentials(Credentials::new(user.clone(), password.expose_secret().to_owned()));
        }
        Ok(builder.build())
    }
}
