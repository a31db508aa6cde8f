//! `validate`: finds mistakes without a run.

use std::fmt::Write as _;

use crate::args::ValidateArgs;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::out;

/// Checks every spec; what is wrong anywhere is told together.
pub(crate) async fn validate(args: ValidateArgs) -> Result<(), Failure> {
    let registry = load::registry();
    let loaded = load::all(&args.files, &args.spec, &registry)?;
    let mut failure: Option<Failure> = None;
    let mut told = String::new();
    for one in &loaded {
        match check(one, args.connect, &mut told).await {
            Ok(()) => {}
            Err(other) => {
                failure = Some(match failure {
                    Some(failure) => failure.and(other),
                    None => other,
                });
            }
        }
    }
    out::print(&told)?;
    failure.map_or(Ok(()), Err)
}

async fn check(one: &Loaded, connect: bool, told: &mut String) -> Result<(), Failure> {
    let pipeline = &one.pipeline;
    let nodes = pipeline.nodes();
    if connect {
        let mut failure: Option<Failure> = None;
        for (node, answer) in pipeline.health().await.map_err(|e| Failure::of(one, &e))? {
            match answer {
                Ok(health) => {
                    let millis = health.latency.as_millis();
                    let _ = writeln!(
                        told,
                        "{}: {node}: reached in {millis} ms: {}",
                        pipeline.name(),
                        health.detail
                    );
                }
                Err(error) => {
                    let other = Failure::of(one, &error);
                    failure = Some(match failure {
                        Some(failure) => failure.and(other),
                        None => other,
                    });
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
    }
    let far: Vec<_> = nodes.iter().filter(|n| n.role == "source" && !n.info.local).collect();
    if connect || far.is_empty() {
        pipeline.explain().await.map_err(|e| Failure::of(one, &e))?;
        let _ = writeln!(told, "{}: {} nodes, no mistake found", pipeline.name(), nodes.len());
        return Ok(());
    }
    for node in far {
        let _ = writeln!(
            told,
            "{}: {} ({}): unchecked, as it isn't on this machine; --connect asks it",
            pipeline.name(),
            node.name,
            node.info.summary
        );
    }
    let _ = writeln!(
        told,
        "{}: {} nodes, no mistake found in what is written; columns and types were not checked",
        pipeline.name(),
        nodes.len()
    );
    Ok(())
}
