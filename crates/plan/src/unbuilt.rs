//! Fields of a spec that this version does not apply to any task.

use oci_spec::runtime::{self, Linux};

use crate::refusal::{Error, invalid, quoted, unsupported};
use crate::spec::Spec;

/// Refuses them.
pub(crate) fn refuse(spec: &Spec) -> Result<(), Error> {
    let oci = &spec.oci;
    version(oci.version())?;
    foreign_systems(oci)?;
    unit_properties(spec)?;
    oci.linux().as_ref().map_or(Ok(()), linux)
}

fn version(version: &str) -> Result<(), Error> {
    if version.is_empty() || version.starts_with("1.") {
        return Ok(());
    }
    let reason = format!(
        "{} is not of version 1 of the specification",
        quoted(version)
    );
    Err(unsupported(
        "ociVersion",
        reason,
        "use a spec of version 1.0 to 1.3",
    ))
}

fn foreign_systems(oci: &runtime::Spec) -> Result<(), Error> {
    #[allow(
        deprecated,
        reason = "keys that no specification has; they are refused here"
    )]
    let invented = [
        ("uidMappings", oci.uid_mappings().is_some()),
        ("gidMappings", oci.gid_mappings().is_some()),
    ];
    let systems = [
        ("solaris", oci.solaris().is_some()),
        ("windows", oci.windows().is_some()),
        ("vm", oci.vm().is_some()),
        ("zos", oci.zos().is_some()),
    ];
    if let Some((field, _)) = systems.iter().find(|(_, asked)| *asked) {
        return Err(unsupported(
            *field,
            "Berm runs Linux containers",
            "leave it out",
        ));
    }
    match invented.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => {
            let way_out = "mappings belong below linux or a mount";
            Err(invalid(*field, "no field of the specification", way_out))
        }
        None => Ok(()),
    }
}

/// runc gives these to the unit that the systemd cgroup driver makes; without that driver they are
/// about nothing.
fn unit_properties(spec: &Spec) -> Result<(), Error> {
    let by_systemd = spec
        .cgroups_path()
        .is_some_and(|path| !path.starts_with('/') && path.matches(':').count() == 2);
    let keys = spec.oci.annotations().iter().flat_map(|map| map.keys());
    let mut properties = keys.filter(|key| key.starts_with("org.systemd.property."));
    match properties.next().filter(|_| by_systemd) {
        Some(key) => Err(unsupported(
            format!("annotations[{}]", quoted(key)),
            "Berm gives a unit the properties of its limits alone",
            "leave it out, or run this pod with another runtime",
        )),
        None => Ok(()),
    }
}

fn linux(linux: &Linux) -> Result<(), Error> {
    if linux.intel_rdt().is_some() {
        return Err(unsupported(
            "linux.intelRdt",
            "Berm makes no groups in resctrl",
            "leave it out, or run this pod with another runtime",
        ));
    }
    Ok(())
}
