//! `explain`: what a run would do, and what each sink is promised.

use crate::args::FileArgs;
use crate::failure::Failure;
use crate::{load, out};

/// Prints the plan of one pipeline.
pub(crate) async fn explain(args: FileArgs) -> Result<(), Failure> {
    let one = load::one(&args.file, &args.spec, &load::registry())?;
    let explanation = one.pipeline.explain().await.map_err(|e| Failure::of(&one, &e))?;
    out::print(&explanation.to_string())
}
