//! Who asks: what shares are counted by.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::http::Extensions;

use crate::idle::OpenRequests;

/// A client's name. Processes of this machine are told apart by their connections, those of others
/// by their addresses: who could open many connections would otherwise have as many shares. Of IPv6 the
/// network of 64 bits counts, all of whose addresses one machine may have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(Arc<str>);

impl Client {
    /// A peer of which nothing is known but its address.
    pub fn at(peer: SocketAddr) -> Self {
        match peer.ip().to_canonical() {
            ip if ip.is_loopback() => Self(peer.to_string().into()),
            IpAddr::V4(ip) => Self(ip.to_string().into()),
            IpAddr::V6(ip) => {
                let network = Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64);
                Self(format!("{network}/64").into())
            }
        }
    }

    /// One that showed who it is, by this name.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Who sent a request, by what was found out on its way in.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Peer>().map_or_else(Self::unknown, |peer| peer.client.clone())
    }

    /// One whose connection said nothing of itself.
    pub fn unknown() -> Self {
        Self("unknown".into())
    }
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who is at its other end.
    pub client: Client,
    /// Whether it showed a certificate of the authority clients' must come from.
    pub certified: bool,
    /// The requests open on it.
    pub requests: OpenRequests,
}

impl Default for Peer {
    /// Of a connection that nothing is known of.
    fn default() -> Self {
        let requests = OpenRequests::new(tokio::time::Instant::now());
        Self { client: Client::unknown(), certified: false, requests }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_one_share_and_processes_of_this_one_theirs() {
        let name = |peer: &str| Client::at(peer.parse().unwrap()).to_string();
        assert_eq!(name("10.0.0.7:5000"), "10.0.0.7");
        assert_eq!(name("[::ffff:10.0.0.7]:5000"), "10.0.0.7");
        assert_eq!(name("[2001:db8:0:7::1]:5000"), "2001:db8:0:7::/64");
        assert_eq!(name("[2001:db8:0:7:ffff::2]:6000"), "2001:db8:0:7::/64");
        assert_eq!(name("127.0.0.1:5000"), "127.0.0.1:5000");
        assert_eq!(name("[::1]:5000"), "[::1]:5000");
    }
}
