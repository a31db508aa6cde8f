//! What a query says of where its columns come from.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use orbit_etl_core::{ColumnOrigin, StreamInfo, Transform};
use orbit_etl_transforms::Sql;

use crate::given::{batch, cx, stream};

fn input(name: &str, columns: [&str; 3]) -> StreamInfo {
    let numbers = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    stream(name, &batch(columns.map(|column| (column, numbers())).into()))
}

/// `column <- input.column:usage …; rows <- …`
async fn told(query: &str, inputs: &[StreamInfo]) -> Option<String> {
    let (sql, cx) = (Sql::new(query), cx());
    sql.outputs(&cx, inputs).await.unwrap();
    let lineage = sql.columns(&cx, inputs).await.unwrap()?;
    let of = |from: &[ColumnOrigin]| {
        let from = from.iter().map(|o| format!(" {}.{}:{:?}", inputs[o.input].name, o.column, o.usage));
        from.collect::<String>()
    };
    let mut parts: Vec<String> =
        lineage.columns.iter().map(|c| format!("{} <-{}", c.column, of(&c.from))).collect();
    parts.push(format!("rows <-{}", of(&lineage.rows)));
    Some(parts.join("; "))
}

#[tokio::test]
async fn every_column_knows_its_origins() {
    let inputs = [input("t", ["a", "b", "c"]), input("u", ["a", "x", "y"])];
    for (query, expected) in [
        (
            "SELECT a, b + c AS s, 1 AS one FROM t WHERE c > 1",
            "a <- t.a:Same; s <- t.b:Computed t.c:Computed; one <-; rows <- t.c:Filter",
        ),
        ("SELECT q.z AS w FROM (SELECT a * 2 AS z FROM t) q", "w <- t.a:Computed; rows <-"),
        (
            "SELECT b, count(*) AS n, max(c) + 1 AS m FROM t GROUP BY b",
            "b <- t.b:Same; n <-; m <- t.c:Aggregated; rows <- t.b:Group",
        ),
        ("SELECT a FROM t ORDER BY b LIMIT 3", "a <- t.a:Same; rows <- t.b:Sort"),
        (
            "SELECT a, sum(b) OVER (PARTITION BY c) AS s FROM t",
            "a <- t.a:Same; s <- t.b:Computed t.c:Window; rows <-",
        ),
    ] {
        assert_eq!(told(query, &inputs[..1]).await.as_deref(), Some(expected), "{query}");
    }
    for (query, expected) in [
        (
            "SELECT t.b, u.x FROM t LEFT JOIN u ON t.a = u.a AND u.y > t.c",
            "b <- t.b:Same; x <- u.x:Same; rows <- t.a:Join t.c:Join u.a:Join u.y:Join",
        ),
        ("SELECT b AS v FROM t UNION ALL SELECT x FROM u", "v <- t.b:Same u.x:Same; rows <-"),
        (
            "SELECT b FROM t WHERE a IN (SELECT a FROM u WHERE x > 1)",
            "b <- t.b:Same; rows <- t.a:Join u.a:Join u.x:Filter",
        ),
    ] {
        assert_eq!(told(query, &inputs).await.as_deref(), Some(expected), "{query}");
    }
}

#[tokio::test]
async fn what_is_not_known_is_not_made_up() {
    let query = "SELECT a, b, sum(c) AS s FROM t GROUP BY GROUPING SETS ((a), (b))";
    assert_eq!(told(query, &[input("t", ["a", "b", "c"])]).await, None);
}
