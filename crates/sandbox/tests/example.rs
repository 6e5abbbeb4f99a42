//! The example of the documentation, run as a reader would run it. Needs root.

use std::process::Command;

use berm_sandbox::Config;

#[test]
fn the_example_makes_a_pod_without_containerd_and_leaves_nothing() {
    // target/debug/deps/example-… and, built beside it by cargo, target/debug/examples/pod.
    let test = std::env::current_exe().unwrap();
    let example = test.ancestors().nth(2).unwrap().join("examples/pod");
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy("/bin/busybox", bin.join("sh")).unwrap();
    std::os::unix::fs::symlink("sh", bin.join("cat")).unwrap();
    // The container's root passes by here with its own id.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.path(), open).unwrap();

    let ran = Command::new(&example).arg(root.path()).output().unwrap();
    let (said, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{said}{err}");
    assert!(
        said.contains("client, which ended with 3: hello\n"),
        "{said}"
    );
    assert!(said.contains("which ended with 0: hello\n"), "{said}");
    assert!(said.contains("server ended with 137\n"), "{said}");
    let id = said.split('"').nth(1).unwrap();
    let state = Config::default().state_dir.join("example").join(id);
    assert!(!state.exists(), "{state:?} is left");
}
