//! Tables that aren't there yet.

use iceberg::spec::{PrimitiveType, Transform, Type, UnboundPartitionSpec};
use iceberg::table::Table;
use iceberg::{ErrorKind as Iceberg, NamespaceIdent, TableCreation, TableIdent};
use orbit_etl_core::{Error, Result, StreamInfo};

use super::IcebergSink;
use crate::catalog::Opened;
use crate::error::{cause, from_iceberg};
use crate::types;

/// The table, made if there is none.
pub(super) async fn load_or_create(
    opened: &Opened,
    sink: &IcebergSink,
    ident: &TableIdent,
    input: &StreamInfo,
) -> Result<Table> {
    if let Some(table) = opened.try_load(ident).await? {
        return Ok(table);
    }
    let fail = |e: iceberg::Error| from_iceberg(&e, "create the table", ident);
    create_namespace(opened, ident.namespace()).await.map_err(fail)?;
    let schema = types::to_iceberg(&input.schema)?;
    let creation = TableCreation::builder()
        .name(ident.name().to_owned())
        .partition_spec_opt(partition_spec(sink, &schema)?)
        .schema(schema)
        .properties(sink.properties.clone())
        .build();
    match opened.catalog.create_table(ident.namespace(), creation).await {
        Ok(table) => Ok(table),
        // Somebody else was quicker, or the answer to an earlier request was lost.
        Err(error) => match opened.try_load(ident).await? {
            Some(table) => Ok(table),
            None => Err(fail(error)),
        },
    }
}

/// Makes a namespace with those above it.
async fn create_namespace(opened: &Opened, namespace: &NamespaceIdent) -> iceberg::Result<()> {
    for depth in 1..=namespace.len() {
        let part = NamespaceIdent::from_vec(namespace[..depth].to_vec())?;
        if opened.catalog.namespace_exists(&part).await? {
            continue;
        }
        match opened.catalog.create_namespace(&part, Default::default()).await {
            Err(e) if e.kind() != Iceberg::NamespaceAlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// How a new table is partitioned.
///
/// # Errors
/// `Config` naming the column that can't be used.
pub(super) fn partition_spec(
    sink: &IcebergSink,
    schema: &iceberg::spec::Schema,
) -> Result<Option<UnboundPartitionSpec>> {
    if sink.partition_by.is_empty() {
        return Ok(None);
    }
    let mut spec = UnboundPartitionSpec::builder();
    for by in &sink.partition_by {
        let refuse = |why: &str| {
            Error::config(why.to_owned()).with("option", "partition_by").with("column", by.column())
        };
        let field =
            schema.field_by_name(by.column()).ok_or_else(|| refuse("a partition column isn't there"))?;
        let transform = by.transform()?;
        if transform.result_type(&field.field_type).is_err() {
            return Err(refuse("a column can't be partitioned by in this way")
                .with("transform", transform)
                .with("type", &field.field_type));
        }
        if !can_be_split(&field.field_type, transform) {
            return Err(refuse("times with a zone can't be partitioned by as they are")
                .remedy("partition by their `day` or `hour`"));
        }
        spec = spec
            .add_partition_field(field.id, by.name(), transform)
            .map_err(|e| refuse("the partition fields don't go together").caused_by(cause(&e)))?;
    }
    Ok(Some(spec.build()))
}

/// Refuses tables that can be read here, but not written to.
pub(super) fn writable(table: &Table) -> Result<()> {
    let metadata = table.metadata();
    let refuse = |why: &str| Error::unsupported(why.to_owned()).with("table", table.identifier());
    if let Some(field) = metadata.default_partition_spec().fields().iter().find(|f| !is_plain(&f.name)) {
        return Err(refuse("a partition field's name has characters that can't be written")
            .with("partition field", &field.name)
            .remedy("rename the partition field with the engine that owns the table"));
    }
    let by_time = metadata.default_partition_spec().fields().iter().find(|field| {
        let source = metadata.current_schema().field_by_id(field.source_id);
        source.is_some_and(|source| !can_be_split(&source.field_type, field.transform))
    });
    if let Some(field) = by_time {
        return Err(refuse("a table partitioned by times with a zone, as they are, can't be written to")
            .with("partition field", &field.name)
            .remedy("partition the table by their day or hour"));
    }
    Ok(())
}

/// The crate writes each partition's values as text, and panics at some times before 1970 with a zone.
fn can_be_split(of: &Type, transform: Transform) -> bool {
    use PrimitiveType as P;
    transform != Transform::Identity
        || !matches!(of, Type::Primitive(P::Timestamptz | P::TimestamptzNs | P::TimestampNs))
}

/// Whether Avro takes the name.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c == '_' || c.is_ascii_alphanumeric();
    name.chars().all(plain) && name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
}
