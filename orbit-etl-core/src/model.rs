//! The data models as roles on Arrow schemas.
//!
//! Rows of every model travel as record batches. What a column *means* stands in its field's
//! metadata under [`ROLE`], so that it survives every transform that keeps the column.

use arrow::datatypes::{Field, Schema};

/// The metadata key of a column's role.
pub const ROLE: &str = "orbit.role";

/// What a column means beyond its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Changes: `insert`, `update`, `delete`, `truncate` or `snapshot`, as text.
    Op,
    /// Changes: a value that sorts as the changes happened. Upserting sinks keep the highest.
    Order,
    /// Changes: the row before the change, a struct.
    Before,
    /// Changes: the names of columns that the source left out because they did not change.
    Unchanged,
    /// Graph: a node's or an edge's own id.
    Id,
    /// Graph: the label of a node or an edge.
    Label,
    /// Graph: the id of the node where an edge begins.
    From,
    /// Graph: the id of the node where an edge ends.
    To,
    /// Vector: an embedding, a fixed-size list of floats.
    Vector,
    /// Time series: when a value was measured.
    Time,
    /// Time series: the measured value.
    Value,
    /// Time series: a column that identifies the series.
    Series,
}

impl Role {
    /// The role as it stands in the metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Op => "op",
            Self::Order => "order",
            Self::Before => "before",
            Self::Unchanged => "unchanged",
            Self::Id => "id",
            Self::Label => "label",
            Self::From => "from",
            Self::To => "to",
            Self::Vector => "vector",
            Self::Time => "time",
            Self::Value => "value",
            Self::Series => "series",
        }
    }

    /// The field with this role.
    pub fn mark(self, field: Field) -> Field {
        let mut metadata = field.metadata().clone();
        metadata.insert(ROLE.into(), self.as_str().into());
        field.with_metadata(metadata)
    }

    /// The index of the first column with this role.
    pub fn find(self, schema: &Schema) -> Option<usize> {
        schema.fields().iter().position(|f| f.metadata().get(ROLE).is_some_and(|r| r == self.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::DataType;

    #[test]
    fn a_marked_column_is_found() {
        let op = Role::Op.mark(Field::new("kind", DataType::Utf8, false));
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, false), op]);
        assert_eq!(Role::Op.find(&schema), Some(1));
        assert_eq!(Role::Order.find(&schema), None);
    }
}
