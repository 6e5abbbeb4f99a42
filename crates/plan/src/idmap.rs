//! Id mappings of a spec → [`IdMap`].

use oci_spec::runtime::LinuxIdMapping;

use crate::ids::{Extent, IdMap};
use crate::refusal::{Error, invalid};

/// The kernel takes at most this many lines (user_namespaces(7), since 4.15).
const MAX_EXTENTS: usize = 340;

/// Reads a list of mappings as the spec has it; an absent list is empty.
pub(crate) fn extents(mappings: Option<&[LinuxIdMapping]>) -> IdMap {
    let extent = |m: &LinuxIdMapping| Extent {
        inside: m.container_id(),
        outside: m.host_id(),
        count: m.size(),
    };
    IdMap(mappings.unwrap_or_default().iter().map(extent).collect())
}

/// Checks what the kernel would answer with a bare EINVAL, and that the pod has a root.
pub(crate) fn check(field: &str, map: &IdMap) -> Result<(), Error> {
    let wrong = |reason: String| Err(invalid(field, reason, "correct the mappings"));
    if map.0.is_empty() {
        return wrong("empty, but the spec asks for a user namespace".into());
    }
    check_extents(field, map)?;
    match map.to_host(0) {
        Some(_) => Ok(()),
        None => wrong("no entry holds id 0, so the pod would have no root".into()),
    }
}

/// Checks what the kernel would answer with a bare EINVAL.
pub(crate) fn check_extents(field: &str, map: &IdMap) -> Result<(), Error> {
    let wrong = |reason: String| Err(invalid(field, reason, "correct the mappings"));
    if map.0.len() > MAX_EXTENTS {
        return wrong(format!(
            "{} entries, the kernel takes {MAX_EXTENTS}",
            map.0.len()
        ));
    }
    for (index, extent) in map.0.iter().enumerate() {
        let ends = |start: u32| start.checked_add(extent.count).is_some();
        if extent.count == 0 || !ends(extent.inside) || !ends(extent.outside) {
            return wrong(format!(
                "entry {index} has no size, or ends beyond the last id"
            ));
        }
        let meets = |other: &&Extent| {
            overlap(extent.inside, other.inside, extent.count, other.count)
                || overlap(extent.outside, other.outside, extent.count, other.count)
        };
        if let Some(other) = map.0[..index].iter().position(|other| meets(&other)) {
            return wrong(format!("entries {other} and {index} overlap"));
        }
    }
    Ok(())
}

fn overlap(a: u32, b: u32, a_count: u32, b_count: u32) -> bool {
    if a <= b {
        b - a < a_count
    } else {
        a - b < b_count
    }
}

/// Whether two maps say the same, in whatever order.
pub(crate) fn same(a: &IdMap, b: &IdMap) -> bool {
    let sorted = |map: &IdMap| {
        let mut extents = map.0.clone();
        extents.sort_by_key(|e| e.inside);
        extents
    };
    sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(extents: &[(u32, u32, u32)]) -> IdMap {
        let extent = |&(inside, outside, count)| Extent {
            inside,
            outside,
            count,
        };
        IdMap(extents.iter().map(extent).collect())
    }

    #[test]
    fn a_map_that_the_kernel_would_refuse_is_refused_with_the_reason() {
        let many: Vec<_> = (0..341).map(|i| (i, 1000 + i, 1)).collect();
        let cases: [(&[_], _); 8] = [
            (&[], "empty"),
            (&[(0, 1000, 0)], "no size"),
            (&[(0, u32::MAX, 2)], "beyond the last id"),
            (&[(0, 1000, 10), (9, 5000, 10)], "entries 0 and 1 overlap"),
            (&[(0, 1000, 10), (10, 1009, 10)], "entries 0 and 1 overlap"),
            (&[(10, 5000, 10), (0, 4991, 10)], "entries 0 and 1 overlap"),
            (&[(1, 1000, 10)], "no root"),
            (&many, "341 entries"),
        ];
        for (extents, want) in cases {
            let error = check("linux.uidMappings", &map(extents))
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("linux.uidMappings: ") && error.contains(want),
                "{error}"
            );
        }
        check("linux.uidMappings", &map(&[(0, 1000, 10), (10, 1010, 10)])).unwrap();
    }

    #[test]
    fn the_order_of_entries_means_nothing() {
        assert!(same(
            &map(&[(0, 5, 1), (1, 9, 2)]),
            &map(&[(1, 9, 2), (0, 5, 1)])
        ));
        assert!(!same(&map(&[(0, 5, 1)]), &map(&[(0, 5, 2)])));
    }
}
