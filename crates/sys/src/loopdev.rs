//! Loop devices: files that show as block devices (loop(4)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr;

use crate::check;

/// How a loop device shows its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Nobody writes to the file through the device.
    pub ro: bool,
    /// The file is read and written past the page cache, which the device has anyway.
    pub direct: bool,
}

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// The number of a loop device that is free at this moment; one is made if none is.
/// # Errors
/// The errno of open(2) of `/dev/loop-control`, or of ioctl(2).
pub fn free() -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    // SAFETY: this ioctl takes no argument; the descriptor is borrowed for the call.
    let number = check(i64::from(unsafe {
        libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE)
    }))?;
    Ok(number as u32)
}

/// Makes the loop device `device` show the file `backing` until its last user, who may be a
/// mount, is gone (LOOP_CONFIGURE). The kernel shows `path` as the file's, cut to 63 bytes.
/// # Errors
/// The errno of ioctl(2): `EBUSY` if somebody else was faster.
pub fn configure(
    device: &File,
    backing: BorrowedFd<'_>,
    path: &Path,
    flags: Flags,
) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    // SAFETY: all-zero is valid: integers and arrays of integers.
    let mut config: Config = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd() as u32;
    config.info.flags = AUTOCLEAR | bit(flags.ro, READ_ONLY) | bit(flags.direct, DIRECT_IO);
    let name = path.as_os_str().as_encoded_bytes();
    // The last byte stays NUL.
    for (to, from) in config.info.file_name[..63].iter_mut().zip(name) {
        *to = *from;
    }
    // SAFETY: LOOP_CONFIGURE reads a struct loop_config, which lives until the call returns; both
    // descriptors are borrowed for the call.
    check(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, ptr::from_ref(&config))
    }))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_have_the_kernels_sizes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Config>(), 304);
    }
}
