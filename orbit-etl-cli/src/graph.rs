//! `graph`: a pipeline as a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use orbit_etl::pipeline::NodeInfo;

use crate::args::{GraphArgs, GraphFormat};
use crate::failure::Failure;
use crate::{load, out};

/// Sizes of the picture, in pixels.
const WIDTH: usize = 220;
const HEIGHT: usize = 52;
const GAP_ACROSS: usize = 80;
const GAP_DOWN: usize = 28;
const MARGIN: usize = 20;
/// How many characters of a text fit into a box.
const SHOWN: usize = 32;

/// Prints the graph of one pipeline.
pub(crate) fn graph(args: GraphArgs) -> Result<(), Failure> {
    let one = load::one(&args.file.file, &args.file.spec, &load::registry())?;
    let nodes = one.pipeline.nodes();
    out::print(&match args.format {
        GraphFormat::Mermaid => mermaid(&nodes),
        GraphFormat::Dot => dot(one.pipeline.name(), &nodes),
        GraphFormat::Svg => svg(&nodes),
    })
}

/// (from, stream, to)
fn edges(nodes: &[NodeInfo]) -> impl Iterator<Item = (&str, Option<&str>, &str)> {
    nodes.iter().flat_map(|node| {
        node.inputs.iter().map(|input| match input.split_once('.') {
            Some((from, stream)) => (from, Some(stream), node.name.as_str()),
            None => (input.as_str(), None, node.name.as_str()),
        })
    })
}

fn mermaid(nodes: &[NodeInfo]) -> String {
    let mut text = "flowchart LR\n".to_owned();
    // Names may be words of Mermaid's own, such as `end`.
    let id = |name: &str| format!("n_{}", name.replace('-', "__"));
    for node in nodes {
        let label = format!("{}<br/>{}", node.name, cut(&what(node)).replace('"', "#quot;"));
        let (open, close) = match node.role {
            "source" => ("([", "])"),
            "transform" => ("[", "]"),
            _ => ("[(", ")]"),
        };
        let _ = writeln!(text, "    {}{open}\"{label}\"{close}", id(&node.name));
    }
    for (from, stream, to) in edges(nodes) {
        let arrow = stream.map_or_else(|| "-->".to_owned(), |stream| format!("-- {stream} -->"));
        let _ = writeln!(text, "    {} {arrow} {}", id(from), id(to));
    }
    text
}

fn dot(name: &str, nodes: &[NodeInfo]) -> String {
    let mut text = format!("digraph {name:?} {{\n    rankdir=LR;\n    node [fontname=\"sans-serif\"];\n");
    for node in nodes {
        let shape = match node.role {
            "source" => "oval",
            "transform" => "box",
            _ => "cylinder",
        };
        let label = format!("{}\n{}", node.name, cut(&what(node)));
        let _ = writeln!(text, "    {:?} [shape={shape}, label={label:?}];", node.name);
    }
    for (from, stream, to) in edges(nodes) {
        let label = stream.map_or_else(String::new, |stream| format!(" [label={stream:?}]"));
        let _ = writeln!(text, "    {from:?} -> {to:?}{label};");
    }
    text.push_str("}\n");
    text
}

/// Columns from left to right: each node stands right of all that it reads.
fn svg(nodes: &[NodeInfo]) -> String {
    let mut columns: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rows: Vec<usize> = Vec::new();
    let mut places: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    // Nodes come after their inputs.
    for node in nodes {
        let before = node.inputs.iter().filter_map(|i| columns.get(i.split('.').next().unwrap_or(i)));
        let column = before.max().map_or(0, |column| column + 1);
        columns.insert(&node.name, column);
        rows.resize(rows.len().max(column + 1), 0);
        let x = MARGIN + column * (WIDTH + GAP_ACROSS);
        let y = MARGIN + rows[column] * (HEIGHT + GAP_DOWN);
        rows[column] += 1;
        places.insert(&node.name, (x, y));
    }
    let width = 2 * MARGIN + rows.len() * (WIDTH + GAP_ACROSS) - GAP_ACROSS.min(rows.len() * GAP_ACROSS);
    let height = 2 * MARGIN + rows.iter().max().unwrap_or(&0) * (HEIGHT + GAP_DOWN);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n"
    );
    for (from, stream, to) in edges(nodes) {
        let (Some((x1, y1)), Some((x2, y2))) = (places.get(from), places.get(to)) else { continue };
        let (x1, y1, y2) = (x1 + WIDTH, y1 + HEIGHT / 2, y2 + HEIGHT / 2);
        let bend = GAP_ACROSS / 2;
        let _ = writeln!(
            text,
            "  <path d=\"M{x1},{y1} C{},{y1} {},{y2} {x2},{y2}\" fill=\"none\" stroke=\"#888\"/>",
            x1 + bend,
            x2 - bend
        );
        if let Some(stream) = stream {
            let _ = writeln!(
                text,
                "  <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\" font-size=\"11\">{}</text>",
                (x1 + x2) / 2,
                (y1 + y2) / 2 - 4,
                escaped(stream)
            );
        }
    }
    for node in nodes {
        let Some((x, y)) = places.get(node.name.as_str()) else { continue };
        let fill = match node.role {
            "source" => "#e3f2e1",
            "transform" => "#e8ecf7",
            _ => "#f7ecd9",
        };
        let _ = writeln!(
            text,
            "  <rect x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"{fill}\" \
             stroke=\"#888\"/>\n  <text x=\"{tx}\" y=\"{name_y}\" font-weight=\"bold\">{name}</text>\n  \
             <text x=\"{tx}\" y=\"{what_y}\" font-size=\"11\">{what}</text>",
            tx = x + 10,
            name_y = y + 21,
            what_y = y + 40,
            name = escaped(&cut(&node.name)),
            what = escaped(&cut(&what(node))),
        );
    }
    text.push_str("</svg>\n");
    text
}

fn what(node: &NodeInfo) -> String {
    let summary = node.info.summary.split_whitespace().collect::<Vec<_>>().join(" ");
    let tag = &node.info.type_tag;
    if summary.starts_with(tag.as_str()) { summary } else { format!("{tag} {summary}") }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
