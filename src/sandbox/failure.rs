//! Which step of making a sandbox failed, and with what errno.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// A step of making a sandbox, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Sockets and processes to build it with.
    Process,
    /// The user namespace and its id maps.
    UserNamespace,
    /// The directories that the uppers are in.
    Upper,
    /// The overlay filesystems.
    Overlay,
    /// The other namespaces.
    Namespaces,
    /// The session keyring.
    Keyring,
    /// `/proc`, `/sys`, `/dev` and what covers them.
    Mounts,
    /// Leaving the host's root.
    Pivot,
    /// The loopback interface.
    Network,
    /// The hostname.
    Hostname,
    /// Resource limits.
    Limits,
    /// Capability sets.
    Capabilities,
    /// The landlock domain.
    Landlock,
    /// The seccomp filters.
    Seccomp,
    /// Starting to serve.
    Serve,
}

/// A failed step. It travels from the child to the provider.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
pub struct Failure {
    /// Which step.
    pub step: Step,
    /// The kernel's errno; 0 if the cause is none of the kernel's.
    pub errno: i32,
    /// What was attempted on what, and what to do where the host is at fault.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl Failure {
    /// A failure that has no errno.
    #[must_use]
    pub fn new(step: Step, detail: impl Into<String>) -> Self {
        Self {
            step,
            errno: 0,
            detail: detail.into(),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure.errno {
            0 => Self::other(failure),
            errno => Self::from_raw_os_error(errno),
        }
    }
}

/// Says at which step, and doing what, a call failed.
pub trait At<T> {
    /// Turns an error into a `Failure`; `attempt` is a phrase such as `mounting the overlay`.
    ///
    /// # Errors
    /// The failure, if there was an error.
    fn at(self, step: Step, attempt: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, attempt: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            match error.raw_os_error() {
                Some(errno) => Failure {
                    step,
                    errno,
                    detail: attempt.to_string(),
                },
                None => Failure::new(step, format!("{attempt}: {error}")),
            }
        })
    }
}
