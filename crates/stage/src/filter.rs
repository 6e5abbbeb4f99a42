//! A seccomp filter, compiled once for many processes.

use std::os::fd::OwnedFd;

use berm_plan::Step;
use berm_seccomp::{Arch, Insn, Profile};
use berm_sys::process;

use crate::error::{Error, sys};

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    program: Vec<[u8; 8]>,
    flags: u32,
}

impl Filter {
    /// Compiles the filter that the steps install; `None`: they install none.
    /// # Errors
    /// What the profile says cannot be compiled for this architecture.
    pub fn of(steps: &[Step]) -> Result<Option<Self>, Error> {
        let profile = steps.iter().find_map(|step| match step {
            Step::Seccomp(profile) => Some(profile),
            _ => None,
        });
        profile.map(|profile| Self::compile(profile)).transpose()
    }

    pub(crate) fn compile(profile: &Profile) -> Result<Self, Error> {
        let missing = Error::Missing {
            what: "filter for this architecture",
        };
        let native = Arch::native().ok_or(missing)?;
        let program = berm_seccomp::compile(profile, native)?;
        Ok(Self {
            program: program.into_iter().map(Insn::to_bytes).collect(),
            flags: profile.install_flags(),
        })
    }

    /// Installs it: the last step before execve. Gives back its listener if it has one.
    pub(crate) fn install(&self) -> Result<Option<OwnedFd>, Error> {
        process::install_seccomp(&self.program, self.flags)
            .map_err(sys("seccomp(SECCOMP_SET_MODE_FILTER)"))
    }
}
