//! The system calls that a sandbox reaches, seccomp(2).
//!
//! Everything that is not listed gives `ENOSYS`, so that what a later kernel adds is off and programs
//! fall back; what is known to be dangerous gives `EPERM`, so that programs say what happened. Among
//! filters that all answer with an errno, the newest filter's is taken. seccompiler has one answer
//! for each filter and kills a process of a foreign architecture; hence a filter for each errno.
//!
//! The filter by number is a search over runs of numbers instead, written here: when a filter is
//! installed the kernel walks it once for each number there is (`seccomp_cache_prepare`), which for
//! the list that seccompiler makes, one comparison after another, takes most of a millisecond.
//!
//! `calls` has the lists; `arguments` what is refused of calls that are listed. The architecture is a
//! parameter, so that a test on one sees what the other gets.

mod arguments;
mod calls;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, sock_filter};

use super::{Failure, Profile, Step};
use arguments::Rules;
use calls::{
    ALLOWED, ALLOWED_ON_X86_64, ALLOWED_UNDER_TWO_NAMES, Architecture, COPYING, Call,
    FOR_NAMESPACES, FORBIDDEN, FORBIDDEN_ON_X86_64, READING,
};

/// A compiled profile: built once, installed in each sandbox. The first program is installed first; the last one
/// decides by number, and what it refuses none of the others lets through.
#[derive(Debug, Clone)]
pub struct Filters {
    programs: Vec<BpfProgram>,
}

/// What a child of the spawner's does with what workspaces wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It looks at files of open directories, and writes to what is open already.
    Reading,
    /// It makes others of them.
    Copying,
}

impl Filters {
    /// Compiles `profile`.
    ///
    /// # Errors
    /// A failure if it cannot be compiled.
    pub fn compile(profile: Profile) -> Result<Self, Failure> {
        let failed = |error: String| {
            Failure::new(
                Step::Seccomp,
                format!("compiling the {profile:?} profile: {error}"),
            )
        };
        let architecture = Architecture::native()
            .ok_or_else(|| failed(format!("there is none for {}", std::env::consts::ARCH)))?;
        Self::compile_for(profile, architecture).map_err(|error| failed(error.to_string()))
    }

    fn compile_for(
        profile: Profile,
        architecture: Architecture,
    ) -> Result<Self, seccompiler::Error> {
        let mut programs = Vec::new();
        for (errno, rules) in arguments::rules(profile, architecture)? {
            programs.push(program_by_arguments(rules, errno, architecture)?);
        }
        let runs = runs(&answers(profile), NO_SUCH_CALL, architecture);
        programs.push(program_by_number(&runs, architecture));
        Ok(Self { programs })
    }

    /// Compiles what a process of the id `own` may call that does this `work` and no other. Everything else gives
    /// `EPERM`: it is no program that would look for another way.
    ///
    /// # Errors
    /// A failure if it cannot be compiled.
    pub fn of_work(work: Work, own: u32) -> Result<Self, Failure> {
        let failed = |error: String| {
            let detail = format!("compiling the filters for {work:?}: {error}");
            Failure::new(Step::Seccomp, detail)
        };
        let architecture = Architecture::native()
            .ok_or_else(|| failed(format!("there is none for {}", std::env::consts::ARCH)))?;
        Self::of_work_for(work, own, architecture).map_err(|error| failed(error.to_string()))
    }

    fn of_work_for(
        work: Work,
        own: u32,
        architecture: Architecture,
    ) -> Result<Self, seccompiler::Error> {
        let rules = arguments::of_work(work, own, architecture)?;
        let runs = runs(work.answers(), NOT_PERMITTED, architecture);
        Ok(Self {
            programs: vec![
                program_by_arguments(rules, libc::EPERM, architecture)?,
                program_by_number(&runs, architecture),
            ],
        })
    }

    /// Binds the calling process and all that it starts, as far as arguments are looked at: nothing that
    /// becoming a sandbox takes is refused by that.
    ///
    /// # Errors
    /// The failed step.
    pub fn install_ahead(&self) -> Result<(), Failure> {
        let last = self.programs.len().saturating_sub(1);
        self.programs[..last].iter().try_for_each(apply)
    }

    /// Binds the calling process and all that it starts in every other way as well; how many filters there are.
    ///
    /// # Errors
    /// The failed step.
    pub fn install(&self) -> Result<u32, Failure> {
        self.programs.last().map_or(Ok(()), apply)?;
        Ok(u32::try_from(self.programs.len()).unwrap_or(u32::MAX))
    }
}

fn apply(program: &BpfProgram) -> Result<(), Failure> {
    seccompiler::apply_filter(program)
        .map_err(|error| Failure::new(Step::Seccomp, format!("installing a filter: {error}")))
}

/// What is answered to the system calls from `first` on, up to the next run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u32,
    answer: SeccompAnswer,
}

/// A filter's return value, seccomp(2).
type SeccompAnswer = u32;

const ALLOW: SeccompAnswer = libc::SECCOMP_RET_ALLOW;
const NO_SUCH_CALL: SeccompAnswer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
const NOT_PERMITTED: SeccompAnswer = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();

/// Each table with what is answered to its calls.
fn answers(profile: Profile) -> [(SeccompAnswer, &'static [Call]); 6] {
    let for_namespaces = match profile {
        Profile::Standard => NOT_PERMITTED,
        Profile::Nested => ALLOW,
    };
    [
        (ALLOW, ALLOWED),
        (ALLOW, ALLOWED_UNDER_TWO_NAMES),
        (ALLOW, ALLOWED_ON_X86_64),
        (NOT_PERMITTED, FORBIDDEN),
        (NOT_PERMITTED, FORBIDDEN_ON_X86_64),
        (for_namespaces, FOR_NAMESPACES),
    ]
}

impl Work {
    /// The same for who does this alone.
    fn answers(self) -> &'static [(SeccompAnswer, &'static [Call])] {
        let all = &[
            (ALLOW, READING),
            (ALLOW, ALLOWED_UNDER_TWO_NAMES),
            (ALLOW, COPYING),
        ];
        match self {
            Self::Reading => &all[..2],
            Self::Copying => all,
        }
    }
}

/// Every number there can be, in runs of one answer. x32's numbers have bit 30 and fall in the last.
fn runs(
    answers: &[(SeccompAnswer, &[Call])],
    unlisted: SeccompAnswer,
    architecture: Architecture,
) -> Vec<Run> {
    let listed: BTreeMap<u32, SeccompAnswer> = answers
        .iter()
        .flat_map(|(answer, calls)| {
            let numbers = calls.iter().filter_map(|call| call.number(architecture));
            numbers.map(|number| (number, *answer))
        })
        .collect();
    let mut runs = vec![Run {
        first: 0,
        answer: unlisted,
    }];
    let mut add = |first, answer| match runs.last_mut() {
        Some(last) if last.answer == answer => {}
        Some(last) if last.first == first => last.answer = answer,
        _ => runs.push(Run { first, answer }),
    };
    let mut next = 0;
    for (number, answer) in listed {
        if number > next {
            add(next, unlisted);
        }
        add(number, answer);
        next = number + 1;
    }
    add(next, unlisted);
    runs
}

/// `AUDIT_ARCH_*` of `linux/audit.h`.
fn audit_number(architecture: Architecture) -> u32 {
    match architecture {
        Architecture::X86_64 => 0xc000_003e,
        Architecture::Aarch64 => 0xc000_00b7,
    }
}

/// Where `struct seccomp_data` of `linux/seccomp.h` has the number and the architecture.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

fn program_by_number(runs: &[Run], architecture: Architecture) -> BpfProgram {
    let mut program = vec![
        load(ARCHITECTURE_AT),
        jump(libc::BPF_JEQ, audit_number(architecture), 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_AT),
    ];
    search(runs, &mut program);
    program
}

/// Appends a binary search for the run that the loaded number is in.
fn search(runs: &[Run], program: &mut BpfProgram) {
    let (below, from) = runs.split_at(runs.len() / 2);
    let Some(middle) = from.first() else { return };
    if below.is_empty() {
        program.push(answer(middle.answer));
        return;
    }
    // A conditional jump reaches 255 instructions, an unconditional one any: "from `middle` on" is
    // one instruction away, and itself jumps over what is below.
    program.push(jump(libc::BPF_JGE, middle.first, 0, 1));
    let over = program.len();
    program.push(jump(libc::BPF_JA, 0, 0, 0));
    search(below, program);
    program[over].k = u32::try_from(program.len() - over - 1).unwrap_or(u32::MAX);
    search(from, program);
}

fn load(at: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0)
}

fn jump(condition: u32, operand: u32, met: u8, not_met: u8) -> sock_filter {
    instruction(
        libc::BPF_JMP | condition | libc::BPF_K,
        operand,
        met,
        not_met,
    )
}

fn answer(answer: SeccompAnswer) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, answer, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Operation codes have 16 bits.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt, jf, k }
}

/// Answers `errno` where a rule is met.
fn program_by_arguments(
    rules: Rules,
    errno: libc::c_int,
    architecture: Architecture,
) -> Result<BpfProgram, seccompiler::Error> {
    let architecture = match architecture {
        Architecture::X86_64 => TargetArch::x86_64,
        Architecture::Aarch64 => TargetArch::aarch64,
    };
    let met = SeccompAction::Errno(errno.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, met, architecture)?.try_into()?)
}
