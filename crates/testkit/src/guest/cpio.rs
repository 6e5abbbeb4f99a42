//! A cpio archive in the `newc` format, as the kernel reads an initrd. Archives may follow each
//! other in one file; each is padded to whole 512 bytes.

/// An archive under construction.
#[derive(Debug, Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_755;

impl Cpio {
    pub(super) fn dir(&mut self, name: &str) {
        self.entry(name, DIR, &[]);
    }

    /// An executable file of root.
    pub(super) fn file(&mut self, name: &str, bytes: &[u8]) {
        self.entry(name, FILE, bytes);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.inode += 1;
        // inode, mode, uid, gid, links, mtime, size, device, rdev, length of the name, checksum
        let fields = [
            self.inode as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            bytes.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_of_110_bytes_a_name_and_its_bytes_each_padded_to_four() {
        let mut cpio = Cpio::default();
        cpio.file("cmd", b"true\n");
        let bytes = cpio.finish();
        assert_eq!(bytes.len(), 512);
        assert_eq!(&bytes[..14], b"07070100000001");
        // 110 bytes of header and "cmd\0" are 114, two short of a multiple of four.
        assert_eq!(&bytes[110..121], b"cmd\0\0\0true\n");
        let trailer = 116 + 8 + 110;
        assert_eq!(&bytes[trailer..trailer + 10], b"TRAILER!!!");
    }
}
