//! What happened in the sandbox → containerd's events.

use berm_sandbox::Event;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message, MessageField};
use containerd_shim_protos::topics;
use containerd_shim_protos::types::mount::Mount;

use crate::stdio::Paths;
use crate::wire;

/// An event that is ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Notice {
    /// `/tasks/…`
    pub(crate) topic: &'static str,
    /// The event; its type URL is the bare name of the message.
    pub(crate) event: Any,
}

/// What only the door knows of a container: how its Create request looked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub(crate) bundle: String,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) paths: Paths,
}

/// Translates one event. `origin` gives what Create was asked for, by container id.
/// # Errors
/// protobuf's, if a message cannot be encoded.
pub(crate) fn notice(
    event: Event,
    origin: impl FnOnce(&str) -> Option<Origin>,
) -> protobuf::Result<Notice> {
    match event {
        Event::Created { id, pid } => created(id, pid, origin),
        Event::Started {
            id: container_id,
            pid,
        } => pack(
            topics::TASK_START_EVENT_TOPIC,
            events::TaskStart {
                container_id,
                pid: wire::pid(pid),
                ..Default::default()
            },
        ),
        Event::ExecAdded {
            id: container_id,
            exec: exec_id,
        } => pack(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            events::TaskExecAdded {
                container_id,
                exec_id,
                ..Default::default()
            },
        ),
        Event::ExecStarted {
            id: container_id,
            exec: exec_id,
            pid,
        } => pack(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            events::TaskExecStarted {
                container_id,
                exec_id,
                pid: wire::pid(pid),
                ..Default::default()
            },
        ),
        Event::Exited { id, exec, exit } => pack(
            topics::TASK_EXIT_EVENT_TOPIC,
            events::TaskExit {
                id: exec.unwrap_or_else(|| id.clone()),
                container_id: id,
                pid: wire::pid(exit.pid),
                exit_status: exit.status,
                exited_at: wire::time(exit.at),
                ..Default::default()
            },
        ),
        Event::Oom { id: container_id } => pack(
            topics::TASK_OOM_EVENT_TOPIC,
            events::TaskOOM {
                container_id,
                ..Default::default()
            },
        ),
        Event::Paused { id: container_id } => pack(
            topics::TASK_PAUSED_EVENT_TOPIC,
            events::TaskPaused {
                container_id,
                ..Default::default()
            },
        ),
        Event::Resumed { id: container_id } => pack(
            topics::TASK_RESUMED_EVENT_TOPIC,
            events::TaskResumed {
                container_id,
                ..Default::default()
            },
        ),
        Event::Deleted {
            id: container_id,
            exit,
        } => pack(
            topics::TASK_DELETE_EVENT_TOPIC,
            events::TaskDelete {
                container_id,
                pid: wire::pid(exit.pid),
                exit_status: exit.status,
                exited_at: wire::time(exit.at),
                ..Default::default()
            },
        ),
    }
}

fn created(
    container_id: String,
    pid: i32,
    origin: impl FnOnce(&str) -> Option<Origin>,
) -> protobuf::Result<Notice> {
    let origin = origin(&container_id).unwrap_or_default();
    let io = events::TaskIO {
        stdin: origin.paths.stdin,
        stdout: origin.paths.stdout,
        stderr: origin.paths.stderr,
        terminal: origin.paths.terminal,
        ..Default::default()
    };
    pack(
        topics::TASK_CREATE_EVENT_TOPIC,
        events::TaskCreate {
            container_id,
            bundle: origin.bundle,
            rootfs: origin.rootfs,
            io: MessageField::some(io),
            pid: wire::pid(pid),
            ..Default::default()
        },
    )
}

/// No reflection: it would build the descriptors of every message on the heap.
fn pack<M: Message>(topic: &'static str, message: M) -> protobuf::Result<Notice> {
    let event = Any {
        type_url: format!("containerd.events.{}", M::NAME),
        value: message.write_to_bytes()?,
        ..Any::default()
    };
    Ok(Notice { topic, event })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use berm_sandbox::Exit;

    use super::*;

    #[test]
    fn topics_and_types_are_those_of_the_contract() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let exit = Exit {
            pid: 7,
            status: 3,
            at,
        };
        let (id, exec) = ("c".to_owned(), "e".to_owned());
        // Each value by hand: field number << 3 | wire type, then the value.
        let cases: [(Event, &str, &str, &[u8]); 9] = [
            (
                Event::Created {
                    id: id.clone(),
                    pid: 7,
                },
                "/tasks/create",
                "containerd.events.TaskCreate",
                b"\x0a\x01c\x12\x02/b\x22\x04\x12\x02/o\x30\x07",
            ),
            (
                Event::Started {
                    id: id.clone(),
                    pid: 7,
                },
                "/tasks/start",
                "containerd.events.TaskStart",
                b"\x0a\x01c\x10\x07",
            ),
            (
                Event::ExecAdded {
                    id: id.clone(),
                    exec: exec.clone(),
                },
                "/tasks/exec-added",
                "containerd.events.TaskExecAdded",
                b"\x0a\x01c\x12\x01e",
            ),
            (
                Event::ExecStarted {
                    id: id.clone(),
                    exec: exec.clone(),
                    pid: 7,
                },
                "/tasks/exec-started",
                "containerd.events.TaskExecStarted",
                b"\x0a\x01c\x12\x01e\x18\x07",
            ),
            (
                Event::Exited {
                    id: id.clone(),
                    exec: Some(exec),
                    exit,
                },
                "/tasks/exit",
                "containerd.events.TaskExit",
                b"\x0a\x01c\x12\x01e\x18\x07\x20\x03\x2a\x02\x08\x05",
            ),
            (
                Event::Exited {
                    id: id.clone(),
                    exec: None,
                    exit,
                },
                "/tasks/exit",
                "containerd.events.TaskExit",
                b"\x0a\x01c\x12\x01c\x18\x07\x20\x03\x2a\x02\x08\x05",
            ),
            (
                Event::Oom { id: id.clone() },
                "/tasks/oom",
                "containerd.events.TaskOOM",
                b"\x0a\x01c",
            ),
            (
                Event::Paused { id: id.clone() },
                "/tasks/paused",
                "containerd.events.TaskPaused",
                b"\x0a\x01c",
            ),
            (
                Event::Deleted { id, exit },
                "/tasks/delete",
                "containerd.events.TaskDelete",
                b"\x0a\x01c\x10\x07\x18\x03\x22\x02\x08\x05",
            ),
        ];
        for (event, topic, type_url, value) in cases {
            let origin = |_: &str| {
                let paths = Paths {
                    stdout: "/o".into(),
                    ..Paths::default()
                };
                Some(Origin {
                    bundle: "/b".into(),
                    rootfs: Vec::new(),
                    paths,
                })
            };
            let got = notice(event.clone(), origin).unwrap();
            assert_eq!(
                (got.topic, got.event.type_url.as_str()),
                (topic, type_url),
                "{event:?}"
            );
            assert_eq!(got.event.value, value, "{event:?}");
        }
    }
}
