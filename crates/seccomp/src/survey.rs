//! What a profile means for the system calls of one architecture, for people.
use serde::{Deserialize, Serialize};

use crate::profile::{Action, Profile};
use crate::rules::{Rules, Verdict};
use crate::syscalls::named_on;
use crate::{Arch, Error, compile, fingerprint};

/// A profile, looked at from outside: of every system call that the native architecture has,
/// whether it passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Survey {
    /// Name of the compiled program; see [`fingerprint`].
    pub fingerprint: u64,
    /// Its length in instructions.
    pub instructions: usize,
    /// Calls that pass, whatever their arguments.
    pub allowed: usize,
    /// Calls of which some pass, by name.
    pub conditional: Vec<String>,
    /// Calls that never pass, by name.
    pub forbidden: Vec<String>,
}

/// Surveys `profile` for a kernel of architecture `native`.
/// # Errors
/// Those of [`compile`].
pub fn survey(profile: &Profile, native: Arch) -> Result<Survey, Error> {
    let program = compile(profile, native)?;
    let rules = Rules::new(profile, &[native])?;
    let mut survey = Survey {
        fingerprint: fingerprint(&program),
        instructions: program.len(),
        allowed: 0,
        conditional: Vec::new(),
        forbidden: Vec::new(),
    };
    let Some(listed) = rules.listed.first() else {
        return Ok(survey);
    };
    let verdicts = rules.verdicts(listed)?;
    for (name, number) in named_on(native) {
        let verdict = verdicts.binary_search_by_key(&number, |(number, _)| *number);
        let pass = match verdict.map(|at| &verdicts[at].1) {
            Ok(Verdict::Always(action)) => Some(passes(*action)),
            Ok(Verdict::First(clauses)) => {
                let mut all = clauses.iter().map(|clause| passes(clause.action));
                let default = passes(profile.default);
                all.all(|one| one == default).then_some(default)
            }
            Err(_) if listed.last.is_some_and(|last| number > last) => Some(false),
            Err(_) => Some(passes(profile.default)),
        };
        match pass {
            Some(true) => survey.allowed += 1,
            Some(false) => survey.forbidden.push(name.to_owned()),
            None => survey.conditional.push(name.to_owned()),
        }
    }
    Ok(survey)
}

/// A tracer or a supervisor may let the call pass: that is no "never".
const fn passes(action: Action) -> bool {
    matches!(
        action,
        Action::Allow | Action::Log | Action::Trace(_) | Action::Notify
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ArgCmp, Op, Rule};

    fn rule(names: &[&str], action: Action, args: Vec<ArgCmp>) -> Rule {
        Rule {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            action,
            args,
        }
    }

    #[test]
    fn every_call_of_the_architecture_is_allowed_conditional_or_forbidden() {
        let zero = ArgCmp {
            index: 0,
            op: Op::Eq,
            value: 0,
            value_two: 0,
        };
        let profile = Profile {
            default: Action::Errno(1),
            architectures: Vec::new(),
            rules: vec![
                rule(&["read", "write"], Action::Allow, Vec::new()),
                rule(&["personality"], Action::Allow, vec![zero]),
                rule(&["mount"], Action::Errno(2), vec![zero]),
                rule(&["mseal"], Action::KillProcess, Vec::new()),
            ],
            flags: crate::Flags::default(),
        };
        let survey = survey(&profile, Arch::X86_64).unwrap();
        assert_eq!(survey.allowed, 2);
        assert_eq!(survey.conditional, ["personality"]);
        for name in ["mount", "mseal", "unshare", "setxattrat"] {
            assert!(survey.forbidden.iter().any(|f| f == name), "{name}");
        }
        let all = named_on(Arch::X86_64).count();
        assert_eq!(survey.allowed + 1 + survey.forbidden.len(), all);
    }

    #[test]
    fn a_profile_that_forbids_little_lists_only_that() {
        let profile = Profile {
            default: Action::Allow,
            architectures: Vec::new(),
            rules: vec![rule(&["keyctl"], Action::Errno(1), Vec::new())],
            flags: crate::Flags::default(),
        };
        let survey = survey(&profile, Arch::X86_64).unwrap();
        assert_eq!(
            (survey.forbidden, survey.conditional),
            (vec!["keyctl".to_owned()], vec![])
        );
    }
}
