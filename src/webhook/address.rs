//! Which addresses a webhook may be sent to.
//!
//! Invariant: the address that is checked is the one that is connected to. A name is resolved once
//! for each connection, so a name server that answers differently the second time achieves nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPolicy {
    /// Addresses of the internet alone.
    Public,
    /// This device alone: the URL names it.
    Loopback,
    /// Addresses of the internet, of private networks and of this device.
    Private,
}

impl AddressPolicy {
    pub fn allows(self, address: IpAddr) -> bool {
        let address = embedded(address);
        match self {
            Self::Public => is_public(address),
            Self::Loopback => address.is_loopback(),
            Self::Private => is_host(address),
        }
    }
}

/// Returns the IPv4 address that an IPv6 address stands for: mapped (RFC 4291), by NAT64 (RFC 6052) or
/// by 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 =
        |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        // Obsolete; `::` and `::1` are themselves.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        _ => address,
    }
}

/// Whether it can be the address of one computer.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => !it.is_unspecified() && !it.is_multicast() && it.octets()[0] < 240,
        IpAddr::V6(it) => !it.is_unspecified() && !it.is_multicast(),
    }
}

fn is_public(address: IpAddr) -> bool {
    is_host(address)
        && match address {
            IpAddr::V4(it) => is_public_v4(it),
            IpAddr::V6(it) => is_public_v6(it),
        }
}

/// By the registry of special-purpose addresses (RFC 6890).
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (169, 254, _)
            | (192, 168, _)
            | (192, 0, 0 | 2)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (100, 64..=127, _)
            | (172, 16..=31, _)
    );
    !is_special
}

/// The same for IPv6: only what is assigned to the internet (2000::/3), without what is set aside in
/// it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_documentation = (first, second) == (0x2001, 0xdb8) || first == 0x3fff;
    // Teredo and other protocols.
    let is_protocol = first == 0x2001 && second < 0x200;
    (0x2000..0x4000).contains(&first) && !is_documentation && !is_protocol
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: AddressPolicy, address: &str, expected: bool) {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(policy.allows(address), expected, "{policy:?} {address}");
    }

    #[test]
    fn private_addresses_are_not_public() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.8.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.178.20",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "ff02::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "::7f00:1",
            "2002:c0a8:101::1",
            "2001:db8::1",
            "2001::1",
            "64:ff9b:1::1",
        ] {
            check(AddressPolicy::Public, address, false);
        }
        for address in [
            "1.1.1.1",
            "9.9.9.9",
            "172.32.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2a00:1450:4001::1",
            "64:ff9b::101:101",
            "::ffff:1.1.1.1",
        ] {
            check(AddressPolicy::Public, address, true);
        }
    }

    #[test]
    fn policies_allow_what_they_name() {
        for (policy, address, expected) in [
            (AddressPolicy::Loopback, "127.0.0.1", true),
            (AddressPolicy::Loopback, "::1", true),
            (AddressPolicy::Loopback, "::ffff:127.0.0.1", true),
            (AddressPolicy::Loopback, "192.168.1.1", false),
            (AddressPolicy::Loopback, "1.1.1.1", false),
            (AddressPolicy::Private, "192.168.1.1", true),
            (AddressPolicy::Private, "fe80::1", true),
            (AddressPolicy::Private, "127.0.0.1", true),
            (AddressPolicy::Private, "1.1.1.1", true),
            (AddressPolicy::Private, "0.0.0.0", false),
            (AddressPolicy::Private, "224.0.0.1", false),
            (AddressPolicy::Private, "255.255.255.255", false),
            (AddressPolicy::Private, "ff02::1", false),
        ] {
            check(policy, address, expected);
        }
    }
}
