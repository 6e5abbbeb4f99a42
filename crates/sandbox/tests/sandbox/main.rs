//! Sandboxes on a real kernel. Needs root; every case is a process of its own and a leak test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod args;
mod attack;
mod attributes;
mod bad_input;
mod caps;
mod cgroup;
mod container;
mod control;
mod control_files;
mod crash;
mod dead;
mod debug;
mod device_rootfs;
mod devices;
mod events;
mod figures;
mod hints;
mod hooks;
mod host;
mod idmap;
mod independent;
mod keys;
mod life;
mod logging;
mod metrics;
mod mount_into;
mod mounts;
mod namespaces;
mod netdevices;
mod notify;
mod options;
mod pause;
mod port_forward;
mod process;
mod refused;
mod rootfs;
mod rows;
mod subcontainer;
mod tmpfs;
mod upper;
mod usage;
mod wire;
mod world;

use std::process::ExitCode;

use berm_testkit::cases::Case;

/// What only a pod with a user namespace of its own can keep: left out where pods get none.
const OF_USER_NAMESPACES: [&str; 23] = [
    "a_file_system_that_cannot_be_idmapped_is_no_root_of_a_pod_with_a_user_namespace",
    "what_root_writes_to_an_overlay_is_0_based_on_disk_and_ordinary_to_the_next_pod",
    "devices_that_no_rule_allows_are_denied",
    "containers_share_net_ipc_and_uts_and_have_mounts_and_pids_of_their_own",
    "a_pod_takes_a_network_namespace_by_path",
    "a_container_with_hooks_is_as_locked_and_as_empty_as_one_without",
    "an_id_outside_the_map_is_refused",
    "a_pool_without_a_free_range_refuses_the_next_pod",
    "root_of_a_pod_clears_no_read_only_and_unmounts_nothing",
    "flags_of_a_mount_into_a_running_container_hold_against_root_of_the_pod",
    "root_of_a_pod_makes_no_user_namespace",
    "root_of_a_pod_does_not_see_into_pid_1_or_a_gated_process",
    "the_record_says_that_a_host_pod_is_no_boundary_and_why",
    "a_host_pod_joins_a_namespace_that_its_spec_names",
    "an_annotation_drops_the_user_namespace_where_the_node_allows_it",
    "a_node_that_refuses_host_pods_runs_the_others",
    "a_writable_cgroup_mount_is_writable_for_whom_its_files_belong_to",
    "shared_mounts_and_a_shared_root_are_refused_with_a_user_namespace",
    "an_own_map_is_of_the_top_mount_alone_unless_it_is_ridmap",
    "a_tree_with_kernel_file_systems_in_it_is_mapped_mount_by_mount",
    "a_file_system_without_idmapped_mounts_is_refused_by_its_name_and_its_mount",
    "an_unknown_mount_type_is_refused",
    "a_pod_without_room_for_keys_gets_no_further_container_until_there_is_some",
];

fn main() -> ExitCode {
    // The runtime's signal pipe is made once and stays: before the cases, so that none leaks it.
    drop(world::runtime());
    let attacks = attack::cases();
    let groups = [
        life::CASES,
        host::CASES,
        namespaces::CASES,
        netdevices::CASES,
        caps::CASES,
        rootfs::CASES,
        rows::CASES,
        device_rootfs::CASES,
        upper::CASES,
        mounts::CASES,
        options::CASES,
        tmpfs::CASES,
        idmap::CASES,
        devices::CASES,
        process::CASES,
        attributes::CASES,
        hints::CASES,
        hooks::CASES,
        notify::CASES,
        cgroup::CASES,
        refused::CASES,
        attacks.as_slice(),
        args::CASES,
        dead::CASES,
        control::CASES,
        wire::CASES,
        subcontainer::CASES,
        mount_into::CASES,
        independent::CASES,
        bad_input::CASES,
        pause::CASES,
        usage::CASES,
        port_forward::CASES,
        control_files::CASES,
        logging::CASES,
        debug::CASES,
        events::CASES,
        figures::CASES,
        metrics::CASES,
        crash::CASES,
    ];
    let userns = world::pods_get_user_namespaces();
    let case = |case: &Case| match OF_USER_NAMESPACES.contains(&case.name()) {
        true if !userns => case.ignored("pods have no user namespace on this kernel"),
        _ => *case,
    };
    let cases: Vec<_> = groups.concat().iter().map(case).collect();
    let code = berm_testkit::cases::run(&[&cases]);
    attack::end();
    code
}
