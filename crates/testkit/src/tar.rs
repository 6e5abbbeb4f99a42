//! A ustar archive in memory: what an image layer and an OCI archive need, and no more.

/// An archive under construction. Names are at most 100 bytes long; owners are uid = gid.
#[derive(Debug, Default)]
pub(crate) struct Tar(Vec<u8>);

const BLOCK: usize = 512;

impl Tar {
    pub(crate) fn dir(&mut self, name: &str, mode: u32, owner: u32) {
        self.header(&format!("{name}/"), b'5', "", 0, mode, owner);
    }

    pub(crate) fn link(&mut self, name: &str, target: &str) {
        self.header(name, b'2', target, 0, 0o777, 0);
    }

    pub(crate) fn file(&mut self, name: &str, bytes: &[u8], mode: u32, owner: u32) {
        self.header(name, b'0', "", bytes.len(), mode, owner);
        self.0.extend_from_slice(bytes);
        self.pad();
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn header(&mut self, name: &str, kind: u8, target: &str, size: usize, mode: u32, owner: u32) {
        assert!(
            name.len() <= 100 && target.len() <= 100,
            "too long for ustar: {name}"
        );
        let mut block = [0; BLOCK];
        let mut put =
            |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{owner:07o}"));
        put(116, &format!("{owner:07o}"));
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(148, "        ");
        put(157, target);
        put(257, "ustar");
        put(263, "00");
        block[156] = kind;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_lists_what_was_put_in() {
        let mut tar = Tar::default();
        tar.dir("bin", 0o755, 0);
        tar.link("bin/sh", "busybox");
        tar.file("bin/busybox", b"program", 0o4755, 1000);
        let mut command = std::process::Command::new("tar");
        command.args(["--numeric-owner", "-tvf", "-"]);
        let listed =
            crate::command::run(command, &tar.finish(), std::time::Duration::from_secs(10));
        let listed = listed.and_then(crate::command::Output::ok).unwrap().stdout;
        let words: Vec<Vec<&str>> = listed
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!((words[0][0], words[0][5]), ("drwxr-xr-x", "bin/"));
        assert_eq!(words[1][5..], ["bin/sh", "->", "busybox"]);
        assert_eq!(words[2][..3], ["-rwsr-xr-x", "1000/1000", "7"]);
    }
}
