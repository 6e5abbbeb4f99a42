//! Network devices and their addresses (rtnetlink(7)): as much as moving a device takes.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

/// No answer of the kernel is longer: it fills 32 KiB at most.
const MAX_ANSWER: usize = 64 * 1024;
/// How often a list is asked for that changes while it is read.
const TRIES: usize = 5;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Size of `struct ifinfomsg`.
const DEVICE: usize = 16;
/// Size of `struct ifaddrmsg`.
const ADDRESS: usize = 8;
/// Size of `struct rtattr`.
const ATTRIBUTE: usize = 4;
/// Flags of an address that were asked for; the others say what became of it.
const ASKED: u32 = libc::IFA_F_NODAD | libc::IFA_F_HOMEADDRESS | libc::IFA_F_NOPREFIXROUTE;

/// A conversation with the kernel about the network namespace in which it began.
#[derive(Debug)]
pub struct Route {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

/// A network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number in this network namespace.
    pub index: i32,
    /// `IFF_UP`
    pub up: bool,
}

/// An address of a device, as the kernel takes it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    scope: u8,
    flags: u32,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// It was configured for good.
    pub fn is_permanent(&self) -> bool {
        self.flags & libc::IFA_F_PERMANENT != 0
    }

    /// It was, and is valid everywhere: it means the same in another network namespace.
    pub fn is_global(&self) -> bool {
        self.is_permanent() && self.scope == libc::RT_SCOPE_UNIVERSE
    }
}

impl Route {
    /// Begins one in the caller's network namespace.
    ///
    /// The socket is connected to the kernel: what processes of that namespace send it is dropped.
    /// # Errors
    /// The errno of socket(2) or connect(2).
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is 0.
            None,
        )?;
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: Cell::new(0),
        })
    }

    /// The device of this name.
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn device(&self, name: &str) -> io::Result<Device> {
        let mut request = device_message(0, 0, 0);
        push(&mut request, libc::IFLA_IFNAME, &with_nul(name));
        let answers = self.ask(libc::RTM_GETLINK, 0, &request)?;
        let body = answers.first().map(|(_, body)| body.as_slice());
        let device = |body: &[u8]| {
            Some(Device {
                index: i32::from_ne_bytes(array(body, 4)?),
                up: u32::from_ne_bytes(array(body, 8)?) & libc::IFF_UP as u32 != 0,
            })
        };
        body.and_then(device).ok_or_else(cut_short)
    }

    /// All addresses of a device.
    /// # Errors
    /// The errno of the kernel.
    pub fn addresses(&self, index: i32) -> io::Result<Vec<Address>> {
        let mut tries = 1;
        let answers = loop {
            match self.ask(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; ADDRESS]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted && tries < TRIES => tries += 1,
                asked => break asked?,
            }
        };
        let of_device = |body: &&Vec<u8>| array(body, 4).map(i32::from_ne_bytes) == Some(index);
        let new = answers
            .iter()
            .filter(|(kind, _)| *kind == libc::RTM_NEWADDR);
        let bodies = new.map(|(_, body)| body).filter(of_device);
        bodies
            .map(|body| address(body).ok_or_else(cut_short))
            .collect()
    }

    /// Moves a device into another network namespace, where it has this name, is down and has no
    /// addresses; the rest of it stays as it is.
    /// # Errors
    /// `EEXIST` if the name is taken there, `EINVAL` for a device that the kernel does not move.
    pub fn give(&self, index: i32, netns: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let mut request = device_message(index, 0, 0);
        push(&mut request, libc::IFLA_IFNAME, &with_nul(name));
        let netns = netns.as_raw_fd().to_ne_bytes();
        push(&mut request, libc::IFLA_NET_NS_FD, &netns);
        self.ask(libc::RTM_SETLINK, 0, &request).map(drop)
    }

    /// Sets a device up.
    /// # Errors
    /// The errno of the kernel or of the device's driver.
    pub fn set_up(&self, index: i32) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        self.ask(libc::RTM_SETLINK, 0, &device_message(index, up, up))
            .map(drop)
    }

    /// Adds an address to a device.
    /// # Errors
    /// `EEXIST` if it has it.
    pub fn add_address(&self, index: i32, address: &Address) -> io::Result<()> {
        let flags = address.flags & ASKED;
        let mut request = vec![address.family, address.prefix, 0, address.scope];
        request.extend(index.to_ne_bytes());
        for (kind, value) in &address.attributes {
            push(&mut request, *kind, value);
        }
        push(&mut request, libc::IFA_FLAGS, &flags.to_ne_bytes());
        self.ask(
            libc::RTM_NEWADDR,
            libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            &request,
        )
        .map(drop)
    }

    /// Sends a request and takes all answers to it: type and body of each.
    fn ask(&self, kind: u16, flags: i32, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags as u16).to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; MAX_ANSWER];
        loop {
            let (_, length) = retry(|| recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC))?;
            let packet = buffer.get(..length).ok_or_else(cut_short)?;
            if take(packet, sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Takes the messages of a packet that answer `sequence`; true after the last one.
fn take(mut packet: &[u8], sequence: u32, to: &mut Vec<(u16, Vec<u8>)>) -> io::Result<bool> {
    while !packet.is_empty() {
        let length = array(packet, 0).map(u32::from_ne_bytes);
        let length = length.ok_or_else(cut_short)? as usize;
        let message = packet.get(..length).ok_or_else(cut_short)?;
        let body = message.get(HEADER..).ok_or_else(cut_short)?;
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
        if array(message, 8).map(u32::from_ne_bytes) != Some(sequence) {
            continue;
        }
        let kind = u16::from_ne_bytes(array(message, 4).ok_or_else(cut_short)?);
        let flags = u16::from_ne_bytes(array(message, 6).ok_or_else(cut_short)?);
        if i32::from(flags) & libc::NLM_F_DUMP_INTR != 0 {
            return Err(Errno::INTR.into());
        }
        if i32::from(kind) == libc::NLMSG_ERROR || i32::from(kind) == libc::NLMSG_DONE {
            // A negative errno; 0 is an acknowledgement.
            let code = i32::from_ne_bytes(array(body, 0).ok_or_else(cut_short)?);
            return match code {
                0 => Ok(true),
                code => Err(io::Error::from_raw_os_error(-code)),
            };
        }
        to.push((kind, body.to_vec()));
    }
    Ok(false)
}

fn address(body: &[u8]) -> Option<Address> {
    let [family, prefix, flags, scope] = array(body, 0)?;
    let mut address = Address {
        family,
        prefix,
        scope,
        flags: u32::from(flags),
        attributes: Vec::new(),
    };
    let mut rest = body.get(ADDRESS..)?;
    while rest.len() >= ATTRIBUTE {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let kind = u16::from_ne_bytes(array(rest, 2)?);
        let value = rest.get(ATTRIBUTE..length)?;
        match kind {
            // All bits, of which the header has those of one byte.
            libc::IFA_FLAGS => address.flags = u32::from_ne_bytes(array(value, 0)?),
            libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST => {
                address.attributes.push((kind, value.to_vec()));
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(address)
}

/// `struct ifinfomsg`
fn device_message(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(DEVICE);
    message.extend([libc::AF_UNSPEC as u8, 0, 0, 0]);
    message.extend(index.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(change.to_ne_bytes());
    message
}

/// Appends a `struct rtattr`, padded.
fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

fn with_nul(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "an answer of rtnetlink is cut short",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_with_its_addresses_and_nothing_else_of_that_name() {
        let route = Route::open().unwrap();
        let lo = route.device("lo").unwrap();
        assert_eq!(lo.index, 1);
        let addresses = route.addresses(lo.index).unwrap();
        assert!(
            addresses
                .iter()
                .all(|a| a.scope == libc::RT_SCOPE_HOST && !a.is_global())
        );
        let none = route.device("no-such-device").unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn an_answer_that_is_cut_short_is_an_error() {
        let mut ack = Vec::new();
        for word in [20, libc::NLMSG_ERROR as u32, 7, 0, 0] {
            ack.extend(u32::to_ne_bytes(word));
        }
        let mut answers = Vec::new();
        assert!(take(&ack, 7, &mut answers).unwrap());
        assert!(!take(&ack, 8, &mut answers).unwrap());
        for length in 1..ack.len() {
            assert!(take(&ack[..length], 7, &mut answers).is_err(), "{length}");
        }
        let endless = u32::to_ne_bytes(0).repeat(5);
        assert!(take(&endless, 0, &mut answers).is_err());
        assert!(address(&[0; ADDRESS + ATTRIBUTE]).is_none());
    }
}
