//! What a step promised against what came.

use serde_json::Value;

use super::data::Step;

/// What a step gave.
#[derive(Debug, Default)]
pub(super) struct Got {
    /// Exit code of the command or the container.
    pub(super) code: i32,
    /// CRI's reason of a container's end.
    pub(super) reason: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) json: Value,
    /// The message of a CRI call that failed.
    pub(super) failure: Option<String>,
}

/// Every promise of `step` that `got` breaks, in words; `fill` puts values in for `${...}`.
pub(super) fn differences(step: &Step, got: &Got, fill: impl Fn(&str) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    let refusal_wanted = !step.refused.is_empty() || step.kind.is_some();
    match &got.failure {
        Some(message) if refusal_wanted => refusal(step, message, &mut wrong),
        Some(message) => wrong.push(format!("failed: {message}")),
        None if refusal_wanted => wrong.push(format!("was not refused ({:?})", step.refused)),
        None => results(step, got, fill, &mut wrong),
    }
    wrong
}

fn refusal(step: &Step, message: &str, wrong: &mut Vec<String>) {
    let mut wanted: Vec<String> = step.refused.clone();
    wanted.extend(step.kind.as_ref().map(|kind| format!("code = {kind} ")));
    let missing = wanted.iter().filter(|part| !message.contains(*part));
    wrong.extend(missing.map(|part| format!("refusal lacks {part:?}: {message}")));
}

fn results(step: &Step, got: &Got, fill: impl Fn(&str) -> String, wrong: &mut Vec<String>) {
    let code = step.code.unwrap_or_default();
    if got.code != code {
        wrong.push(format!(
            "code is {}, not {code}; stderr: {}",
            got.code,
            got.stderr.trim()
        ));
    }
    if step
        .reason
        .as_ref()
        .is_some_and(|reason| *reason != got.reason)
    {
        wrong.push(format!("reason is {:?}, not {:?}", got.reason, step.reason));
    }
    if step
        .stdout
        .as_ref()
        .is_some_and(|text| fill(text) != got.stdout)
    {
        wrong.push(format!("stdout is {:?}, not {:?}", got.stdout, step.stdout));
    }
    for part in step
        .stdout_has
        .iter()
        .filter(|part| !got.stdout.contains(&fill(part)))
    {
        wrong.push(format!("stdout lacks {part:?}: {:?}", got.stdout));
    }
    for part in step
        .stdout_lacks
        .iter()
        .filter(|part| got.stdout.contains(&fill(part)))
    {
        wrong.push(format!("stdout has {part:?}: {:?}", got.stdout));
    }
    for part in step
        .stderr_has
        .iter()
        .filter(|part| !got.stderr.contains(&fill(part)))
    {
        wrong.push(format!("stderr lacks {part:?}: {:?}", got.stderr));
    }
    numbers(step, got, wrong);
}

fn numbers(step: &Step, got: &Got, wrong: &mut Vec<String>) {
    let at = |pointer: &String| got.json.pointer(pointer).cloned().unwrap_or(Value::Null);
    for (pointer, want) in &step.json {
        let is = at(pointer);
        if is != *want {
            wrong.push(format!("{pointer} is {is}, not {want}"));
        }
    }
    for (pointer, least) in &step.at_least {
        if number(&at(pointer)).is_none_or(|is| is < *least) {
            wrong.push(format!("{pointer} is {}, less than {least}", at(pointer)));
        }
    }
    for (pointer, most) in &step.at_most {
        if number(&at(pointer)).is_none_or(|is| is > *most) {
            wrong.push(format!("{pointer} is {}, more than {most}", at(pointer)));
        }
    }
}

/// CRI's JSON writes 64-bit numbers as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_did_not_come_and_one_that_was_not_wanted_are_both_wrong() {
        let refused = Step {
            refused: vec!["hostNetwork".into()],
            ..Step::default()
        };
        let failed = Got {
            failure: Some("code = Unknown desc = no".into()),
            ..Got::default()
        };
        assert_eq!(
            differences(&refused, &Got::default(), str::to_owned).len(),
            1
        );
        assert_eq!(differences(&refused, &failed, str::to_owned).len(), 1);
        assert_eq!(
            differences(&Step::default(), &failed, str::to_owned).len(),
            1
        );
        assert!(differences(&Step::default(), &Got::default(), str::to_owned).is_empty());
    }

    #[test]
    fn numbers_written_as_text_are_numbers() {
        let step = Step {
            at_least: [("/a".into(), 5)].into(),
            ..Step::default()
        };
        let got = |value| Got {
            json: serde_json::json!({ "a": value }),
            ..Got::default()
        };
        assert!(differences(&step, &got("7"), str::to_owned).is_empty());
        assert_eq!(differences(&step, &got("3"), str::to_owned).len(), 1);
    }
}
