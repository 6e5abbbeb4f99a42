//! Names, modes and owners of sockets.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use berm_sys::Kind;
use berm_urpc::{Bounds, Client, Error, bind};

use crate::fixture::{Directory, Served};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_socket_has_mode_0600_in_a_directory_of_mode_0700() {
    let directory = Directory::new();
    let path = directory.0.join("pod/control.sock");
    let _listener = bind(&path).unwrap();
    assert!(
        std::fs::symlink_metadata(&path)
            .unwrap()
            .file_type()
            .is_socket()
    );
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[test]
fn a_directory_that_others_can_reach_is_refused() {
    let directory = Directory::new();
    for open in [0o755, 0o710, 0o701, 0o1777] {
        std::fs::set_permissions(&directory.0, PermissionsExt::from_mode(open)).unwrap();
        let error = bind(&directory.0.join("control.sock")).unwrap_err();
        assert!(
            matches!(error, Error::Exposed { mode, .. } if mode == open),
            "{error:?}"
        );
        assert_eq!(error.kind(), Kind::Denied);
    }
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0);
}

#[test]
fn a_path_longer_than_a_socket_address_is_bound_and_reached() {
    let directory = Directory::new();
    let deep = directory.0.join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("pod/control.sock");
    let listener = bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    let served = Served::over(listener, path.clone(), directory, Bounds::default());
    let mut client = Client::connect(&path).unwrap();
    let (echo, _): (u32, _) = client.call("Test.Echo", &7, &[]).unwrap();
    assert_eq!(echo, 7);
    drop(served);
}

#[test]
fn paths_of_every_length_around_the_bound_are_served() {
    for length in [106, 107, 108, 109] {
        let directory = Directory::new();
        let fixed = directory.0.as_os_str().len() + "/pod/".len();
        let path = directory.0.join("pod").join("s".repeat(length - fixed));
        assert_eq!(path.as_os_str().len(), length);
        let listener = bind(&path).unwrap();
        let served = Served::over(listener, path.clone(), directory, Bounds::default());
        let mut client = Client::connect(&path).unwrap();
        let (echo, _): (usize, _) = client.call("Test.Echo", &length, &[]).unwrap();
        assert_eq!(echo, length);
        drop(served);
    }
}

#[test]
fn errors_of_names_are_told_apart_by_kind() {
    let directory = Directory::new();
    let path = directory.0.join("pod/control.sock");
    let kind = |path: &Path| Client::connect(path).unwrap_err().kind();
    assert_eq!(kind(&path), Kind::NotFound);
    assert_eq!(
        kind(&directory.0.join("d".repeat(200)).join("x")),
        Kind::NotFound
    );
    let listener = bind(&path).unwrap();
    assert_eq!(bind(&path).unwrap_err().kind(), Kind::AlreadyExists);
    drop(listener);
    assert_eq!(kind(&path), Kind::Unavailable);
    let long = path.with_file_name("s".repeat(200));
    assert_eq!(kind(&long), Kind::InvalidArgument);
    for bad in [
        long.as_path(),
        Path::new("/"),
        Path::new(""),
        Path::new("/run/.."),
    ] {
        assert_eq!(
            bind(bad).unwrap_err().kind(),
            Kind::InvalidArgument,
            "{bad:?}"
        );
    }
    assert_eq!(
        bind(&directory.0.join("none/pod/sock")).unwrap_err().kind(),
        Kind::NotFound
    );
}
