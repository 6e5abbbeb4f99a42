//! Device rules: the ordered list of a spec, brought to one policy that v1 and v2 enforce alike.
//!
//! A policy is a default (allow or deny all) and exceptions from it. It is what v1's kernel keeps
//! (`security/device_cgroup.c`) and what runc works out for both versions; so a list of rules
//! means the same here as there:
//! - a rule of type `a` sets the default and forgets what came before;
//! - a rule against the default adds an exception, one in favour of it takes one back;
//! - taking back a part of a wider exception ("all of major 8, but not 8:1") cannot be expressed
//!   on v1 and is refused on both rather than ignored, as v1's kernel would;
//! - without any rule everything is denied.

mod program;

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::controller::Controller;
use crate::dir::Dir;
use crate::resources::{Access, DeviceRule, DeviceType};
use crate::{Cgroup, Error};

const FIELD: &str = "linux.resources.devices";

/// Exceptions of one policy. 511 of them fill a device program of 4096 instructions, the most
/// that every kernel loads; v1's kernel walks its list at each open, so longer ones hurt there.
pub(crate) const MAX_EXCEPTIONS: usize = 511;

/// Which nodes an exception means; `None` = any number. Ordered as runc writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nodes {
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) node: DeviceType,
}

/// A default and the exceptions from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) allow: bool,
    pub(crate) exceptions: BTreeMap<Nodes, Access>,
}

impl Policy {
    /// Applies `rules` in their order to "deny all".
    pub(crate) fn new(rules: &[DeviceRule]) -> Result<Self, Error> {
        let mut policy = Self::default();
        for rule in rules {
            policy.apply(rule)?;
        }
        if policy.exceptions.len() > MAX_EXCEPTIONS {
            let value = policy.exceptions.len().to_string();
            let reason = "are more than 511 exceptions from allow or deny all";
            return Err(Error::BadValue {
                field: FIELD,
                value,
                reason,
            });
        }
        Ok(policy)
    }

    fn apply(&mut self, rule: &DeviceRule) -> Result<(), Error> {
        if rule.node == DeviceType::All {
            *self = Self {
                allow: rule.allow,
                exceptions: BTreeMap::new(),
            };
            return Ok(());
        }
        let nodes = Nodes {
            major: rule.major,
            minor: rule.minor,
            node: rule.node,
        };
        if rule.access.is_empty() {
            let reason = "has no access letters";
            return Err(Error::BadValue {
                field: FIELD,
                value: line(nodes, rule.access),
                reason,
            });
        }
        if rule.allow == self.allow {
            return self.take_back(nodes, rule.access);
        }
        let access = self.exceptions.entry(nodes).or_default();
        *access = access.union(rule.access);
        Ok(())
    }

    fn take_back(&mut self, nodes: Nodes, access: Access) -> Result<(), Error> {
        let wider = [
            Nodes {
                major: None,
                ..nodes
            },
            Nodes {
                minor: None,
                ..nodes
            },
            Nodes {
                major: None,
                minor: None,
                ..nodes
            },
        ];
        for wide in wider.into_iter().filter(|wide| *wide != nodes) {
            let held = self.exceptions.get(&wide).copied().unwrap_or_default();
            if !held.intersection(access).is_empty() {
                let reason = format!(
                    "{:?} would cut a hole into {:?} before it, which no kernel of cgroup v1 can do",
                    line(nodes, access),
                    line(wide, held)
                );
                return Err(Error::Unsupported {
                    field: FIELD,
                    reason,
                });
            }
        }
        if let Some(held) = self.exceptions.get_mut(&nodes) {
            *held = held.difference(access);
            if held.is_empty() {
                self.exceptions.remove(&nodes);
            }
        }
        Ok(())
    }

    /// Reads v1's `devices.list`. Of a policy that allows all, the kernel does not list the
    /// exceptions.
    fn from_list(list: &str) -> Option<Self> {
        let mut policy = Self::default();
        for entry in list.lines() {
            let mut words = entry.split([' ', ':']);
            let node = match words.next()? {
                "a" => {
                    policy.allow = true;
                    continue;
                }
                "b" => DeviceType::Block,
                "c" => DeviceType::Char,
                _ => return None,
            };
            let mut number = || match words.next()? {
                "*" => Some(None),
                digits => digits.parse().ok().map(Some),
            };
            let nodes = Nodes {
                major: number()?,
                minor: number()?,
                node,
            };
            policy
                .exceptions
                .insert(nodes, Access::parse(words.next()?)?);
        }
        Some(policy)
    }

    /// The writes that lead from `self`, what v1's kernel has now, to `target`: `(allow, line)`.
    /// A running container loses no device on the way that it keeps in the end, unless the
    /// default changes or the present exceptions are unknown.
    fn transition(&self, target: &Self) -> Vec<(bool, String)> {
        let mut writes = Vec::new();
        let mut known = &self.exceptions;
        let none = BTreeMap::new();
        if self.allow || self.allow != target.allow {
            writes.push((target.allow, "a".to_owned()));
            known = &none;
        }
        let missing = |from: &BTreeMap<Nodes, Access>, in_: &BTreeMap<Nodes, Access>| {
            let diff = |(nodes, access): (&Nodes, &Access)| {
                let rest = access.difference(in_.get(nodes).copied().unwrap_or_default());
                (!rest.is_empty()).then(|| line(*nodes, rest))
            };
            from.iter().filter_map(diff).collect::<Vec<_>>()
        };
        let dropped = missing(known, &target.exceptions);
        writes.extend(dropped.into_iter().map(|line| (target.allow, line)));
        let gained = missing(&target.exceptions, known);
        writes.extend(gained.into_iter().map(|line| (!target.allow, line)));
        writes
    }
}

/// A line for `devices.allow` and `devices.deny`: `c 1:3 rwm`.
fn line(nodes: Nodes, access: Access) -> String {
    let node = match nodes.node {
        DeviceType::All => 'a',
        DeviceType::Block => 'b',
        DeviceType::Char => 'c',
    };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    format!(
        "{node} {}:{} {access}",
        number(nodes.major),
        number(nodes.minor)
    )
}

impl Cgroup {
    /// Puts `policy` in force: by v1's controller where there is one, else by a device program
    /// on cgroup2, which needs no controller.
    pub(crate) fn limit_devices(&self, policy: &Policy) -> Result<(), Error> {
        if let Some(dir) = self.dir(Controller::Devices) {
            return write_v1(dir, policy);
        }
        match self.unified() {
            Some(dir) => program::attach(dir, policy),
            None => Err(Error::Unsupported {
                field: FIELD,
                reason: "this host has neither the devices controller nor a cgroup2".to_owned(),
            }),
        }
    }
}

fn write_v1(dir: &Dir, policy: &Policy) -> Result<(), Error> {
    let mut buf = Vec::new();
    let list = dir.read("devices.list", &mut buf)?;
    let now = Policy::from_list(list).ok_or_else(|| dir.unreadable("devices.list", list))?;
    let changed = write_transition(dir, &now, policy);
    if changed.is_err() {
        // What is in force stays: the first lines may have gone through.
        let list = dir.read("devices.list", &mut buf)?;
        if let Some(half) = Policy::from_list(list) {
            write_transition(dir, &half, &now)?;
        }
    }
    changed
}

fn write_transition(dir: &Dir, from: &Policy, to: &Policy) -> Result<(), Error> {
    for (allow, value) in from.transition(to) {
        let file = if allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        dir.try_write(file, &value)
            .map_err(|source: Errno| Error::Limit {
                field: FIELD,
                path: dir.path().join(file),
                value,
                source,
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+c 1:3 rwm` allows, `-` denies; `+a` and `-a` are wildcards.
    pub(super) fn rule(text: &str) -> DeviceRule {
        let (allow, rest) = (text.starts_with('+'), &text[1..]);
        let (node, rest) = rest.split_at(1);
        let node = match node {
            "a" => DeviceType::All,
            "b" => DeviceType::Block,
            _ => DeviceType::Char,
        };
        let mut words = rest.trim().split([' ', ':']);
        let mut number = || words.next().and_then(|word| word.parse().ok());
        let (major, minor) = (number(), number());
        let access = Access::parse(words.next().unwrap_or_default()).unwrap();
        DeviceRule {
            allow,
            node,
            major,
            minor,
            access,
        }
    }

    pub(super) fn policy(rules: &[&str]) -> Result<Policy, Error> {
        Policy::new(&rules.iter().map(|text| rule(text)).collect::<Vec<_>>())
    }

    fn transition(from: &str, to: &[&str]) -> Vec<String> {
        let writes = Policy::from_list(from)
            .unwrap()
            .transition(&policy(to).unwrap());
        let show =
            |(allow, line): (bool, String)| format!("{}{line}", if allow { '+' } else { '-' });
        writes.into_iter().map(show).collect()
    }

    #[test]
    fn a_new_v1_cgroup_is_closed_first_and_opened_in_order() {
        let to = ["-a", "+c 5:2 rwm", "+c 1:3 rw", "+c 1:3 m", "+c *:* m"];
        let want = ["-a", "+c *:* m", "+c 1:3 rwm", "+c 5:2 rwm"];
        assert_eq!(transition("a *:* rwm\n", &to), want);
    }

    #[test]
    fn a_running_container_keeps_what_it_keeps() {
        let from = "c 1:3 rwm\nc 5:2 rwm\nb 8:* r\n";
        let to = ["+c 1:3 rwm", "+c 5:2 r", "+c 1:5 rwm"];
        assert_eq!(
            transition(from, &to),
            ["-c 5:2 wm", "-b 8:* r", "+c 1:5 rwm"]
        );
        assert!(transition("c 1:3 rwm\n", &["-a", "+c 1:3 rwm"]).is_empty());
    }

    #[test]
    fn later_rules_win_and_holes_are_refused() {
        assert_eq!(policy(&[]).unwrap(), Policy::default());
        let allow_all = Policy {
            allow: true,
            ..Policy::default()
        };
        assert_eq!(policy(&["+c 1:3 rwm", "+a"]).unwrap(), allow_all);
        assert_eq!(
            policy(&["+c 1:3 rw", "-c 1:3 w"]).unwrap(),
            policy(&["+c 1:3 r"]).unwrap()
        );
        assert_eq!(policy(&["-c 1:3 r"]).unwrap(), Policy::default());
        assert_eq!(policy(&["+a", "-b 8:0 w"]).unwrap().exceptions.len(), 1);
        for hole in ["-c 8:1 r", "-c 8:1 rwm"] {
            let error = policy(&["+c 8:* rw", hole]).unwrap_err();
            assert_eq!(error.kind(), berm_sys::Kind::NotSupported, "{error}");
        }
        assert!(policy(&["+c 8:* rw", "-c 8:1 m"]).is_ok());
        assert!(policy(&["+c 1:3"]).is_err());
    }

    #[test]
    fn more_exceptions_than_a_program_holds_are_refused() {
        let rules: Vec<_> = (0..512)
            .map(|minor| rule(&format!("+c 8:{minor} r")))
            .collect();
        assert!(Policy::new(&rules[..511]).is_ok());
        assert!(Policy::new(&rules).is_err());
    }
}
