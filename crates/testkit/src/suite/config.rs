//! What a pod's files stand for: laid over what kubelet would send, with values for `${...}`.

use serde_json::{Value, json};

use super::run::Run;
use crate::image::BUSYBOX;

impl Run<'_> {
    /// What `${...}` stands for.
    pub(super) fn fill(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let value = after
                .split_once('}')
                .and_then(|(name, after)| Some((self.value(name)?, after)));
            match value {
                Some((value, after)) => {
                    filled.push_str(&value);
                    rest = after;
                }
                // A shell has variables too.
                None => {
                    filled.push_str("${");
                    rest = after;
                }
            }
        }
        filled + rest
    }

    fn value(&self, name: &str) -> Option<String> {
        let id = |name: &str| Some(self.containers.get(name)?.id.clone());
        match name.split_once(':') {
            None => match name {
                "dir" => Some(self.dir.to_string_lossy().into_owned()),
                "uid" => Some(self.uid.clone()),
                "cgroup" => Some(self.cgroup()),
                "runtime" => Some(self.runtime.runtime_type().to_owned()),
                "pod" => self.sandbox.clone(),
                "id" => id(self.pod.containers.keys().next()?),
                _ => None,
            },
            Some(("id", name)) => id(name),
            Some(("x", count)) => Some("x".repeat(count.parse().ok()?)),
            Some(_) => None,
        }
    }

    /// The folder's file over what kubelet would send for a plain pod.
    pub(super) fn pod_config(&self) -> Value {
        let mut config = json!({
            "metadata": {
                "name": self.pod.name, "uid": self.uid, "namespace": "test", "attempt": 0,
            },
            "hostname": self.pod.name,
            "log_directory": self.dir.join("logs"),
            "dns_config": { "servers": ["192.0.2.53"], "searches": ["test"], "options": ["ndots:2"] },
            "linux": {
                "cgroup_parent": self.cgroup_parent(),
                "security_context": { "namespace_options": { "pid": 1 } },
            },
        });
        merge(
            &mut config,
            self.pod.config.as_ref().unwrap_or(&Value::Null),
        );
        config
    }

    pub(super) fn container_config(&self, name: &str, attempt: u32) -> Value {
        let mut config = json!({
            "metadata": { "name": name, "attempt": attempt },
            "image": { "image": BUSYBOX },
            "log_path": format!("{name}.{attempt}.log"),
            "linux": { "security_context": {
                "namespace_options": { "pid": 1 },
                "masked_paths": [
                    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore",
                    "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                    "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                    "/sys/devices/virtual/powercap",
                ],
                "readonly_paths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
                ],
            } },
        });
        merge(
            &mut config,
            self.pod.containers.get(name).unwrap_or(&Value::Null),
        );
        config
    }
}

/// Puts `over` on `base`: objects key by key, anything else as a whole.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}
