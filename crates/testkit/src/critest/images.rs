//! The images that critest's specs name, made here of busybox, scripts and one C program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::command;
use crate::error::{Error, file};
use crate::image::{Store, architecture, root};
use crate::tar::Tar;

/// Applets that critest's busybox has and Debian's has not.
const SCRIPTS: &[(&str, &str)] = &[
    ("pgrep", "#!/bin/sh\nexec pidof \"$@\"\n"),
    ("ipcs", "#!/bin/sh\nexec cat /proc/sysvipc/shm\n"),
];

/// A web server with nginx's outer signs: its name, its pid file, its index page.
const NGINX: &str = "#!/bin/sh
echo $$ >/var/run/nginx.pid
httpd -p \"$PORT\" -h /html
trap 'exit 0' TERM QUIT
while :; do sleep 1000000 & wait; done
";

/// All of them, by names without a host.
pub(super) fn store(busybox: &Path) -> Result<Store, Error> {
    let base = base(busybox)?;
    let mut store = Store::default();
    let shell = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    store.image("e2e-test-images/busybox:1.29-2", &[&base], &shell);

    let mut nginx = Tar::default();
    nginx.file("bin/nginx", NGINX.as_bytes(), 0o755, 0);
    nginx.dir("html", 0o755, 0);
    nginx.file("html/index.html", b"Welcome\n", 0o644, 0);
    let nginx = nginx.finish();
    let serving = |port: &str| {
        json!({
            "Cmd": ["nginx", "master process"],
            "Env": ["PATH=/bin", format!("PORT={port}")],
        })
    };
    let layers: [&[u8]; 2] = [&base, &nginx];
    store.image("e2e-test-images/nginx:1.14-2", &layers, &serving("80"));
    let host_net = format!(
        "k8s-staging-cri-tools/hostnet-nginx-{}:latest",
        architecture()
    );
    store.image(&host_net, &layers, &serving("12003"));

    let httpd = json!({
        "Cmd": ["sh", "-c", "echo httpd serves; exec httpd -f -p 80 -h /html"],
        "Env": ["PATH=/bin"],
    });
    store.image("e2e-test-images/httpd:2.4.39-4", &layers, &httpd);

    let mut nnp = Tar::default();
    nnp.file("nnp", &set_user_id_program()?, 0o4755, 0);
    let nnp = nnp.finish();
    let entry = json!({ "Entrypoint": ["/nnp"], "Env": ["PATH=/bin"] });
    store.image("e2e-test-images/nonewprivs:1.3", &[&base, &nnp], &entry);

    let mut group = Tar::default();
    let (passwd, groups) = (
        "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n",
        "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    );
    group.file("etc/passwd", passwd.as_bytes(), 0o644, 0);
    group.file("etc/group", groups.as_bytes(), 0o644, 0);
    let group = group.finish();
    let user = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "User": "1000" });
    store.image(
        "k8s-staging-cri-tools/test-image-predefined-group:latest",
        &[&base, &group],
        &user,
    );
    Ok(store)
}

/// A root file system in which `ls` has an inode of its own, as in the image that critest knows:
/// a spec masks it.
fn base(busybox: &Path) -> Result<Vec<u8>, Error> {
    let program = std::fs::read(busybox).map_err(file("read", busybox))?;
    let mut tar = root(busybox, &program)?;
    tar.file("bin/sh", &shell_without_ls(program.clone()), 0o755, 0);
    tar.file("bin/ls", &program, 0o755, 0);
    for (name, text) in SCRIPTS {
        tar.file(&format!("bin/{name}"), text.as_bytes(), 0o755, 0);
    }
    tar.dir("var/run", 0o755, 0);
    tar.dir("home", 0o755, 0);
    tar.dir("tmp", 0o1777, 0);
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    tar.file("etc/passwd", passwd.as_bytes(), 0o644, 0);
    tar.file("etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644, 0);
    Ok(tar.finish())
}

/// Debian's busybox runs the applets that it knows without a look at `$PATH`: it would not see
/// that a file `ls` is masked. In this copy the applet has another name, of the same place in
/// the sorted table.
fn shell_without_ls(mut program: Vec<u8>) -> Vec<u8> {
    let name = b"\0ls\0lsmod\0";
    if let Some(at) = program
        .windows(name.len())
        .position(|window| window == name)
    {
        program[at + 2] = b'r';
    }
    program
}

fn set_user_id_program() -> Result<Vec<u8>, Error> {
    let output: PathBuf =
        std::env::temp_dir().join(format!("berm-critest-nnp-{}", std::process::id()));
    let mut cc = Command::new("cc");
    cc.args(["-Os", "-static", "-s", "-x", "c", "-", "-o"])
        .arg(&output);
    command::run(cc, include_bytes!("nnp.c"), Duration::from_secs(60))?.ok()?;
    let program = std::fs::read(&output).map_err(file("read", &output))?;
    std::fs::remove_file(&output).map_err(file("unlink", &output))?;
    Ok(program)
}
