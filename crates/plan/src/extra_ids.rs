//! Ids above 65535 of a pod whose user namespace comes from the node's pool.
//!
//! The pool gives a pod ids 0 to 65535. What a pod names beyond (OpenShift's users begin at
//! 1,000,000,000) is mapped in further blocks of 65,536, each of which takes one more range.

use std::collections::BTreeSet;

use oci_spec::runtime;

use crate::refusal::{Error, unsupported};

/// Ids of one block; a block begins at a multiple of it.
pub(crate) const BLOCK: u32 = 65_536;
/// Further blocks that one pod may have, so that no pod empties the node's pool.
const MOST: usize = 8;

/// First ids of the blocks that hold `configured` and the user and groups of `process`, which
/// for a CRI sandbox are those of the pod's securityContext.
pub(crate) fn blocks(
    configured: &[u32],
    process: Option<&runtime::Process>,
) -> Result<Vec<u32>, Error> {
    let mut blocks: BTreeSet<u32> = configured.iter().filter_map(|id| block(*id)).collect();
    if let Some(user) = process.map(runtime::Process::user) {
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        let ids = [user.uid(), user.gid()].into_iter();
        blocks.extend(ids.chain(groups.iter().copied()).filter_map(block));
    }
    if blocks.len() > MOST {
        return Err(unsupported(
            "process.user",
            format!("ids in {} blocks of 65536, a pod gets {MOST}", blocks.len()),
            "use ids that are closer together, or hostUsers: false with a map of your own",
        ));
    }
    Ok(blocks.into_iter().collect())
}

/// The block of an id that the pod's first range has not. The last one cannot be mapped whole,
/// because it holds the id that means none: its ids are refused where they are used.
fn block(id: u32) -> Option<u32> {
    let first = id - id % BLOCK;
    (first != 0 && first.checked_add(BLOCK).is_some()).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(uid: u32, groups: &[u32]) -> runtime::Process {
        let user = serde_json::json!({ "uid": uid, "gid": 0, "additionalGids": groups });
        serde_json::from_value(serde_json::json!({ "cwd": "/", "user": user })).unwrap()
    }

    #[test]
    fn each_block_is_there_once_and_the_first_range_is_none() {
        let asked = process(1_000_650_000, &[0, 65_535, 1_000_650_001, 70_000]);
        let blocks = blocks(&[70_001, 200_000], Some(&asked)).unwrap();
        assert_eq!(blocks, [65_536, 196_608, 1_000_603_648]);
        assert!(blocks.iter().all(|first| first % BLOCK == 0));
    }

    #[test]
    fn the_block_of_the_id_that_means_none_is_left_out() {
        assert_eq!(block(u32::MAX - 1), None);
        assert_eq!(block(65_535), None);
        assert_eq!(block(65_536), Some(65_536));
    }

    #[test]
    fn a_pod_with_ids_all_over_the_place_is_refused() {
        let groups: Vec<u32> = (1..=9).map(|n| n * 100_000).collect();
        let error = blocks(&[], Some(&process(0, &groups))).unwrap_err();
        assert!(error.to_string().contains("9 blocks"), "{error}");
    }
}
