//! Plans an exec.

use oci_spec::runtime::Process;

use crate::caps::Powers;
use crate::container::{ExecBase, ExecPlan};
use crate::decode::decode;
use crate::process::Workload;
use crate::refusal::Error;
use crate::step::Step;

/// Plans an exec of `process_json`, an OCI `process` object. `terminal` is the request's word,
/// which wins over `process.terminal`.
/// # Errors
/// As [`crate::container`].
pub fn exec(process_json: &[u8], terminal: bool, base: &ExecBase) -> Result<ExecPlan, Error> {
    let process: Process = decode("process", "process", process_json)?;
    let powers = Powers {
        userns: !base.ids.uids.0.is_empty(),
        owns_netns: base.owns_netns,
        allow_dead: base.allow_dead_capabilities,
    };
    let mut workload = Workload::parse(&process, &base.ids, powers)?;
    workload.inherit(base);
    let resolve = workload.resolve_exec();
    Ok(ExecPlan {
        initial_cpus: workload.attributes.initial_cpus.clone(),
        steps: steps(workload, terminal, resolve, base),
    })
}

/// Into a container and on to `execve`; `resolve` looks the command up.
pub(crate) fn steps(
    workload: Workload,
    terminal: bool,
    resolve: Step,
    base: &ExecBase,
) -> Vec<Step> {
    let timens = base.timens;
    let (size, uid, gid) = (workload.size, workload.uid, workload.gid);
    let mut steps = vec![Step::Seal, Step::JoinCgroups];
    steps.extend(workload.oom_score_adj.map(Step::OomScoreAdj));
    let attributes = &workload.attributes;
    steps.extend(attributes.final_cpus.clone().map(Step::Cpus));
    steps.extend(attributes.io_priority.map(Step::IoPriority));
    steps.extend(attributes.scheduling.map(Step::Scheduling));
    steps.push(match terminal {
        true => Step::Pty { size, uid },
        false => Step::StdioOwner(uid, gid),
    });
    steps.extend(workload.rlimits_step());
    steps.extend([
        Step::JoinContainer { timens },
        Step::JoinKeyring(base.keyring.clone()),
        Step::Session,
    ]);
    steps.extend(workload.label_steps());
    steps.extend([Step::Stdio, workload.umask()]);
    steps.push(Step::Cwd(workload.cwd.clone()));
    steps.push(resolve);
    steps.extend(workload.end(base.seccomp.clone()));
    steps
}
