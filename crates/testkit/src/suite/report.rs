//! The suite's words: a line for each pod as it ends, the failures, a table, and cargo's summary.

use std::time::Duration;

use super::Runtime;

/// What became of each pod on each runtime.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    runtime: Runtime,
    pod: String,
    time: Duration,
    /// `None`: this pod makes no promise for this runtime.
    result: Option<Result<(), Vec<String>>>,
}

impl Report {
    pub(crate) fn row(
        &mut self,
        runtime: Runtime,
        pod: &str,
        time: Duration,
        result: Result<(), Vec<String>>,
    ) {
        let word = if result.is_ok() { "ok" } else { "FAILED" };
        println!(
            "test {}::{pod} ... {word} ({:.2}s)",
            runtime.handler(),
            time.as_secs_f32()
        );
        // At once and at the end again: a run that is ended by its deadline has no end.
        for line in result.as_ref().err().into_iter().flatten() {
            println!("    {}", line.replace('\n', "\n    "));
        }
        self.rows.push(Row {
            runtime,
            pod: pod.to_owned(),
            time,
            result: Some(result),
        });
    }

    pub(crate) fn ignored(&mut self, runtime: Runtime, pod: &str, why: &str) {
        println!("test {}::{pod} ... ignored, {why}", runtime.handler());
        self.rows.push(Row {
            runtime,
            pod: pod.to_owned(),
            time: Duration::ZERO,
            result: None,
        });
    }

    /// How many pods behaved.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| matches!(row.result, Some(Ok(()))))
            .count()
    }

    /// How many did not.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| matches!(row.result, Some(Err(_))))
            .count()
    }

    /// How many make no promise for their runtime.
    #[must_use]
    pub fn ignored_count(&self) -> usize {
        self.rows.iter().filter(|row| row.result.is_none()).count()
    }

    /// Prints the failures and the table.
    pub fn print(&self) {
        self.failures();
        let mut runtimes: Vec<Runtime> = self.rows.iter().map(|row| row.runtime).collect();
        runtimes.sort();
        runtimes.dedup();
        println!(
            "\n{:<10}{:>8}{:>8}{:>9}{:>13}{:>10}",
            "runtime", "passed", "failed", "ignored", "median pod", "slowest"
        );
        for runtime in runtimes {
            self.line(runtime);
        }
    }

    fn failures(&self) {
        for row in &self.rows {
            if let Some(Err(wrong)) = &row.result {
                println!(
                    "\n---- {}::{} ----\n{}",
                    row.runtime.handler(),
                    row.pod,
                    wrong.join("\n")
                );
            }
        }
    }

    fn line(&self, runtime: Runtime) {
        let rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.runtime == runtime)
            .collect();
        let count = |wanted: fn(&Row) -> bool| rows.iter().filter(|row| wanted(row)).count();
        let passed = count(|row| matches!(row.result, Some(Ok(()))));
        let failed = count(|row| matches!(row.result, Some(Err(_))));
        let mut times: Vec<Duration> = rows
            .iter()
            .map(|row| row.time)
            .filter(|time| !time.is_zero())
            .collect();
        times.sort();
        let (median, slowest) = (times.get(times.len() / 2), times.last());
        let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f32);
        println!(
            "{:<10}{passed:>8}{failed:>8}{:>9}{:>12.2}s{:>9.2}s",
            runtime.handler(),
            rows.len() - passed - failed,
            seconds(median),
            seconds(slowest),
        );
    }
}
