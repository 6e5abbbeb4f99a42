//! Where a metric server listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Error;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `127.0.0.1:9469`, `[::1]:9469`
    Tcp(SocketAddr),
    /// `/run/berm-metrics.sock`
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let tcp = text.parse().map(Self::Tcp);
        tcp.map_err(|_| Error::Address { text: text.into() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_with_a_port_or_an_absolute_path() {
        for good in ["127.0.0.1:9469", "[::1]:1", "/run/x.sock"] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in ["", "9469", "localhost:1", "run/x", "1.2.3.4"] {
            let e = bad.parse::<Address>().unwrap_err();
            assert!(e.to_string().starts_with(&format!("{bad:?}")), "{e}");
        }
    }
}
