//! What is refused of calls that are let through: by their arguments.

use std::collections::BTreeMap;

use libc::c_int;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Work;
use super::calls::{Architecture, number};
use crate::sandbox::Profile;

/// Rules by a call's number; one that is met is enough.
pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What is refused: a filter's errno, and for which arguments.
pub(super) fn rules(
    profile: Profile,
    architecture: Architecture,
) -> Result<[(c_int, Rules); 3], seccompiler::Error> {
    Ok([
        (libc::EPERM, not_permitted(profile, architecture)?),
        (libc::EAFNOSUPPORT, families(architecture)?),
        (libc::EPROTONOSUPPORT, protocols(architecture)?),
    ])
}

/// `CLONE_NEW*` of clone(2) for mount, cgroup, UTS, IPC, user, pid and network namespaces.
const NAMESPACE_FLAGS: &[u64] = &[
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
];
/// Never let through, as nobody asks for it. A flag of unshare(2) alone: clone has the exit signal there.
const CLONE_NEWTIME: u64 = 0x80;
/// Makes a sibling instead of a child: it would not be below the leader of its exec.
const CLONE_PARENT: u64 = 0x8000;

/// Socket families that are let through: unix, IPv4, IPv6 and netlink.
const FAMILIES: &[u64] = &[
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// Protocols of IPv4 and IPv6 sockets that are let through: the default, ICMP, TCP, UDP, ICMPv6.
const PROTOCOLS: &[u64] = &[0, 1, 6, 17, 58];

/// Types of IPv4 and IPv6 sockets that are refused: those that reach SCTP or DCCP through the default
/// protocol, and `SOCK_PACKET`, by which the kernel takes IPv4 for packet sockets.
const TYPES: &[u64] = &[
    libc::SOCK_RDM as u64,
    libc::SOCK_SEQPACKET as u64,
    libc::SOCK_DCCP as u64,
    10,
];

/// Options of setsockopt(2) and getsockopt(2) with which the rules of packet filters are replaced and read:
/// `IPT_SO_SET_REPLACE`, `IPT_SO_SET_ADD_COUNTERS` and those of IPv6, which have the same numbers. Of version
/// 4 all from the first one on are filters', those of ARP, bridges and virtual servers among them; of IPv6
/// others follow.
const FILTER_OPTIONS: &[u64] = &[64, 65];
const IP: u64 = libc::IPPROTO_IP as u64;
const IPV6: u64 = libc::IPPROTO_IPV6 as u64;

/// Execution domains that programs ask for, and the question which one it is.
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

/// Allowed calls with arguments that are forbidden.
fn not_permitted(
    profile: Profile,
    architecture: Architecture,
) -> Result<Rules, seccompiler::Error> {
    let mut rules = Rules::new();
    let namespaces = match profile {
        Profile::Standard => NAMESPACE_FLAGS,
        Profile::Nested => &[],
    };
    rules.insert(
        number!(clone, architecture),
        any_bit(&[namespaces, &[CLONE_PARENT]].concat())?,
    );
    rules.insert(
        number!(unshare, architecture),
        any_bit(&[namespaces, &[CLONE_NEWTIME]].concat())?,
    );
    if profile == Profile::Nested {
        // Root of a network namespace of its own could use them.
        rules.insert(number!(setsockopt, architecture), setting_packet_filters()?);
        rules.insert(
            number!(getsockopt, architecture),
            packet_filters(&[IP, IPV6])?,
        );
    }
    // The kernel looks at the low 32 bits of a request alone: so does the filter.
    rules.insert(
        number!(ioctl, architecture),
        vec![
            rule(&[low_is(1, SeccompCmpOp::Eq, libc::TIOCSTI)?])?,
            rule(&[low_is(1, SeccompCmpOp::Eq, TIOCLINUX)?])?,
        ],
    );
    rules.insert(
        number!(personality, architecture),
        vec![rule(&none_of(0, PERSONALITIES)?)?],
    );
    // The leader of an exec adopts the orphans of its tree, so that a deadline finds them all.
    let subreaper = low_is(0, SeccompCmpOp::Eq, libc::PR_SET_CHILD_SUBREAPER as u64)?;
    let off = condition(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(number!(prctl, architecture), vec![rule(&[subreaper, off])?]);
    // Init has the ids of root inside, which alone would let its limits be changed.
    let init = low_is(0, SeccompCmpOp::Eq, 1_u64)?;
    rules.insert(number!(prlimit64, architecture), vec![rule(&[init])?]);
    Ok(rules)
}

/// What fcntl(2) is asked for: to duplicate, and what there is. By others the kernel would send signals.
const FCNTL: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
];

/// The first advice of madvise(2) that is about the memory of the machine: `MADV_HWPOISON`.
const OF_THE_MACHINE: u64 = 100;

/// `FICLONE` of ioctl_ficlone(2).
const FICLONE: u64 = 0x4004_9409;

/// What is refused to a process of this id that does this work.
pub(super) fn of_work(
    work: Work,
    own: u32,
    architecture: Architecture,
) -> Result<Rules, seccompiler::Error> {
    let executable = || {
        let executable = libc::PROT_EXEC as u64;
        let masked = SeccompCmpOp::MaskedEq(executable);
        rule(&[condition(2, SeccompCmpArgLen::Qword, masked, executable)?])
    };
    let mut rules = Rules::from([
        (number!(mmap, architecture), vec![executable()?]),
        (number!(mprotect, architecture), vec![executable()?]),
        (
            number!(fcntl, architecture),
            vec![rule(&none_of(1, FCNTL)?)?],
        ),
        (
            number!(madvise, architecture),
            vec![rule(&[low_is(2, SeccompCmpOp::Ge, OF_THE_MACHINE)?])?],
        ),
        // abort(3), by which it is told that there was no memory.
        (
            number!(tgkill, architecture),
            vec![rule(&[low_is(0, SeccompCmpOp::Ne, own)?])?],
        ),
    ]);
    if work == Work::Copying {
        rules.insert(
            number!(ioctl, architecture),
            vec![rule(&none_of(1, &[FICLONE])?)?],
        );
    }
    Ok(rules)
}

/// `TIOCLINUX` of ioctl_console(2), which the libc crate has for some targets only.
const TIOCLINUX: u64 = 0x541c;

fn families(architecture: Architecture) -> Result<Rules, seccompiler::Error> {
    let unlisted = rule(&none_of(0, FAMILIES)?)?;
    Ok([
        (number!(socket, architecture), vec![unlisted.clone()]),
        (number!(socketpair, architecture), vec![unlisted]),
    ]
    .into())
}

fn setting_packet_filters() -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let mut rules = packet_filters(&[IPV6])?;
    rules.push(rule(&[
        low_is(1, SeccompCmpOp::Eq, IP)?,
        low_is(2, SeccompCmpOp::Ge, FILTER_OPTIONS[0])?,
    ])?);
    Ok(rules)
}

fn packet_filters(levels: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let pairs = levels
        .iter()
        .flat_map(|level| FILTER_OPTIONS.iter().map(move |option| (*level, *option)));
    pairs
        .map(|(level, option)| {
            rule(&[
                low_is(1, SeccompCmpOp::Eq, level)?,
                low_is(2, SeccompCmpOp::Eq, option)?,
            ])
        })
        .collect()
}

fn protocols(architecture: Architecture) -> Result<Rules, seccompiler::Error> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET as u64, libc::AF_INET6 as u64] {
        let is_family = || low_is(0, SeccompCmpOp::Eq, family);
        let mut unlisted = none_of(2, PROTOCOLS)?;
        unlisted.push(is_family()?);
        rules.push(rule(&unlisted)?);
        for kind in TYPES {
            let is_kind = condition(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(0xf),
                *kind,
            )?;
            rules.push(rule(&[is_family()?, is_kind])?);
        }
    }
    // Of netlink, routes alone: neither netfilter nor IPsec.
    let netlink = low_is(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?;
    let other = low_is(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64)?;
    rules.push(rule(&[netlink, other])?);
    Ok([(number!(socket, architecture), rules)].into())
}

fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule, seccompiler::Error> {
    Ok(SeccompRule::new(conditions.to_vec())?)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::Error> {
    Ok(SeccompCondition::new(argument, length, operator, value)?)
}

fn low_is(
    argument: u8,
    operator: SeccompCmpOp,
    value: impl Into<u64>,
) -> Result<SeccompCondition, seccompiler::Error> {
    condition(argument, SeccompCmpArgLen::Dword, operator, value.into())
}

/// The first argument has any of these.
fn any_bit(bits: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    bits.iter()
        .map(|bit| {
            let masked = SeccompCmpOp::MaskedEq(*bit);
            rule(&[condition(0, SeccompCmpArgLen::Qword, masked, *bit)?])
        })
        .collect()
}

fn none_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompCondition>, seccompiler::Error> {
    values
        .iter()
        .map(|value| low_is(argument, SeccompCmpOp::Ne, *value))
        .collect()
}
