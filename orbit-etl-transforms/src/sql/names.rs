//! Names in a query: which table or column is meant.
//!
//! DataFusion is told to take names as they are written. Before that, an unquoted name that is none
//! of the known ones gets the letters of the only known one that differs in case alone, and a
//! dotted stream name becomes one word.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
    Statement, TableAlias, TableFactor, Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Location;
use orbit_etl_core::{Error, Result, StreamInfo};

/// The table that a single input has besides its own name.
pub(super) const INPUT: &str = "input";

/// The inputs by table name.
pub(super) fn tables(inputs: &[StreamInfo]) -> Result<Vec<(String, usize)>> {
    let mut tables: Vec<(String, usize)> = Vec::with_capacity(inputs.len() + 1);
    for (i, input) in inputs.iter().enumerate() {
        if tables.iter().any(|(name, _)| *name == input.name) {
            return Err(Error::config("two inputs of the sql transform have the same name")
                .with("input", &input.name)
                .remedy("give the nodes that they come from different names"));
        }
        tables.push((input.name.clone(), i));
    }
    if inputs.len() == 1 && inputs[0].name != INPUT {
        tables.push((INPUT.into(), 0));
    }
    Ok(tables)
}

/// Settles the names of a query; see the module's text.
pub(super) fn settle(statement: &mut Statement, inputs: &[StreamInfo], tables: &[(String, usize)]) {
    let mut aliases = Aliases::default();
    let _ = VisitMut::visit(statement, &mut aliases);
    let columns = inputs.iter().flat_map(|i| i.schema.fields().iter().map(|f| f.name().clone()));
    let mut settler = Settler {
        tables: Known::new(tables.iter().map(|(name, _)| name.clone()).chain(aliases.tables)),
        columns: Known::new(columns.chain(aliases.columns)),
        dotted: tables.iter().map(|(name, _)| name.clone()).filter(|n| n.contains('.')).collect(),
    };
    let _ = VisitMut::visit(statement, &mut settler);
}

/// Whether the query makes several rows of one; what can't be parsed doesn't.
pub(super) fn unnests(query: &str) -> bool {
    struct Found;
    impl Visitor for Found {
        type Break = ();

        fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
            match factor {
                TableFactor::UNNEST { .. } => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(f) if f.name.to_string().eq_ignore_ascii_case("unnest") => {
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    let parsed = Parser::parse_sql(&GenericDialect {}, query);
    parsed.is_ok_and(|statements| Visit::visit(&statements, &mut Found).is_break())
}

/// The line and column at which a table of that name is read.
pub(super) fn place_of_table(statement: &Statement, table: &str) -> Option<(u64, u64)> {
    struct Search<'a>(&'a str);
    impl Visitor for Search<'_> {
        type Break = Location;

        fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<Location> {
            let words = name.0.iter().map(|p| p.as_ident().map_or("", |i| i.value.as_str()));
            if words.collect::<Vec<_>>().join(".") == self.0
                && let Some(first) = name.0.first().and_then(ObjectNamePart::as_ident)
            {
                return ControlFlow::Break(first.span.start);
            }
            ControlFlow::Continue(())
        }
    }
    let found = Visit::visit(statement, &mut Search(table)).break_value()?;
    (found.line > 0).then_some((found.line, found.column))
}

/// Names with a way to find them whatever their case.
struct Known {
    exact: HashSet<String>,
    /// `None` where several differ in case alone.
    folded: HashMap<String, Option<String>>,
}

impl Known {
    fn new(names: impl Iterator<Item = String>) -> Self {
        let mut known = Self { exact: HashSet::new(), folded: HashMap::new() };
        for name in names {
            if known.exact.insert(name.clone()) {
                let key = name.to_lowercase();
                let one = if known.folded.contains_key(&key) { None } else { Some(name) };
                known.folded.insert(key, one);
            }
        }
        known
    }

    fn settle(&self, ident: &mut Ident) {
        if ident.quote_style.is_none()
            && !self.exact.contains(&ident.value)
            && let Some(Some(name)) = self.folded.get(&ident.value.to_lowercase())
        {
            ident.value.clone_from(name);
        }
    }
}

/// The names that the query itself gives.
#[derive(Default)]
struct Aliases {
    tables: Vec<String>,
    columns: Vec<String>,
}

impl Aliases {
    fn table(&mut self, alias: &TableAlias) {
        self.tables.push(alias.name.value.clone());
        self.columns.extend(alias.columns.iter().map(|c| c.name.value.clone()));
    }
}

impl VisitorMut for Aliases {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        for cte in query.with.iter().flat_map(|w| &w.cte_tables) {
            self.table(&cte.alias);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &select.projection {
            if let SelectItem::ExprWithAlias { alias, .. } = item {
                self.columns.push(alias.value.clone());
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { alias: Some(alias), .. }
        | TableFactor::Derived { alias: Some(alias), .. }
        | TableFactor::UNNEST { alias: Some(alias), .. }
        | TableFactor::TableFunction { alias: Some(alias), .. }
        | TableFactor::NestedJoin { alias: Some(alias), .. } = factor
        {
            self.table(alias);
        }
        ControlFlow::Continue(())
    }
}

struct Settler {
    tables: Known,
    columns: Known,
    /// Tables whose names hold a dot.
    dotted: Vec<String>,
}

impl Settler {
    /// `cdc.orders` as one word, where there is such a table.
    fn join<'a>(&self, parts: impl Iterator<Item = &'a Ident>) -> Option<Ident> {
        let joined = parts.map(|p| p.value.as_str()).collect::<Vec<_>>().join(".");
        self.dotted.contains(&joined).then(|| Ident::with_quote('"', joined))
    }

    fn relation(&self, name: &mut ObjectName) {
        let parts: Option<Vec<&Ident>> = name.0.iter().map(ObjectNamePart::as_ident).collect();
        let Some(parts) = parts else { return };
        if let Some(whole) = self.join(parts.into_iter()) {
            *name = ObjectName(vec![ObjectNamePart::Identifier(whole)]);
        } else if let [ObjectNamePart::Identifier(one)] = name.0.as_mut_slice() {
            self.tables.settle(one);
        }
    }
}

impl VisitorMut for Settler {
    type Break = ();

    fn pre_visit_relation(&mut self, name: &mut ObjectName) -> ControlFlow<()> {
        self.relation(name);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) = item
            {
                self.relation(name);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(column) => self.columns.settle(column),
            Expr::CompoundIdentifier(parts) => {
                for table in (2..parts.len()).rev() {
                    if let Some(whole) = self.join(parts[..table].iter()) {
                        parts.splice(..table, [whole]);
                        break;
                    }
                }
                if let [first, second, ..] = parts.as_mut_slice() {
                    // The first word is a table, or else a column from which the others lead inwards.
                    if !self.columns.exact.contains(&first.value) {
                        self.tables.settle(first);
                    }
                    if self.tables.exact.contains(&first.value) {
                        self.columns.settle(second);
                    } else {
                        self.columns.settle(first);
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
