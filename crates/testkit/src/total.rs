//! `make test`: cargo's tests and the pods, and one summary for both.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::critest;
use crate::error::{Error, call};
use crate::guest::{self, Outcome};
use crate::peers::{Peers, workspace};
use crate::suite::{self, Plan, Report};

/// Sums of cargo's `test result:` lines, or of the pods'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Runs the tests of the workspace, then the pods of `plan`; false when one failed.
/// # Errors
/// What hinders the tests from running; a test that fails is none.
pub fn run(peers: &Peers, plan: &Plan) -> Result<bool, Error> {
    let start = Instant::now();
    let (cargo, cargo_ok) = cargo()?;
    let report = suite::run(peers, plan)?;
    report.print();
    let sum = Sum {
        passed: cargo.passed + report.passed(),
        failed: cargo.failed + report.failed(),
        ignored: cargo.ignored + report.ignored_count(),
    };
    println!(
        "{:<10}{:>8}{:>8}{:>9}",
        "cargo", cargo.passed, cargo.failed, cargo.ignored
    );
    // A test program that crashes or does not compile has no row of its own.
    let ok = cargo_ok && sum.failed == 0;
    print_result(ok, sum, start);
    Ok(ok)
}

/// Runs the pods alone; false when one failed.
/// # Errors
/// As [`run`].
pub fn pods(peers: &Peers, plan: &Plan) -> Result<bool, Error> {
    let start = Instant::now();
    let report = suite::run(peers, plan)?;
    Ok(sum_up(&report, start))
}

/// Runs critest; false when a spec did not end as expected.
/// # Errors
/// As [`run`].
pub fn critest(peers: &Peers, plan: &critest::Plan) -> Result<bool, Error> {
    let start = Instant::now();
    let report = critest::run(peers, plan)?;
    Ok(sum_up(&report, start))
}

/// Runs the tests of the emulated guests; false when one failed.
/// # Errors
/// As [`run`].
pub fn guest(peers: &Peers, args: &guest::SuiteArgs) -> Result<bool, Error> {
    let start = Instant::now();
    let outcomes = guest::run_suite(peers, args)?;
    println!(
        "\n{:<12}{:>8}{:>8}{:>9}",
        "guest", "passed", "failed", "ignored"
    );
    let (mut all, mut ok) = (Sum::default(), true);
    for Outcome {
        name,
        results,
        ok: good,
    } in &outcomes
    {
        let mut sum = Sum::default();
        results.iter().for_each(|line| add(&mut sum, line));
        // What died, or failed without a row, counts as one that failed.
        sum.failed += usize::from(!good && sum.failed == 0);
        println!(
            "{name:<12}{:>8}{:>8}{:>9}",
            sum.passed, sum.failed, sum.ignored
        );
        all.passed += sum.passed;
        all.failed += sum.failed;
        all.ignored += sum.ignored;
        ok &= sum.failed == 0;
    }
    print_result(ok, all, start);
    Ok(ok)
}

fn sum_up(report: &Report, start: Instant) -> bool {
    report.print();
    let sum = Sum {
        passed: report.passed(),
        failed: report.failed(),
        ignored: report.ignored_count(),
    };
    print_result(sum.failed == 0, sum, start);
    sum.failed == 0
}

/// Tells how a test outside of cargo's ended; true when nothing failed.
pub(crate) fn tell(passed: usize, failed: usize, start: Instant) -> bool {
    let sum = Sum {
        passed,
        failed,
        ignored: 0,
    };
    print_result(failed == 0, sum, start);
    failed == 0
}

fn print_result(ok: bool, sum: Sum, start: Instant) {
    let word = if ok { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; \
         finished in {:.2}s",
        sum.passed,
        sum.failed,
        sum.ignored,
        start.elapsed().as_secs_f32(),
    );
}

fn cargo() -> Result<(Sum, bool), Error> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&program);
    command
        .current_dir(workspace())
        .args(["test", "--workspace", "--no-fail-fast"]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Exec {
            program: program.into(),
            source,
        })?;
    let mut sum = Sum::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(call("read(cargo)"))?;
            println!("{line}");
            add(&mut sum, &line);
        }
    }
    Ok((sum, child.wait().map_err(call("wait4"))?.success()))
}

fn add(sum: &mut Sum, line: &str) {
    let Some((_, counts)) = line
        .strip_prefix("test result: ")
        .and_then(|l| l.split_once(". "))
    else {
        return;
    };
    for part in counts.split("; ") {
        let (number, what) = part.split_once(' ').unwrap_or_default();
        let number = number.parse::<usize>().unwrap_or_default();
        match what {
            "passed" => sum.passed += number,
            "failed" => sum.failed += number,
            "ignored" => sum.ignored += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut sum = Sum::default();
        add(
            &mut sum,
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        );
        add(
            &mut sum,
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured",
        );
        add(&mut sum, "test passed_by ... ok");
        assert_eq!(
            sum,
            Sum {
                passed: 5,
                failed: 1,
                ignored: 1
            }
        );
    }
}
