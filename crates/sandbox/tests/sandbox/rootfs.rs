//! Root file systems.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berm_sandbox::Config;
use berm_sys::Kernel;
use berm_testkit::cases::Case;
use serde_json::json;

use crate::container::Container;
use crate::world::{World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    overlays_of_1_2_5_and_120_layers_show_the_upper_file_of_each_name,
    overlays_are_the_same_where_the_kernel_takes_attached_layers_only,
    a_kernel_that_refuses_layers_by_descriptor_gets_them_attached,
    what_root_writes_to_an_overlay_is_0_based_on_disk_and_ordinary_to_the_next_pod,
    what_a_user_writes_to_a_bound_rootfs_has_its_own_id_on_disk,
    a_single_layer_without_upper_directory_is_read_only,
    a_rootfs_directory_that_is_mounted_already_is_taken_with_what_is_below_it,
    a_read_only_rootfs_stays_so_for_root_and_mounts_in_it_are_writable,
];

pub(crate) struct Layers {
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    work: PathBuf,
    /// Further options.
    pub(crate) more: Vec<String>,
}

impl Layers {
    /// Layers from the top down; each has a file of its own and one that all have.
    pub(crate) fn new(w: &World, count: usize) -> Self {
        let mut lower = Vec::new();
        for n in 0..count {
            let layer = w.dir("layer");
            fs::write(layer.join("everywhere"), format!("{n}")).unwrap();
            fs::write(layer.join(format!("only-{n}")), format!("{n}")).unwrap();
            lower.push(layer);
        }
        crate::world::image(lower.last().unwrap());
        Self {
            lower,
            upper: w.dir("upper"),
            work: w.dir("work"),
            more: Vec::new(),
        }
    }

    pub(crate) fn on<'p>(&self, container: Container<'p>) -> Container<'p> {
        let join = |paths: &[PathBuf]| {
            let paths: Vec<_> = paths.iter().map(|p| p.to_str().unwrap()).collect();
            paths.join(":")
        };
        let mut options = vec![
            format!("workdir={}", self.work.display()),
            format!("upperdir={}", self.upper.display()),
            format!("lowerdir={}", join(&self.lower)),
        ];
        options.extend(self.more.iter().cloned());
        container.rootfs("overlay", Path::new("overlay"), &options)
    }
}

fn ids(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn overlays_of_1_2_5_and_120_layers_show_the_upper_file_of_each_name() {
    world(show_the_upper_file_of_each_name);
}

fn overlays_are_the_same_where_the_kernel_takes_attached_layers_only() {
    let without = |c: &mut Config| {
        c.kernel = Some(Kernel {
            detached_layers: false,
            ..Kernel::WHOLE
        });
    };
    world_with(without, async |w| {
        show_the_upper_file_of_each_name(w).await;
        let pod = w.pod().await;
        // Names that mount(2) would take for the end of an option or of a layer.
        let mut layers = Layers::new(w, 3);
        layers.upper = w.dir("up,lowerdir=");
        layers.work = w.dir("wo:r\\k");
        let text = "echo x > /new; mv /only-2 /moved && grep ' / / ' /proc/self/mountinfo";
        let (status, text) = layers.on(pod.sh(text)).output().await;
        assert_eq!(status, 0, "{text}");
        assert!(
            text.contains("lowerdir=0:1:2,upperdir=u,workdir=w"),
            "{text}"
        );
        assert_eq!(ids(&layers.upper.join("new")), (0, 0));
        // Without an upper layer.
        let list = layers.lower.iter().map(|l| l.to_str().unwrap());
        let option = format!("lowerdir={}", list.collect::<Vec<_>>().join(":"));
        for dir in ["dev/pts", "dev/shm", "dev/mqueue", "sys/fs"] {
            fs::create_dir_all(layers.lower[0].join(dir)).unwrap();
        }
        let container = pod.sh("cat /everywhere; touch /new 2>/dev/null || echo refused");
        let container = container.rootfs("overlay", Path::new("overlay"), &[option]);
        assert_eq!(container.output().await, (0, "0refused\n".into()));
        // What is wrong stays wrong, with its reason.
        let mut layers = Layers::new(w, 2);
        layers.upper = w.dir("volume").join("missing");
        let error = layers.on(pod.sh("true")).refused().await;
        assert!(error.to_string().contains("missing"), "{error}");
    });
}

/// fsconfig(2) with FSCONFIG_SET_FD gives this errno from here on, as before 6.13.
fn refuse_descriptors(errno: u32) {
    const FSCONFIG: u32 = 431;
    const SET_FD: u32 = 5;
    // linux/bpf_common.h, linux/seccomp.h: load a word of seccomp_data, compare, return.
    let insn = |code: u16, jt: u8, jf: u8, k: u32| {
        let (c, k) = (code.to_ne_bytes(), k.to_ne_bytes());
        [c[0], c[1], jt, jf, k[0], k[1], k[2], k[3]]
    };
    let low_word_of_args_1 = if cfg!(target_endian = "little") {
        24
    } else {
        28
    };
    let filter = [
        insn(0x20, 0, 0, 0),
        insn(0x15, 0, 3, FSCONFIG),
        insn(0x20, 0, 0, low_word_of_args_1),
        insn(0x15, 0, 1, SET_FD),
        insn(0x06, 0, 0, 0x0005_0000 | errno),
        insn(0x06, 0, 0, 0x7fff_0000),
    ];
    berm_sys::process::install_seccomp(&filter, 0).unwrap();
}

fn a_kernel_that_refuses_layers_by_descriptor_gets_them_attached() {
    let as_it_is = |c: &mut Config| c.kernel = Some(Kernel::WHOLE);
    world_with(as_it_is, async |w| {
        let pod = w.pod().await;
        // The filters of a process add up: 6.12 says EBADF, 6.1 EOPNOTSUPP.
        for errno in [9, 95] {
            refuse_descriptors(errno);
            let layers = Layers::new(w, 2);
            let container = layers.on(pod.sh("cat /everywhere; echo x > /new; cat /new"));
            assert_eq!(container.output().await, (0, "0x\n".into()), "{errno}");
        }
    });
}

async fn show_the_upper_file_of_each_name(w: &World) {
    let pod = w.pod().await;
    for count in [1, 2, 5, 120] {
        let layers = Layers::new(w, count);
        let last = count - 1;
        let script = format!(
            "cat /everywhere /only-{last}; ls / | grep -c only-; stat -c %u:%g /everywhere; \
                 echo new > /only-{last}; cat /only-{last}"
        );
        let got = layers.on(pod.sh(&script)).output().await;
        let want = format!("0{last}{count}\n0:0\nnew\n");
        assert_eq!(got, (0, want), "{count} layers");
        let copied = layers.upper.join(format!("only-{last}"));
        assert_eq!(fs::read_to_string(copied).unwrap(), "new\n");
        let below = layers.lower[last].join(format!("only-{last}"));
        assert_eq!(fs::read_to_string(below).unwrap(), format!("{last}"));
    }
}

fn what_root_writes_to_an_overlay_is_0_based_on_disk_and_ordinary_to_the_next_pod() {
    world(async |w| {
        let (first, second) = (w.pod().await, w.pod().await);
        let range = |pod: &crate::world::Pod<'_>| pod.sandbox.record().uid;
        assert_ne!(range(&first), range(&second));
        let layers = Layers::new(w, 2);
        let script = "echo x > /of-root; echo x > /of-alice; chown 1000:1000 /of-alice; \
            echo x >> /only-1; rm /everywhere; mkdir /dir";
        assert_eq!(
            layers.on(first.sh(script)).output().await,
            (0, String::new())
        );
        for (name, want) in [
            ("of-root", 0),
            ("of-alice", 1000),
            ("only-1", 0),
            ("dir", 0),
        ] {
            assert_eq!(ids(&layers.upper.join(name)), (want, want), "{name}");
        }
        let script = "stat -c %n:%u:%g /of-root /of-alice /only-1 /dir; rm /of-root /of-alice; \
            rmdir /dir 2>/dev/null || rm -r /dir; ls / | grep -c of-; ls /everywhere 2>&1";
        let (_, text) = layers.on(second.sh(script)).output().await;
        let want = "/of-root:0:0\n/of-alice:1000:1000\n/only-1:0:0\n/dir:0:0\n0\n\
            ls: /everywhere: No such file or directory\n";
        assert_eq!(text, want);
    });
}

fn what_a_user_writes_to_a_bound_rootfs_has_its_own_id_on_disk() {
    world(async |w| {
        let pod = w.pod().await;
        let root = w.rootfs();
        fs::set_permissions(
            root.join("tmp"),
            std::os::unix::fs::PermissionsExt::from_mode(0o1777),
        )
        .unwrap();
        let script = "echo x > /tmp/mine; stat -c %u:%g /tmp/mine";
        let container = pod.sh(script).user(1000);
        let got = container.rootfs("bind", &root, &["rbind".into(), "rw".into()]);
        assert_eq!(got.output().await, (0, "1000:1000\n".into()));
        assert_eq!(ids(&root.join("tmp/mine")), (1000, 1000));
    });
}

fn a_single_layer_without_upper_directory_is_read_only() {
    world(async |w| {
        let pod = w.pod().await;
        let layer = w.rootfs();
        for dir in ["dev/pts", "dev/shm", "dev/mqueue", "sys/fs"] {
            fs::create_dir_all(layer.join(dir)).unwrap();
        }
        let options = [format!("lowerdir={}", layer.display())];
        let container = pod.sh("echo x > /file");
        let container = container.rootfs("overlay", Path::new("overlay"), &options);
        let (status, text) = container.output().await;
        assert_eq!(status, 1);
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(!layer.join("file").exists());
    });
}

fn a_rootfs_directory_that_is_mounted_already_is_taken_with_what_is_below_it() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod.sh("cat /var/file; echo y > /var/written");
        let below = container.root.join("var");
        rustix::mount::mount(
            "tmpfs",
            &below,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
        .unwrap();
        fs::write(below.join("file"), "x\n").unwrap();
        assert_eq!(container.output().await, (0, "x\n".into()));
        assert_eq!(fs::read_to_string(below.join("written")).unwrap(), "y\n");
        assert_eq!(ids(&below.join("written")), (0, 0));
        rustix::mount::unmount(&below, rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

fn a_read_only_rootfs_stays_so_for_root_and_mounts_in_it_are_writable() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        let script = "echo x > /file; mount -o remount,rw / ; echo x > /file; \
            echo x > /data/file && echo x > /dev/shm/file && echo volumes";
        let container = pod.sh(script).set("/root/readonly", json!(true)).mount(
            "/data",
            "bind",
            &volume,
            &["rbind", "rw"],
        );
        let root = container.root.clone();
        let (status, text) = container.output().await;
        assert_eq!(status, 0, "{text}");
        assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
        assert!(!root.join("file").exists());
        assert!(volume.join("file").exists());
    });
}
