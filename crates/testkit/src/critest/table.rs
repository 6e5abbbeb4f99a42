//! The README's table of critest: counts of this run, and the known differences.

use super::Ran;
use super::differences::Difference;
use crate::readme::Table;
use crate::suite::Runtime;

pub(super) fn of(runtimes: &[Runtime], ran: &[Ran], known: &[Difference]) -> Table {
    let mut text =
        String::from("| Runtime | Passed | Differs | Skipped by itself |\n|---|---|---|---|\n");
    for (runtime, Ran { specs, .. }) in runtimes.iter().zip(ran) {
        let count = |result| specs.iter().filter(|spec| spec.result == result).count();
        text += &format!(
            "| {} | {} | {} | {} |\n",
            runtime.handler(),
            count(Some(true)),
            count(Some(false)),
            count(None),
        );
    }
    text += "\n| What differs | On | Why |\n|---|---|---|\n";
    for Difference { spec, runtime, why } in known {
        text += &format!("| {spec} | {runtime} | {why} |\n");
    }
    Table {
        name: "critest",
        text,
    }
}
