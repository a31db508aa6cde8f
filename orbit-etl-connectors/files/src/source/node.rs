//! Columns, nested ones too, that are filled from JSON values.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeListArray, GenericListArray, MapArray, NullBufferBuilder, OffsetSizeTrait, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::error::ArrowError;

use super::column::{Column, column};
use super::number::Rules;
use super::token::{Broken, Json, Token};

/// A column of any type under construction.
pub(crate) struct Node {
    /// From the top: `order.items`.
    path: String,
    data_type: DataType,
    nullable: bool,
    /// Values so far.
    len: usize,
    shape: Shape,
}

enum Shape {
    Scalar(Box<dyn Column>),
    Struct(Struct),
    List(List),
    Map(Map),
}

struct Struct {
    fields: Fields,
    nodes: Vec<Node>,
    index: HashMap<String, usize>,
    nulls: NullBufferBuilder,
}

struct List {
    field: FieldRef,
    item: Box<Node>,
    offsets: Vec<usize>,
    nulls: NullBufferBuilder,
    /// The number of items where that is fixed.
    width: Option<usize>,
}

struct Map {
    entries: FieldRef,
    fields: Fields,
    sorted: bool,
    key: Box<Node>,
    value: Box<Node>,
    offsets: Vec<usize>,
    nulls: NullBufferBuilder,
}

/// What is found while one record is read.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) rules: Rules,
    /// Keys that no column has are refused.
    pub(crate) strict: bool,
    /// What is wrong with the record.
    pub(crate) wrong: Vec<String>,
    scratch: String,
}

impl Findings {
    pub(crate) fn new(rules: Rules, strict: bool) -> Self {
        Self { rules, strict, wrong: Vec::new(), scratch: String::new() }
    }

    fn say(&mut self, message: String) {
        if !self.wrong.contains(&message) {
            self.wrong.push(message);
        }
    }
}

impl Node {
    /// A column, or an error with the type that JSON isn't read into.
    pub(crate) fn new(path: &str, field: &Field, rules: Rules) -> Result<Self, DataType> {
        let shape = match field.data_type() {
            DataType::Struct(fields) => Shape::Struct(Struct::new(path, fields, rules)?),
            DataType::List(item) | DataType::LargeList(item) => {
                Shape::List(List::new(path, item, None, rules)?)
            }
            DataType::FixedSizeList(item, width) => {
                let width = usize::try_from(*width).map_err(|_| field.data_type().clone())?;
                Shape::List(List::new(path, item, Some(width), rules)?)
            }
            DataType::Map(entries, sorted) => Shape::Map(Map::new(path, entries, *sorted, rules)?),
            other => Shape::Scalar(column(other, rules).ok_or_else(|| other.clone())?),
        };
        Ok(Self {
            path: path.into(),
            data_type: field.data_type().clone(),
            nullable: field.is_nullable(),
            len: 0,
            shape,
        })
    }

    /// The columns of a record: like a struct without a name.
    pub(crate) fn root(fields: &Fields, rules: Rules) -> Result<Self, DataType> {
        Self::new("", &Field::new_struct("", fields.clone(), false), rules)
    }

    /// Adds one value, whatever it is; what doesn't fit is told and stands as NULL.
    pub(crate) fn read<'a>(
        &mut self,
        json: &mut Json<'a>,
        token: Token<'a>,
        found: &mut Findings,
    ) -> Result<(), Broken> {
        let before = self.len;
        let result = match (&mut self.shape, token) {
            (_, Token::Null) => {
                self.missing(found);
                Ok(())
            }
            (Shape::Struct(inner), Token::Object) => {
                self.len += 1;
                inner.read(before, json, found)
            }
            (Shape::List(inner), Token::List) => {
                self.len += 1;
                inner.read(&self.path, json, found)
            }
            (Shape::Map(inner), Token::Object) => {
                self.len += 1;
                inner.read(json, found)
            }
            (Shape::Scalar(column), token) => {
                let good = match token {
                    Token::Boolean(value) => column.boolean(value),
                    Token::Number(text) => column.number(text),
                    // The sample would have made it a text column.
                    Token::String(_) if found.rules.inferred && !column.is_text() => false,
                    Token::String(text) => {
                        let mut scratch = std::mem::take(&mut found.scratch);
                        let good = column.text(text.text(&mut scratch));
                        found.scratch = scratch;
                        good
                    }
                    Token::Null | Token::Object | Token::List => false,
                };
                if good {
                    self.len += 1;
                    return Ok(());
                }
                found.say(self.refusal(token, found.rules));
                self.null();
                json.skip(token)
            }
            (_, token) => {
                found.say(format!("column `{}` is not a valid {}", self.path, self.data_type));
                self.null();
                json.skip(token)
            }
        };
        debug_assert_eq!(self.len, before + 1);
        result
    }

    /// Why a scalar refuses a token.
    fn refusal(&self, token: Token<'_>, rules: Rules) -> String {
        let given = Rules { inferred: false, ..rules };
        let fits = rules.inferred
            && column(&self.data_type, given).is_some_and(|mut column| match token {
                Token::Number(text) => column.number(text),
                Token::String(text) => column.text(text.text(&mut String::new())),
                _ => false,
            });
        refusal(&self.path, &self.data_type, fits)
    }

    /// Adds a NULL for a value that isn't there.
    fn missing(&mut self, found: &mut Findings) {
        if !self.nullable {
            found.say(format!("column `{}` is NULL", self.path));
        }
        self.null();
    }

    fn null(&mut self) {
        self.len += 1;
        match &mut self.shape {
            Shape::Scalar(column) => column.null(),
            Shape::Struct(inner) => {
                for node in &mut inner.nodes {
                    node.null();
                }
                inner.nulls.append_null();
            }
            Shape::List(inner) => {
                for _ in 0..inner.width.unwrap_or(0) {
                    inner.item.null();
                }
                inner.offsets.push(inner.item.len);
                inner.nulls.append_null();
            }
            Shape::Map(inner) => {
                inner.offsets.push(inner.key.len);
                inner.nulls.append_null();
            }
        }
    }

    /// The array so far; the column is empty then.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let len = std::mem::take(&mut self.len);
        match &mut self.shape {
            Shape::Scalar(column) => column.finish(),
            Shape::Struct(inner) => {
                let arrays = inner.nodes.iter_mut().map(Self::finish).collect::<Result<Vec<_>, _>>()?;
                let nulls = inner.nulls.finish();
                Ok(Arc::new(StructArray::try_new_with_length(inner.fields.clone(), arrays, nulls, len)?))
            }
            Shape::List(inner) => inner.finish(&self.data_type, len),
            Shape::Map(inner) => inner.finish(),
        }
    }

    /// The arrays of a root.
    pub(crate) fn finish_columns(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.len = 0;
        match &mut self.shape {
            Shape::Struct(inner) => {
                inner.nulls.finish();
                inner.nodes.iter_mut().map(Self::finish).collect()
            }
            _ => Ok(vec![self.finish()?]),
        }
    }
}

/// What is said of a text that a column doesn't take; `fits`: it would if its type had been given.
pub(crate) fn refusal(path: &str, data_type: &DataType, fits: bool) -> String {
    if fits {
        format!("column `{path}` would be altered by the inferred {data_type}; give its type in `schema`")
    } else {
        format!("column `{path}` is not a valid {data_type}")
    }
}

impl Struct {
    fn new(path: &str, fields: &Fields, rules: Rules) -> Result<Self, DataType> {
        let nodes = fields
            .iter()
            .map(|field| {
                let path =
                    if path.is_empty() { field.name().clone() } else { format!("{path}.{}", field.name()) };
                Node::new(&path, field, rules)
            })
            .collect::<Result<_, _>>()?;
        let index = fields.iter().enumerate().map(|(i, f)| (f.name().clone(), i)).collect();
        Ok(Self { fields: fields.clone(), nodes, index, nulls: NullBufferBuilder::new(0) })
    }

    /// Reads an object as the value after `len` others.
    fn read(&mut self, len: usize, json: &mut Json<'_>, found: &mut Findings) -> Result<(), Broken> {
        let result = self.read_keys(len, json, found);
        for node in &mut self.nodes {
            if node.len == len {
                if result.is_ok() { node.missing(found) } else { node.null() }
            }
        }
        self.nulls.append_non_null();
        result
    }

    fn read_keys(&mut self, len: usize, json: &mut Json<'_>, found: &mut Findings) -> Result<(), Broken> {
        let mut next = 0;
        let mut first = true;
        while let Some(key) = json.key(first)? {
            first = false;
            let index = {
                let name = key.text(&mut found.scratch);
                // Objects mostly have their keys in the same order.
                if self.fields.get(next).is_some_and(|f| f.name() == name) {
                    Some(next)
                } else {
                    self.index.get(name).copied()
                }
            };
            let value = json.value()?;
            match index.and_then(|index| self.nodes.get_mut(index)) {
                Some(node) if node.len == len => {
                    next = index.unwrap_or(0) + 1;
                    node.read(json, value, found)?;
                }
                Some(node) => {
                    found.say(format!("column `{}` is there twice", node.path));
                    json.skip(value)?;
                }
                None => {
                    if found.strict {
                        found.say("the object has a key that is not in the schema".into());
                    }
                    json.skip(value)?;
                }
            }
        }
        Ok(())
    }
}

impl List {
    fn new(path: &str, field: &FieldRef, width: Option<usize>, rules: Rules) -> Result<Self, DataType> {
        let item = Box::new(Node::new(path, field, rules)?);
        Ok(Self { field: Arc::clone(field), item, offsets: vec![0], nulls: NullBufferBuilder::new(0), width })
    }

    fn read(&mut self, path: &str, json: &mut Json<'_>, found: &mut Findings) -> Result<(), Broken> {
        let start = self.item.len;
        let result = self.read_items(json, found);
        if let Some(width) = self.width {
            if result.is_ok() && self.item.len != start + width {
                found.say(format!("column `{path}` doesn't have {width} items"));
            }
            while self.item.len < start + width {
                self.item.null();
            }
        }
        self.offsets.push(self.item.len);
        self.nulls.append_non_null();
        result
    }

    fn read_items(&mut self, json: &mut Json<'_>, found: &mut Findings) -> Result<(), Broken> {
        let mut first = true;
        while json.item(first)? {
            first = false;
            let value = json.value()?;
            self.item.read(json, value, found)?;
        }
        Ok(())
    }

    fn finish(&mut self, data_type: &DataType, len: usize) -> Result<ArrayRef, ArrowError> {
        let (field, nulls) = (Arc::clone(&self.field), self.nulls.finish());
        let items = self.item.finish()?;
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        Ok(match data_type {
            DataType::FixedSizeList(_, width) => {
                Arc::new(FixedSizeListArray::try_new_with_length(field, *width, items, nulls, len)?)
            }
            DataType::LargeList(_) => {
                Arc::new(GenericListArray::<i64>::try_new(field, buffer(&offsets)?, items, nulls)?)
            }
            _ => Arc::new(GenericListArray::<i32>::try_new(field, buffer(&offsets)?, items, nulls)?),
        })
    }
}

impl Map {
    fn new(path: &str, entries: &FieldRef, sorted: bool, rules: Rules) -> Result<Self, DataType> {
        let whole = || DataType::Map(Arc::clone(entries), sorted);
        let DataType::Struct(fields) = entries.data_type() else { return Err(whole()) };
        let [key, value] = fields.as_ref() else { return Err(whole()) };
        // Nothing here sorts entries.
        if sorted || key.data_type().is_nested() {
            return Err(whole());
        }
        Ok(Self {
            entries: Arc::clone(entries),
            fields: fields.clone(),
            sorted,
            key: Box::new(Node::new(path, key, rules)?),
            value: Box::new(Node::new(path, value, rules)?),
            offsets: vec![0],
            nulls: NullBufferBuilder::new(0),
        })
    }

    fn read(&mut self, json: &mut Json<'_>, found: &mut Findings) -> Result<(), Broken> {
        let result = self.read_entries(json, found);
        while self.value.len < self.key.len {
            self.value.null();
        }
        self.offsets.push(self.key.len);
        self.nulls.append_non_null();
        result
    }

    fn read_entries(&mut self, json: &mut Json<'_>, found: &mut Findings) -> Result<(), Broken> {
        let mut first = true;
        while let Some(key) = json.key(first)? {
            first = false;
            self.key.read(json, Token::String(key), found)?;
            let value = json.value()?;
            self.value.read(json, value, found)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let len = self.key.len;
        let arrays = vec![self.key.finish()?, self.value.finish()?];
        let entries = StructArray::try_new_with_length(self.fields.clone(), arrays, None, len)?;
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let nulls = self.nulls.finish();
        let field = Arc::clone(&self.entries);
        Ok(Arc::new(MapArray::try_new(field, buffer(&offsets)?, entries, nulls, self.sorted)?))
    }
}

fn buffer<O: OffsetSizeTrait>(offsets: &[usize]) -> Result<OffsetBuffer<O>, ArrowError> {
    let offsets = offsets.iter().map(|at| O::from_usize(*at)).collect::<Option<Vec<O>>>();
    let offsets = offsets.ok_or_else(|| ArrowError::ComputeError("too many items in one batch".into()))?;
    Ok(OffsetBuffer::new(offsets.into()))
}
