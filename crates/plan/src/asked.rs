//! What a spec asks for, in the words of the kernel's answer: for a comparison of the two.

use berm_seccomp::{Arch, Survey};

use crate::caps;
use crate::refusal::{Error, invalid, unsupported};
use crate::spec::Spec;

impl Spec {
    /// What `linux.seccomp` means on this machine; `None`: no filter was asked for.
    /// # Errors
    /// The refusal of a field of it, or of the profile as a whole.
    pub fn seccomp(&self) -> Result<Option<Survey>, Error> {
        let linux = self.oci.linux().as_ref();
        let Some(seccomp) = linux.and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(None);
        };
        let profile = crate::seccomp::profile(seccomp)?;
        let field = "linux.seccomp";
        let native = Arch::native()
            .ok_or_else(|| unsupported(field, "no filters on this architecture", "leave it out"))?;
        let surveyed = berm_seccomp::survey(&profile, native);
        surveyed
            .map(Some)
            .map_err(|e| invalid(field, e.to_string(), "mend the profile"))
    }

    /// `process.capabilities.effective` as a mask (capabilities(7)); 0 if the spec has none.
    pub fn effective_capabilities(&self) -> u64 {
        let process = self.oci.process().as_ref();
        let sets = process.and_then(|process| process.capabilities().as_ref());
        let effective = sets.and_then(|sets| sets.effective().as_ref());
        effective.map_or(0, caps::bits)
    }
}

/// The names of a mask's capabilities, `CAP_CHOWN` and so on; numbers that this version does not
/// know as `CAP_41`.
pub fn capability_names(mask: u64) -> Vec<String> {
    let set = (0..u64::BITS as usize).filter(|n| mask & (1 << n) != 0);
    let name = |n| match caps::NAMES.get(n) {
        Some(name) => format!("CAP_{name}"),
        None => format!("CAP_{n}"),
    };
    set.map(name).collect()
}

/// The capabilities that the kernel ignores in a pod with a user namespace of its own;
/// `owns_netns`: its network namespace belongs to that one.
pub const fn dead_capabilities(owns_netns: bool) -> u64 {
    caps::dead(owns_netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_says_what_it_asks_for() {
        let spec = Spec::parse(
            br#"{"process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "capabilities":
                {"effective": ["CAP_KILL", "CAP_NET_RAW"]}},
                "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}"#,
        )
        .unwrap();
        let asked = spec.effective_capabilities();
        assert_eq!(capability_names(asked), ["CAP_KILL", "CAP_NET_RAW"]);
        let dead = capability_names(asked & dead_capabilities(false));
        assert_eq!(dead, ["CAP_NET_RAW"]);
        assert_eq!(asked & dead_capabilities(true), 0);
        let seccomp = spec.seccomp().unwrap().unwrap();
        assert_eq!(seccomp.forbidden, Vec::<String>::new());
        assert_eq!(Spec::parse(b"{}").unwrap().seccomp(), Ok(None));
    }

    #[test]
    fn capabilities_of_a_newer_kernel_have_numbers() {
        assert_eq!(capability_names(1 << 63), ["CAP_63"]);
    }
}
