//! What must not be seen, and how it is kept out of texts.

use super::tree::{Node, REDACTED, Value};

/// Shorter values are not looked for in messages: they would be found in any word.
const SHORTEST: usize = 4;

/// Names of keys whose values are taken for secrets where no schema says so.
const NAMES: [&str; 9] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "api_key",
    "access_key",
    "private_key",
    "signature",
];

/// Values that are not to be printed, with what is printed instead.
#[derive(Default)]
pub(crate) struct Secrets {
    known: Vec<(String, String)>,
}

impl Secrets {
    /// Remembers the secrets of a tree.
    pub(crate) fn collect(&mut self, node: &Node) {
        let mut node = node.clone();
        node.each_text("", &mut |_, _, text| {
            if (text.secret || text.from_file) && text.value.len() >= SHORTEST {
                self.known.push((text.value.clone(), text.shown().to_owned()));
            }
        });
        // A secret may be a part of another one.
        self.known.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        self.known.dedup();
    }

    /// The text without them.
    pub(crate) fn hide(&self, text: &str) -> String {
        self.known.iter().fold(text.to_owned(), |text, (secret, shown)| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), shown) } else { text }
        })
    }
}

/// Marks what is secret by its name, where no schema is known.
pub(crate) fn mark(node: &mut Node) {
    match &mut node.value {
        Value::Map(entries) => {
            for entry in entries {
                if sounds_secret(&entry.key) {
                    entry.node.each_text("", &mut |_, _, text| text.secret = true);
                } else {
                    mark(&mut entry.node);
                }
            }
        }
        Value::List(items) => items.iter_mut().for_each(mark),
        Value::Text(text) => text.secret |= text.from_file,
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {}
    }
}

fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");
    name == "sig" || NAMES.iter().any(|known| name.contains(known))
}

/// A URL without its password and without those parameters that sound secret; any other text as it is.
pub(crate) fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            // A variable in its place gives nothing away.
            Some((_, password)) if password.starts_with("${") && password.ends_with('}') => {
                authority.to_owned()
            }
            Some((user, _)) => format!("{user}:{REDACTED}@{host}"),
            None if scheme.starts_with("http") => format!("{REDACTED}@{host}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let rest = match rest.split_once('?') {
        Some((path, query)) => {
            let parameters: Vec<String> = query
                .split('&')
                .map(|parameter| match parameter.split_once('=') {
                    Some((key, _)) if sounds_secret(key) => format!("{key}={REDACTED}"),
                    _ => parameter.to_owned(),
                })
                .collect();
            format!("{path}?{}", parameters.join("&"))
        }
        None => rest.to_owned(),
    };
    format!("{scheme}://{authority}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_opens_doors() {
        for (url, expected) in [
            ("postgres://me:hunter2@db:5432/x", "postgres://me:[redacted]@db:5432/x"),
            ("postgres://me:${PW}@db/x", "postgres://me:${PW}@db/x"),
            ("https://ghp_x@github.com/a", "https://[redacted]@github.com/a"),
            ("abfss://box@account.dfs/a", "abfss://box@account.dfs/a"),
            ("https://h/a?sig=abc&v=1", "https://h/a?sig=[redacted]&v=1"),
            ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
            ("plain text", "plain text"),
        ] {
            assert_eq!(without_credentials(url), expected);
        }
    }
}
