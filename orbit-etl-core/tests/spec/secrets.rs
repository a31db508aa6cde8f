//! Secrets are in configurations and nowhere else.

use orbit_etl_core::spec::{Loader, Syntax, from_variables, json_schema};
use secrecy::{ExposeSecret, SecretString};

use super::types::registry;

const SPEC: &str = "
name: p
description: 'fetch from https://me:hunter2@example.org/x?token=hunter2&v=1'
source:
  type: database
  url: postgres://me:${PASSWORD}@db/orders
  table: ${TABLE}
  options: {sslkey: hunter2}
transforms:
  - type: sql
    query: |
      SELECT a,
        b
      FROM input
sinks:
  files: {type: files, path: '${DIR:-out}/x', format: json, split_size: 64MiB}
  db: {type: database, url: hunter2, table: 't: 1', delivery: at_least_once}
checkpoint: {path: state, storage: {access_key_id: hunter2}}
defaults: {source: {custom: {password: hunter2}}}
x-notes: {token: hunter2}
";

fn loader() -> Loader {
    Loader::new().variables(|name| match name {
        "PASSWORD" => Some("hunter2".into()),
        "TABLE" => Some("orders".into()),
        _ => None,
    })
}

#[test]
fn a_spec_is_printed_without_secrets_and_can_be_read_again() {
    let registry = registry();
    let spec = loader().parse(SPEC, Syntax::Yaml).unwrap();
    let printed = spec.to_yaml(&registry);
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("postgres://me:${PASSWORD}@db/orders"), "{printed}");
    assert!(printed.contains("    query: |\n      SELECT a,\n        b\n      FROM input\n"), "{printed}");
    let again = loader().parse(&printed, Syntax::Yaml).unwrap();
    assert_eq!(again.to_yaml(&registry), printed);
}

#[test]
fn nothing_that_is_built_shows_a_secret() {
    let spec = loader().parse(&SPEC.replace("x-notes", "wrong"), Syntax::Yaml).unwrap();
    let registry = registry();
    let told = spec.build(&registry).unwrap_err();
    for text in [format!("{spec:?}"), format!("{told:?}"), told.to_string(), format!("{registry:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let built =
        loader().parse(SPEC.trim_end().trim_end_matches("x-notes: {token: hunter2}"), Syntax::Yaml).unwrap();
    let built = built.build(&registry);
    assert!(!format!("{built:?}").contains("hunter2"), "{built:?}");
}

#[test]
fn configurations_come_from_the_environment() {
    #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[schemars(with = "orbit_etl_core::spec::Secret")]
        url: SecretString,
        rows: u8,
        #[serde(default)]
        csv: Option<std::collections::BTreeMap<String, String>>,
    }

    let read = |variables: &[(&str, &str)]| from_variables::<Config>("my-orders", variables.iter().copied());
    let config = read(&[
        ("ORBIT_MY_ORDERS__URL", "db://hunter2"),
        ("ORBIT_MY_ORDERS__ROWS", "7"),
        ("ORBIT_MY_ORDERS__CSV__DELIMITER", ";"),
        ("ORBIT_MY_ORDERS_EU__URL", "another node's"),
    ])
    .unwrap();
    assert_eq!((config.url.expose_secret(), config.rows), ("db://hunter2", 7));
    assert_eq!(config.csv.unwrap()["delimiter"], ";");
    let error = read(&[
        ("ORBIT_MY_ORDERS__ULR", "db://hunter2"),
        ("ORBIT_MY_ORDERS__ROWS", "hunter2"),
        ("ORBIT_MY_ORDERS__CSV", "{a: [hunter2]}"),
    ])
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "$ORBIT_MY_ORDERS__CSV:1:5: csv.a: expected a text, found a list\n\
         $ORBIT_MY_ORDERS__ROWS: rows: expected a whole number that isn't negative, found a text from \
         \"${ORBIT_MY_ORDERS__ROWS}\"\n\
         $ORBIT_MY_ORDERS__ULR: ulr: unknown key; did you mean \"url\"?"
    );
}

#[test]
fn the_schema_says_which_keys_are_secret_and_which_are_paths() {
    let schema = json_schema(&registry());
    let at = |pointer: &str| schema.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {schema:#}"));
    assert_eq!(at("/$defs/Source.database/properties/url/writeOnly"), true);
    assert_eq!(at("/$defs/Source.database/properties/type/const"), "database");
    assert_eq!(at("/$defs/Sink.files/properties/path/format"), "path");
    assert_eq!(at("/$defs/Sink.files/additionalProperties"), false);
    assert!(at("/$defs/Sink.files/properties").get("inputs").is_some());
    assert!(at("/properties").get("parallelism").is_some());
    assert_eq!(at("/$defs/Source.custom/required/0"), "type");
}
