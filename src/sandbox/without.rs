//! Restrictions that a test has turned off, to show an attack working where just one defence is missing.
//!
//! `DERRICK_TEST_WITHOUT`, a variable of the provider's environment, lists them: `seccomp,landlock`. Only
//! a build with debug assertions knows it; in any other `Without` is empty, and nothing can be in it.

use serde::{Deserialize, Serialize};

use super::Failure;
#[cfg(debug_assertions)]
use super::Step;

#[cfg(debug_assertions)]
const VARIABLE: &str = "DERRICK_TEST_WITHOUT";

/// What can be turned off, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restriction {
    /// Dropping capabilities, from every set.
    Capabilities,
    /// Hiding parts of `/proc` and `/sys`.
    HiddenPaths,
    /// A session keyring of the sandbox's own.
    Keyring,
    /// The landlock domain.
    Landlock,
    /// Refusing device nodes on the overlays.
    Nodev,
    /// What execve(2) adds to a process; landlock and seccomp need it, and are to be off as well.
    NoNewPrivs,
    /// Ignoring setuid bits on the overlays.
    Nosuid,
    /// Init's being out of reach for processes of the same user.
    NotDumpable,
    /// Being the kernel's first choice when memory is short.
    OomScore,
    /// Making parts of `/proc` read-only.
    ReadOnlyPaths,
    /// The resource limits of every process.
    Rlimits,
    /// The filters of system calls.
    Seccomp,
    /// `max_user_namespaces` of 0.
    UserNamespaces,
}

/// The restrictions that are off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Without {
    #[cfg(debug_assertions)]
    off: std::collections::BTreeSet<Restriction>,
}

#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Without>() == 0);

#[cfg(debug_assertions)]
impl Without {
    /// What the environment of this process asks for.
    ///
    /// # Errors
    /// A word that is no restriction.
    pub fn asked() -> Result<Self, Failure> {
        let value = std::env::var_os(VARIABLE).unwrap_or_default();
        let value = value.to_string_lossy();
        let restriction = |word: &str| {
            serde_json::from_value(word.into())
                .map_err(|error| Failure::new(Step::Process, format!("{VARIABLE}: {error}")))
        };
        let words = value.split(',').filter(|word| !word.is_empty());
        let off = words.map(restriction).collect::<Result<_, _>>()?;
        Ok(Self { off })
    }

    /// Whether `restriction` is off.
    #[must_use]
    pub fn has(&self, restriction: Restriction) -> bool {
        self.off.contains(&restriction)
    }

    /// What is off, for people; nothing where all is in force.
    #[must_use]
    pub fn weaker(&self) -> Option<String> {
        let off = serde_json::to_string(&self.off).unwrap_or_default();
        (!self.off.is_empty()).then(|| format!("{VARIABLE} turns off {off}"))
    }
}

impl Without {
    /// Does what enforces `restriction`, unless it is off.
    ///
    /// # Errors
    /// Those of `enforce`.
    pub fn unless_off<T: Default>(
        &self,
        restriction: Restriction,
        enforce: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.has(restriction) {
            Ok(T::default())
        } else {
            enforce()
        }
    }
}

#[cfg(not(debug_assertions))]
#[expect(missing_docs, reason = "as above: nothing is ever off")]
impl Without {
    pub fn asked() -> Result<Self, Failure> {
        Ok(Self {})
    }

    #[must_use]
    pub fn has(&self, _: Restriction) -> bool {
        false
    }

    #[must_use]
    pub fn weaker(&self) -> Option<String> {
        None
    }
}
