//! New tmpfs mounts: their options, what they take over, what is mounted in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use berm_testkit::cases::Case;

use crate::world::world;

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_tmpfs_has_the_owner_and_the_inodes_that_are_asked_for,
    a_tmpfs_without_a_mode_has_that_of_the_directory_that_it_covers,
    a_read_only_tmpfs_has_the_mounts_that_are_in_it_and_stays_read_only,
    a_read_only_dev_has_its_nodes,
    tmpcopyup_starts_with_what_the_image_has_there,
    an_option_that_the_kernel_refuses_is_named_with_its_mount,
];

const TMPFS: &str = "tmpfs";

fn a_tmpfs_has_the_owner_and_the_inodes_that_are_asked_for() {
    world(async |w| {
        let pod = w.pod().await;
        let mut options = vec!["uid=1000", "gid=2000", "mode=0700", "nr_inodes=3"];
        // Since Linux 6.4; pods have user namespaces since 6.3.
        if crate::world::pods_get_user_namespaces() {
            options.push("noswap");
        }
        let script = "stat -c %u:%g:%a /scratch; touch /scratch/a; touch /scratch/b; \
            touch /scratch/c 2>/dev/null || echo full";
        let container = pod
            .sh(script)
            .mount("/scratch", TMPFS, TMPFS.as_ref(), &options);
        let want = "1000:2000:700\nfull\n";
        assert_eq!(container.output().await, (0, want.into()));
    });
}

fn a_tmpfs_without_a_mode_has_that_of_the_directory_that_it_covers() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod
            .sh("stat -c %a /there /new /named")
            .mount("/there", TMPFS, TMPFS.as_ref(), &["size=1m"])
            .mount("/named", TMPFS, TMPFS.as_ref(), &["mode=711"])
            .mount("/new", TMPFS, TMPFS.as_ref(), &[]);
        for dir in ["there", "named"] {
            let dir = container.root.join(dir);
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o3750)).unwrap();
        }
        assert_eq!(container.output().await, (0, "3750\n1777\n711\n".into()));
    });
}

fn a_read_only_tmpfs_has_the_mounts_that_are_in_it_and_stays_read_only() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        fs::write(volume.join("file"), "x\n").unwrap();
        let script = "cat /run/a/b/file /run/file; touch /run/a/b/new && echo volume; \
            touch /run/new; mount -o remount,bind,rw /run; touch /run/new";
        let container = pod
            .sh(script)
            .mount("/run", TMPFS, TMPFS.as_ref(), &["ro"])
            .mount("/run/a/b", "bind", &volume, &["rbind"])
            .mount("/run/file", "bind", &volume.join("file"), &["bind"]);
        let (_, text) = container.output().await;
        assert!(text.starts_with("x\nx\nvolume\n"), "{text}");
        assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    });
}

fn a_read_only_dev_has_its_nodes() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod.sh("echo x > /dev/null && touch /dev/new || ls -l /dev/fd >/dev/null");
        let options = serde_json::json!(["nosuid", "ro", "mode=755"]);
        let container = container.set("/mounts/1/options", options);
        let (code, text) = container.output().await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
    });
}

fn tmpcopyup_starts_with_what_the_image_has_there() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "cd /var/app; cat file deep/er/file; readlink link; readlink dangling; \
            stat -c %n:%u:%g:%a:%Y file deep deep/er/file suid; test -p pipe && echo pipe; \
            echo new > file; touch deep/new; rm link";
        let options = ["tmpcopyup", "size=1m"];
        let container = pod
            .sh(script)
            .mount("/var/app", TMPFS, TMPFS.as_ref(), &options);
        let app = container.root.join("var/app");
        fs::create_dir_all(app.join("deep/er")).unwrap();
        for (name, text) in [("file", "1\n"), ("deep/er/file", "2\n"), ("suid", "")] {
            fs::write(app.join(name), text).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
            let file = fs::File::options()
                .write(true)
                .open(app.join(name))
                .unwrap();
            file.set_modified(time).unwrap();
        }
        chown(app.join("deep/er/file"), Some(1000), Some(2000)).unwrap();
        fs::set_permissions(app.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(app.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(app.join("deep"), fs::Permissions::from_mode(0o1770)).unwrap();
        let dir = fs::File::open(app.join("deep")).unwrap();
        dir.set_modified(std::time::UNIX_EPOCH).unwrap();
        symlink("file", app.join("link")).unwrap();
        symlink("/etc/shadow", app.join("dangling")).unwrap();
        let node = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, app.join("pipe"), node, mode, 0).unwrap();
        let want = "1\n2\nfile\n/etc/shadow\nfile:0:0:640:1000\ndeep:0:0:1770:0\n\
            deep/er/file:1000:2000:644:1000\nsuid:0:0:4755:1000\npipe\n";
        assert_eq!(container.output().await, (0, want.into()));
        assert_eq!(fs::read_to_string(app.join("file")).unwrap(), "1\n");
        assert!(app.join("link").is_symlink() && !app.join("deep/new").exists());
    });
}

fn an_option_that_the_kernel_refuses_is_named_with_its_mount() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod.sh("true");
        let error = container
            .mount("/scratch", TMPFS, Path::new(TMPFS), &["size=much"])
            .refused()
            .await;
        let text = error.chain();
        assert!(text.contains("mounts[7] \"/scratch\""), "{text}");
        assert!(text.contains("\"size\", \"much\""), "{text}");
    });
}
