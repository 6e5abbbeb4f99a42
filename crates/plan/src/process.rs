//! An OCI `process` object → what a workload is started with; the same for a container and an
//! exec.

use std::path::PathBuf;
use std::sync::Arc;

use berm_seccomp::Profile;
use oci_spec::runtime::Process;

use crate::attributes::Attributes;
use crate::caps::{self, Powers};
use crate::container::ExecBase;
use crate::ids::Ids;
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::rlimit;
use crate::step::{CapSets, Rlimit, Step};

/// runc's default.
const UMASK: u32 = 0o022;

/// What a process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    groups: Vec<u32>,
    umask: u32,
    args: Vec<String>,
    env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) rlimits: Option<Vec<Rlimit>>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) capabilities: Option<CapSets>,
    no_new_privs: bool,
    pub(crate) size: Option<(u16, u16)>,
    pub(crate) attributes: Attributes,
}

impl Workload {
    /// Reads `process`; refuses what this version does not apply.
    pub(crate) fn parse(process: &Process, ids: &Ids, powers: Powers) -> Result<Self, Error> {
        refuse_foreign(process)?;
        let user = process.user();
        let args = args(process)?;
        let groups = user.additional_gids().clone().unwrap_or_default();
        mapped("process.user.uid", user.uid(), ids.uids.to_host(user.uid()))?;
        mapped("process.user.gid", user.gid(), ids.gids.to_host(user.gid()))?;
        for (index, &gid) in groups.iter().enumerate() {
            let field = format!("process.user.additionalGids[{index}]");
            mapped(&field, gid, ids.gids.to_host(gid))?;
        }
        let capabilities = process.capabilities().as_ref();
        Ok(Self {
            uid: user.uid(),
            gid: user.gid(),
            groups,
            umask: umask(user.umask())?,
            args,
            env: env(process)?,
            cwd: cwd(process)?,
            rlimits: process
                .rlimits()
                .as_deref()
                .map(rlimit::parse)
                .transpose()?,
            oom_score_adj: oom_score_adj(process)?,
            capabilities: capabilities.map(|c| caps::sets(c, powers)).transpose()?,
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            size: console_size(process)?,
            attributes: Attributes::of_process(process)?,
        })
    }

    /// Puts what an exec inherits from its container where the process says nothing.
    pub(crate) fn inherit(&mut self, base: &ExecBase) {
        self.rlimits.get_or_insert_with(|| base.rlimits.clone());
        self.capabilities.get_or_insert(base.capabilities);
        self.attributes.inherit(&base.attributes);
    }

    /// The same with another command: same user, same limits, same confinement.
    pub(crate) fn with_command(&self, args: &[String], env: &[String]) -> Self {
        Self {
            args: args.to_vec(),
            env: env.to_vec(),
            ..self.clone()
        }
    }

    pub(crate) fn umask(&self) -> Step {
        Step::Umask(self.umask)
    }

    /// Looks `args[0]` up in the PATH of the container's environment.
    pub(crate) fn resolve_exec(&self) -> Step {
        let path = self
            .env
            .iter()
            .find_map(|e| e.strip_prefix("PATH="))
            .map(str::to_owned);
        let command = self.args.first().cloned().unwrap_or_default();
        Step::ResolveExec {
            command,
            path,
            cwd: self.cwd.clone(),
            home_of: (!self.env.iter().any(|e| e.starts_with("HOME="))).then_some(self.uid),
        }
    }

    /// What its security modules call it.
    pub(crate) fn label_steps(&self) -> impl Iterator<Item = Step> {
        let Attributes {
            apparmor, selinux, ..
        } = &self.attributes;
        let labels = [apparmor.clone(), selinux.clone()];
        labels.into_iter().flatten().map(Step::ExecLabel)
    }

    /// The limits, if there are any.
    pub(crate) fn rlimits_step(&self) -> Option<Step> {
        let limits = self.rlimits.clone().filter(|limits| !limits.is_empty());
        limits.map(Step::Rlimits)
    }

    /// Credentials, filter, `execve`: how every workload begins.
    pub(crate) fn end(self, seccomp: Option<Arc<Profile>>) -> Vec<Step> {
        let sets = self.capabilities.unwrap_or_default();
        // seccomp(2) wants no_new_privs or CAP_SYS_ADMIN.
        let keep_sys_admin = seccomp.is_some() && !self.no_new_privs;
        let mut steps = Vec::with_capacity(8);
        steps.extend(self.attributes.memory_policy.map(Step::MemoryPolicy));
        steps.extend(self.attributes.personality.map(Step::Personality));
        steps.extend([
            Step::Bounding(sets.bounding),
            Step::User {
                uid: self.uid,
                gid: self.gid,
                groups: self.groups,
            },
            Step::Capabilities {
                sets,
                keep_sys_admin,
            },
        ]);
        steps.extend(self.no_new_privs.then_some(Step::NoNewPrivs));
        steps.extend(seccomp.map(Step::Seccomp));
        steps.push(Step::Exec {
            args: self.args,
            env: self.env,
        });
        steps
    }
}

/// Refuses the fields of a process that no Linux container has.
pub(crate) fn refuse_foreign(process: &Process) -> Result<(), Error> {
    let text = |value: &Option<String>| value.as_deref().is_some_and(|v| !v.is_empty());
    let foreign = [
        ("commandLine", text(process.command_line())),
        ("user.username", text(process.user().username())),
    ];
    match foreign.iter().find(|(_, asked)| *asked) {
        Some((key, _)) => Err(invalid(
            format!("process.{key}"),
            "only Windows has it",
            "leave it out",
        )),
        None => Ok(()),
    }
}

/// `process.oomScoreAdj`
pub(crate) fn oom_score_adj(process: &Process) -> Result<Option<i32>, Error> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => Err(invalid(
            "process.oomScoreAdj",
            format!("{score} is not within -1000 to 1000"),
            "use a score that the kernel takes",
        )),
        score => Ok(score),
    }
}

fn mapped(field: &str, id: u32, host: Option<u32>) -> Result<(), Error> {
    match host {
        Some(_) => Ok(()),
        None => Err(unsupported(
            field,
            format!("{id} is outside the id map of the pod"),
            "use an id below 65536, name it in the pod's securityContext, or list it in extra_ids",
        )),
    }
}

fn umask(umask: Option<u32>) -> Result<u32, Error> {
    match umask {
        Some(mask) if mask > 0o777 => Err(invalid(
            "process.user.umask",
            format!("{mask:#o} has bits beyond 0777"),
            "JSON has no octal numbers: 022 is written 18",
        )),
        mask => Ok(mask.unwrap_or(UMASK)),
    }
}

fn args(process: &Process) -> Result<Vec<String>, Error> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(invalid(
            "process.args",
            "must not be empty",
            "name the command to run",
        ));
    }
    for (index, arg) in args.iter().enumerate() {
        no_nul(&format!("process.args[{index}]"), arg)?;
    }
    Ok(args)
}

fn cwd(process: &Process) -> Result<PathBuf, Error> {
    let cwd = process.cwd();
    let text = cwd.to_string_lossy();
    no_nul("process.cwd", &text)?;
    if !cwd.is_absolute() {
        let reason = format!("{} is not an absolute path", quoted(&text));
        return Err(invalid(
            "process.cwd",
            reason,
            "use a path that begins with /",
        ));
    }
    Ok(cwd.clone())
}

/// The environment, each name once: the last entry of a name wins, as in runc.
fn env(process: &Process) -> Result<Vec<String>, Error> {
    let given = process.env().as_deref().unwrap_or_default();
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 1);
    let mut seen = std::collections::HashSet::new();
    for (index, entry) in given.iter().enumerate().rev() {
        let field = format!("process.env[{index}]");
        no_nul(&field, entry)?;
        match entry.split_once('=') {
            None | Some(("", _)) => {
                let reason = format!("{} is not NAME=value", quoted(entry));
                return Err(invalid(field, reason, "write it as NAME=value"));
            }
            Some((name, _)) if seen.insert(name) => env.push(entry.clone()),
            Some(_) => {}
        }
    }
    env.reverse();
    Ok(env)
}

fn console_size(process: &Process) -> Result<Option<(u16, u16)>, Error> {
    let Some(size) = process.console_size() else {
        return Ok(None);
    };
    match (u16::try_from(size.height()), u16::try_from(size.width())) {
        (Ok(0), Ok(0)) => Ok(None),
        (Ok(rows), Ok(columns)) => Ok(Some((rows, columns))),
        _ => Err(invalid(
            "process.consoleSize",
            "larger than 65535",
            "use a smaller size",
        )),
    }
}
