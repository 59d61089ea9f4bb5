//! The machine that runs seccomp filters, as the kernel has it: classic BPF over `struct seccomp_data`.
//!
//! So that a test sees what a filter answers on any architecture, to calls that no kernel has yet, with no
//! process that has to make them. What the filters here are made of is understood and nothing else.

use seccompiler::sock_filter;

use super::calls::Architecture;
use super::{SeccompAnswer, audit_number};

/// A system call as a filter sees it: `struct seccomp_data` of `linux/seccomp.h`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    /// `AUDIT_ARCH_*`.
    pub(super) architecture: u32,
    pub(super) number: u32,
    pub(super) arguments: [u64; 6],
}

impl Event {
    pub(super) fn new(architecture: Architecture, number: u32, arguments: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        Self {
            architecture: audit_number(architecture),
            number,
            arguments: all,
        }
    }

    /// The word at `offset`; both architectures have the low half of a long word first.
    fn word(&self, offset: u32) -> u32 {
        const ARGUMENTS: u32 = 16;
        match offset {
            0 => self.number,
            4 => self.architecture,
            ARGUMENTS..64 => {
                let argument = self.arguments[(offset - ARGUMENTS) as usize / 8];
                let halves = [argument as u32, (argument >> 32) as u32];
                halves[(offset - ARGUMENTS) as usize / 4 % 2]
            }
            other => panic!("no filter looks at offset {other}"),
        }
    }
}

/// The answer of all `programs`, the first installed first: the strictest, and among answers that are
/// as strict the newest filter's (`seccomp_run_filters`).
pub(super) fn answer_of(programs: &[Vec<sock_filter>], event: &Event) -> SeccompAnswer {
    let strictness = |answer: SeccompAnswer| (answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
    programs
        .iter()
        .rev()
        .map(|program| run(program, event))
        // The first of those that are equal.
        .min_by_key(|answer| strictness(*answer))
        .expect("there is a filter")
}

/// Runs one program. Whatever the kernel's checker (`bpf_check_classic`) refuses is a panic.
fn run(program: &[sock_filter], event: &Event) -> SeccompAnswer {
    assert!(program.len() <= 4096, "{} instructions", program.len());
    let (mut at, mut loaded) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at].clone();
        at += 1;
        let branch = |met: bool| usize::from(if met { jt } else { jf });
        match code {
            0x20 => loaded = event.word(k),
            0x54 => loaded &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(loaded == k),
            0x25 => at += branch(loaded > k),
            0x35 => at += branch(loaded >= k),
            0x45 => at += branch(loaded & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}
