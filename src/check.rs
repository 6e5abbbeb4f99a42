//! `berm check`: what this host can do.

use std::process::ExitCode;

use berm_sandbox::{Config, Finding, Verdict};
use serde_json::json;

use crate::error::Error;
use crate::table::table;

/// Tries what this host can do for sandboxes
///
/// Every line is a probe, not a version number. `degraded` says what is lost, `MISSING` that Berm
/// does not work without it: the exit code is then 1.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm check
  berm check --json | jq '.[] | select(.verdict != \"ok\")'";

pub(crate) fn main(args: &Args, config: &Config) -> Result<ExitCode, Error> {
    crate::as_root(config)?;
    let all = berm_sandbox::check(config)?;
    if args.json {
        let json = |f: &Finding| json!({"name": f.name, "verdict": word(f), "found": f.found, "lost": f.lost});
        let all: Vec<_> = all.iter().map(json).collect();
        println!("{:#}", json!(all));
    } else {
        let rows: Vec<_> = all.iter().map(row).collect();
        print!("{}", table(["PROBE", "RESULT", "FOUND"], &rows));
        for finding in all.iter().filter(|f| f.verdict != Verdict::Ok) {
            println!("\n{} ({}): {}", finding.name, word(finding), finding.lost);
        }
    }
    let works = all.iter().all(|f| f.verdict != Verdict::Missing);
    Ok(ExitCode::from(u8::from(!works)))
}

fn row(finding: &Finding) -> [String; 3] {
    [
        finding.name.clone(),
        word(finding).to_owned(),
        finding.found.clone(),
    ]
}

fn word(finding: &Finding) -> &'static str {
    match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Degraded => "degraded",
        Verdict::Missing => "MISSING",
    }
}
