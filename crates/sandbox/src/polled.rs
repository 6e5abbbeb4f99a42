//! Anything that has a descriptor, as the runtime's poll set wants it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, io};

/// Puts the descriptor of `value` into the poll set of the runtime, for reading.
/// # Errors
/// The errno of epoll_ctl(2).
pub(crate) fn poll<T: AsFd>(value: T) -> Result<AsyncFd<Polled<T>>, Error> {
    poll_for(value, Interest::READABLE)
}

/// The same for another direction.
/// # Errors
/// The errno of epoll_ctl(2).
pub(crate) fn poll_for<T: AsFd>(value: T, interest: Interest) -> Result<AsyncFd<Polled<T>>, Error> {
    // Deprecated for values that give another number each time; its successor is unsafe. Every
    // value here owns its descriptor and never changes it.
    #[allow(deprecated)]
    AsyncFd::with_interest(Polled(value), interest).map_err(io("epoll_ctl()"))
}

/// A value whose descriptor is polled: the runtime asks for the number.
#[derive(Debug)]
pub(crate) struct Polled<T>(pub(crate) T);

impl<T: AsFd> AsRawFd for Polled<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl<T: AsFd> AsFd for Polled<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
