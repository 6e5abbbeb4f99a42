//! `containerManager.ExecuteAsync`, `Wait` and `WaitPID`.
//!
//! Execs made here are kept from containerd, which did not ask for them: no events, no entry
//! in its list of pids. They are forgotten once somebody has waited for their end, or with their
//! container.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply};
use rustix::thread::CapabilitySet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{EXEC_PREFIX, wait_word};
use crate::api::Stdio;
use crate::donated::{Donated, PassFile};
use crate::live::Sandbox;
use crate::task::{Exec, Task};

/// Ended execs that nobody has waited for, at most; the oldest are forgotten first.
const MAX_UNCOLLECTED: usize = 128;

/// gVisor's `control.ExecArgs`. What is not named is taken from the container.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ExecArgs {
    filename: String,
    argv: Option<Vec<String>>,
    envv: Option<Vec<String>>,
    #[serde(rename = "MountNamespace")]
    mount_namespace: Value,
    wd: String,
    #[serde(rename = "KUID")]
    kuid: u32,
    #[serde(rename = "KGID")]
    kgid: u32,
    #[serde(rename = "ExtraKGIDs")]
    extra_kgids: Option<Vec<u32>>,
    #[serde(rename = "NoNewPrivileges")]
    no_new_privileges: bool,
    #[serde(rename = "Capabilities")]
    capabilities: Option<TaskCapabilities>,
    /// With it and without files, the reply brings the master of a new terminal.
    #[serde(rename = "StdioIsPty")]
    stdio_is_pty: bool,
    #[serde(rename = "GuestFDs")]
    guest_fds: Option<Vec<i32>>,
    /// Berm's own: the last of the files is the program.
    #[serde(rename = "ExecFile")]
    exec_file: bool,
    #[serde(rename = "FDTable")]
    fd_table: Value,
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "PIDNamespace")]
    pid_namespace: Value,
    #[serde(rename = "Limits")]
    limits: Value,
}

/// gVisor's `auth.TaskCapabilities`: bit n is capability n.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskCapabilities {
    #[serde(rename = "PermittedCaps")]
    permitted: u64,
    #[serde(rename = "InheritableCaps")]
    inheritable: u64,
    #[serde(rename = "EffectiveCaps")]
    effective: u64,
    #[serde(rename = "BoundingCaps")]
    bounding: u64,
    #[serde(rename = "AmbientCaps")]
    ambient: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitPidArgs {
    #[serde(rename = "PID")]
    pid: i32,
    #[serde(rename = "CID")]
    cid: String,
}

fn invalid(text: impl Into<String>) -> CallError {
    CallError::new(ErrorKind::InvalidArgument, text)
}

impl ExecArgs {
    /// Refuses what only a process of gVisor's kernel could have.
    fn check(&self) -> Result<(), CallError> {
        let foreign = [
            ("MountNamespace", &self.mount_namespace),
            ("FDTable", &self.fd_table),
            ("PIDNamespace", &self.pid_namespace),
        ];
        if let Some((key, _)) = foreign.iter().find(|(_, value)| !value.is_null()) {
            return Err(invalid(format!("{key}: must be null")));
        }
        if !self.limits.is_null() {
            let text = "Limits: an exec has its container's limits; leave it out";
            return Err(CallError::new(ErrorKind::NotSupported, text));
        }
        let argv = self.argv.as_deref().unwrap_or_default();
        match argv.first() {
            None => Err(invalid("no filename or command provided")),
            Some(first) if !self.filename.is_empty() && *first != self.filename => {
                let text = "filename: must be argv[0] or empty";
                Err(CallError::new(ErrorKind::NotSupported, text))
            }
            Some(_) => Ok(()),
        }
    }

    /// The OCI `process` object of the same meaning.
    fn process(&self) -> Value {
        let cwd = if self.wd.is_empty() { "/" } else { &self.wd };
        let mut process = json!({
            "terminal": self.stdio_is_pty,
            "args": self.argv,
            "cwd": cwd,
            "noNewPrivileges": self.no_new_privileges,
            "user": {
                "uid": self.kuid,
                "gid": self.kgid,
                "additionalGids": self.extra_kgids.as_deref().unwrap_or_default(),
            },
        });
        if let Some(envv) = &self.envv {
            process["env"] = json!(envv);
        }
        if let Some(caps) = &self.capabilities {
            process["capabilities"] = json!({
                "permitted": names(caps.permitted),
                "inheritable": names(caps.inheritable),
                "effective": names(caps.effective),
                "bounding": names(caps.bounding),
                "ambient": names(caps.ambient),
            });
        }
        process
    }

    /// Puts the files to the places that `GuestFDs` names; 0, 1, 2 in order without it.
    fn files(&self, mut fds: Vec<OwnedFd>) -> Result<(Stdio, Donated), CallError> {
        let mut stdio = Stdio::default();
        let mut donated = Donated::default();
        if self.exec_file {
            let file = fds.pop();
            donated.exec_file = Some(file.ok_or_else(|| invalid("ExecFile: no file came along"))?);
        }
        if fds.is_empty() && self.stdio_is_pty {
            // gVisor's command line names the streams all the same.
            return Ok((stdio, donated));
        }
        let in_order: Vec<i32> = (0..).take(fds.len()).collect();
        let places = self.guest_fds.as_ref().unwrap_or(&in_order);
        if places.len() != fds.len() {
            return Err(invalid(
                "creating fd map: length of payload files does not match length of file \
                 descriptor array",
            ));
        }
        for (&place, fd) in places.iter().zip(fds) {
            let slot = match place {
                0..=2 if self.stdio_is_pty => {
                    let text = "StdioIsPty: a process gets a terminal of its container's own; \
                        send no files for 0, 1 and 2, the reply brings the terminal's master";
                    return Err(CallError::new(ErrorKind::NotSupported, text));
                }
                0 => &mut stdio.stdin,
                1 => &mut stdio.stdout,
                2 => &mut stdio.stderr,
                guest => {
                    donated.pass_files.push(PassFile { guest, file: fd });
                    continue;
                }
            };
            if slot.replace(fd).is_some() {
                return Err(invalid(format!("GuestFDs: {place} is there twice")));
            }
        }
        Ok((stdio, donated))
    }
}

/// OCI names of a mask; bits that the kernel has no name for are named by number and refused by
/// the plan.
fn names(mask: u64) -> Vec<String> {
    let known = CapabilitySet::from_bits_retain(mask);
    let mut names: Vec<String> = known
        .iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect();
    let named = known
        .iter_names()
        .fold(0, |bits, (_, one)| bits | one.bits());
    let nameless = (0..u64::BITS).filter(|bit| mask & !named & (1 << bit) != 0);
    names.extend(nameless.map(|bit| format!("CAP_{bit}")));
    names
}

impl Sandbox {
    pub(super) fn control_execute(
        &self,
        name: String,
        args: ExecArgs,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Reply, CallError>> + 'static {
        let sandbox = self.clone();
        async move {
            args.check()?;
            let (stdio, donated) = args.files(fds)?;
            let id = &args.container_id;
            let task = sandbox.0.task(id)?;
            forget_oldest(&task);
            let process = args.process().to_string();
            sandbox.plan_exec(&task, &name, process.as_bytes(), args.stdio_is_pty, true)?;
            let started = sandbox.start_exec_with(id, &name, stdio, donated).await;
            if started.is_err() {
                task.execs.borrow_mut().remove(&name);
            }
            let created = started?;
            Ok(Reply::of(&created.pid)?.donate(created.terminal.into_iter().collect()))
        }
    }

    /// Waits for the end of a container's first process.
    pub(super) async fn control_wait(&self, id: &str) -> Result<Reply, CallError> {
        let task = self.0.task(id)?;
        task.process.wait().await;
        wait_word(&task.process)
    }

    /// Waits for the end of an exec, and forgets it if it was made here.
    pub(super) async fn control_wait_pid(&self, args: WaitPidArgs) -> Result<Reply, CallError> {
        let task = self.0.task(&args.cid)?;
        if task.process.pid() == args.pid {
            return self.control_wait(&args.cid).await;
        }
        let not_found = || {
            let text = format!("waiting for PID {}: no such process", args.pid);
            CallError::new(ErrorKind::NotFound, text)
        };
        let (name, exec) = exec_of(&task, args.pid).ok_or_else(not_found)?;
        exec.process.wait().await;
        if name.starts_with(EXEC_PREFIX) {
            task.execs.borrow_mut().remove(&name);
        }
        wait_word(&exec.process)
    }
}

/// The exec with this host pid; of two the one that still runs.
fn exec_of(task: &Task, pid: i32) -> Option<(String, Rc<Exec>)> {
    let execs = task.execs.borrow();
    let with_pid = execs.iter().filter(|(_, exec)| exec.process.pid() == pid);
    let found = with_pid.max_by_key(|(_, exec)| !exec.process.has_ended());
    found.map(|(name, exec)| (name.clone(), Rc::clone(exec)))
}

fn forget_oldest(task: &Task) {
    let mut execs = task.execs.borrow_mut();
    let number = |name: &str| name.strip_prefix(EXEC_PREFIX)?.parse::<u64>().ok();
    let mut ended: Vec<u64> = execs
        .iter()
        .filter(|(_, exec)| exec.process.has_ended())
        .filter_map(|(name, _)| number(name))
        .collect();
    ended.sort_unstable();
    let surplus = ended.len().saturating_sub(MAX_UNCOLLECTED);
    for old in &ended[..surplus] {
        execs.remove(&format!("{EXEC_PREFIX}{old}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_of_capabilities_becomes_their_names_unknown_bits_included() {
        assert_eq!(names(0b10_0001), ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(names(1 << 40), ["CAP_CHECKPOINT_RESTORE"]);
        assert_eq!(names(1 << 63), ["CAP_63"]);
        assert_eq!(names((1 << 41) - 1).len(), 41);
    }

    #[test]
    fn an_argument_that_gvisors_cli_sends_is_understood() {
        let sent = r#"{"filename":"","argv":["/bin/id"],"envv":["PATH=/bin:/usr/bin"],
            "MountNamespace":null,"wd":"/tmp","KUID":5,"KGID":6,"ExtraKGIDs":[7],
            "NoNewPrivileges":false,"Capabilities":{"PermittedCaps":32,"InheritableCaps":0,
            "EffectiveCaps":32,"BoundingCaps":32,"AmbientCaps":0},"StdioIsPty":false,
            "GuestFDs":[0,1,2],"FDTable":null,"ContainerID":"s1","PIDNamespace":null,
            "Limits":null}"#;
        let args: ExecArgs = serde_json::from_str(sent).unwrap();
        args.check().unwrap();
        let process = args.process();
        assert_eq!(process["cwd"], "/tmp");
        assert_eq!(process["user"]["additionalGids"], json!([7]));
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_KILL"]));
    }

    #[test]
    fn files_go_where_guest_fds_says() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let with = |guest_fds: Option<Vec<i32>>| ExecArgs {
            guest_fds,
            ..ExecArgs::default()
        };
        let (stdio, _) = with(Some(vec![1])).files(vec![file()]).unwrap();
        assert!(stdio.stdin.is_none() && stdio.stdout.is_some());
        let (stdio, _) = with(None).files(vec![file(), file()]).unwrap();
        assert!(stdio.stdin.is_some() && stdio.stdout.is_some() && stdio.stderr.is_none());
        for bad in [vec![0], vec![0, 0]] {
            assert!(with(Some(bad)).files(vec![file(), file()]).is_err());
        }
        let (stdio, donated) = with(Some(vec![9, 2])).files(vec![file(), file()]).unwrap();
        assert!(stdio.stderr.is_some());
        assert_eq!(donated.pass_files[0].guest, 9);
    }

    #[test]
    fn the_program_is_the_last_of_the_files_and_has_no_place() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let of = |guest_fds: Option<Vec<i32>>, stdio_is_pty| ExecArgs {
            guest_fds,
            stdio_is_pty,
            exec_file: true,
            ..ExecArgs::default()
        };
        let (stdio, donated) = of(Some(vec![1]), false)
            .files(vec![file(), file()])
            .unwrap();
        assert!(stdio.stdout.is_some() && donated.exec_file.is_some());
        let (_, donated) = of(None, true).files(vec![file()]).unwrap();
        assert!(donated.exec_file.is_some() && donated.pass_files.is_empty());
        assert!(of(None, false).files(Vec::new()).is_err());
    }

    #[test]
    fn a_process_with_a_terminal_may_be_given_files_but_no_streams() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let with = |guest_fds: Option<Vec<i32>>| ExecArgs {
            guest_fds,
            stdio_is_pty: true,
            ..ExecArgs::default()
        };
        assert!(with(Some(vec![0, 1, 2])).files(Vec::new()).is_ok());
        assert!(with(None).files(vec![file()]).is_err());
        assert!(with(Some(vec![2])).files(vec![file()]).is_err());
        let (_, donated) = with(Some(vec![3])).files(vec![file()]).unwrap();
        assert_eq!(donated.pass_files.len(), 1);
    }
}
