//! User and group ids of a pod: how numbers inside map to numbers on the host.

use serde::{Deserialize, Serialize};

/// One line of `/proc/<pid>/uid_map` (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First id inside the pod.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many ids follow each other.
    pub count: u32,
}

/// An ordered id map; empty means "no user namespace": every id is its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap(pub Vec<Extent>);

impl IdMap {
    /// The host's number of an id inside the pod; `None` if the map has no such id.
    pub fn to_host(&self, inside: u32) -> Option<u32> {
        if self.0.is_empty() {
            return Some(inside);
        }
        self.0.iter().find_map(|e| {
            let offset = inside.checked_sub(e.inside)?;
            (offset < e.count).then(|| e.outside.checked_add(offset))?
        })
    }

    /// True if every id of the map has the same number outside.
    pub fn is_identity(&self) -> bool {
        self.0.iter().all(|e| e.inside == e.outside)
    }

    /// The text that the kernel takes in `uid_map` and `gid_map`.
    pub fn to_kernel(&self) -> String {
        let line = |e: &Extent| format!("{} {} {}\n", e.inside, e.outside, e.count);
        self.0.iter().map(line).collect()
    }
}

/// Both maps of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// User ids.
    pub uids: IdMap,
    /// Group ids.
    pub gids: IdMap,
}

impl Ids {
    /// True if every id has the same number outside: nothing has to be idmapped then.
    pub fn are_identity(&self) -> bool {
        self.uids.is_identity() && self.gids.is_identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_outside_every_extent_has_no_host_number() {
        let map = IdMap(vec![
            Extent {
                inside: 0,
                outside: 1_000_000,
                count: 65_536,
            },
            Extent {
                inside: 1_000_650_000,
                outside: 1_065_536,
                count: 1,
            },
        ]);
        assert_eq!(map.to_host(0), Some(1_000_000));
        assert_eq!(map.to_host(65_535), Some(1_065_535));
        assert_eq!(map.to_host(65_536), None);
        assert_eq!(map.to_host(1_000_650_000), Some(1_065_536));
        assert_eq!(IdMap::default().to_host(7), Some(7));
    }
}
