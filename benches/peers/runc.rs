//! runc: a bundle with the host's `/usr` under an overlay, and every namespace that derrick makes.
//!
//! Not comparable: it has no daemon, so each job starts a Go program; as root it makes a cgroup in
//! every hierarchy, which it cannot be told not to; it has no landlock, and its seccomp filter is
//! left out. A reset is a teardown, a fresh upper and a create.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::contender::{Contender, Job, SHELL, Samples, run, succeed, version};
use super::support::{ENVIRONMENT, Scratch, time};

const NAME: &str = "runc";
/// Jobs of each kind in one round; few, since each takes long.
const BATCH: usize = 2;

/// What root inside is on the host where runc runs as root: an id that no account uses.
const UNUSED_ID: u32 = 0x6fff_0000;

/// Which version it is.
pub(crate) fn describe() -> String {
    version(NAME, "runc")
}

/// Two bundles, one whose process waits and one whose process is the command.
pub(crate) struct Runc {
    home: PathBuf,
    /// Also the name of its cgroup, which all containers of the host share.
    container: String,
    root_inside: u32,
    discarded: u32,
}

impl Runc {
    pub(crate) fn new(scratch: &Scratch) -> Self {
        let home = scratch.join(NAME);
        let user = rustix::process::geteuid().as_raw();
        let runc = Self {
            home,
            container: format!("derrick-bench-{}", std::process::id()),
            root_inside: if user == 0 { UNUSED_ID } else { user },
            discarded: 0,
        };
        runc.make_bundle("waiting", &["/bin/sleep", "infinity"]);
        runc.make_bundle("command", &SHELL);
        runc
    }

    fn make_bundle(&self, name: &str, program: &[&str]) {
        let bundle = self.home.join(name);
        let root = bundle.join("rootfs");
        for directory in ["usr", "proc", "sys", "dev", "tmp"] {
            std::fs::create_dir_all(root.join(directory)).expect("a bundle can be made");
        }
        let mut shown = Vec::new();
        for directory in ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt"] {
            let on_host = Path::new("/").join(directory);
            if let Ok(target) = std::fs::read_link(&on_host) {
                std::os::unix::fs::symlink(target, root.join(directory))
                    .expect("a bundle can be made");
            } else if on_host.is_dir() {
                std::fs::create_dir(root.join(directory)).expect("a bundle can be made");
                shown.push(on_host);
            }
        }
        let config = self.config(&bundle, program, &shown);
        std::fs::write(bundle.join("config.json"), config.to_string())
            .expect("a bundle can be made");
        self.make_upper(&bundle);
    }

    fn make_upper(&self, bundle: &Path) {
        for name in ["upper", "work"] {
            let path = bundle.join(name);
            std::fs::create_dir(&path).expect("an upper can be made");
            // Only root can, and only for root it is somebody else.
            let _ = chown(path, Some(self.root_inside), Some(self.root_inside));
        }
    }

    fn config(&self, bundle: &Path, program: &[&str], shown: &[PathBuf]) -> Value {
        let mount = |at: &str, kind: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
        let upper = format!("upperdir={}", bundle.join("upper").display());
        let work = format!("workdir={}", bundle.join("work").display());
        let overlay = [
            "lowerdir=/usr",
            &upper,
            &work,
            "userxattr",
            "nosuid",
            "nodev",
        ];
        let mut mounts = vec![
            mount("/usr", "overlay", &overlay),
            mount("/proc", "proc", &[]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=1m"]),
            mount(
                "/dev/pts",
                "devpts",
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                ],
            ),
            mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
        ];
        for directory in shown {
            mounts.push(json!({
                "destination": directory, "type": "bind", "source": directory, "options": ["rbind", "ro"],
            }));
        }
        let map = json!([{
            "containerID": 0,
            "hostID": self.root_inside,
            "size": if self.root_inside == UNUSED_ID { 65_536 } else { 1 },
        }]);
        let namespaces = ["user", "mount", "pid", "network", "ipc", "uts", "cgroup"]
            .map(|kind| json!({ "type": kind }));
        let kept = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
        ];
        json!({
            "ociVersion": "1.0.2",
            "hostname": "bench",
            "root": { "path": "rootfs" },
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": program,
                "env": ENVIRONMENT.map(|(name, value)| format!("{name}={value}")),
                "cwd": "/",
                "noNewPrivileges": true,
                "capabilities": { "bounding": kept, "effective": kept, "permitted": kept },
            },
            "mounts": mounts,
            "linux": {
                "namespaces": namespaces,
                "uidMappings": map,
                "gidMappings": map,
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(NAME);
        command
            .arg("--root")
            .arg(self.home.join("run"))
            .args(arguments);
        command
    }

    fn start(&self) -> Command {
        let mut command = self.command(&["run", "--detach", "--bundle"]);
        command.arg(self.home.join("waiting")).arg(&self.container);
        command
    }

    fn end(&self) -> Command {
        self.command(&["delete", "--force", &self.container])
    }

    fn run_one_command(&self) -> Command {
        let mut command = self.command(&["run", "--bundle"]);
        command.arg(self.home.join("command")).arg(&self.container);
        command
    }

    /// Puts what was written out of the way, as derrick does before it removes it in the background.
    fn renew_upper(&mut self) {
        let bundle = self.home.join("waiting");
        self.discarded += 1;
        for name in ["upper", "work"] {
            let discarded = self
                .home
                .join(format!("discarded-{}-{name}", self.discarded));
            std::fs::rename(bundle.join(name), discarded).expect("the upper can be renamed");
        }
        self.make_upper(&bundle);
    }
}

impl Contender for Runc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn try_once(&mut self) -> Result<(), String> {
        run(&mut self.run_one_command())
    }

    fn round(&mut self, samples: &mut Samples) {
        for _ in 0..BATCH {
            let (created, ()) = time(|| succeed(&mut self.start()));
            let mut exec = self.command(&["exec", &self.container]);
            let (exec, ()) = time(|| succeed(exec.args(SHELL)));
            let (reset, ()) = time(|| {
                succeed(&mut self.end());
                self.renew_upper();
                succeed(&mut self.start());
            });
            let (ended, ()) = time(|| succeed(&mut self.end()));
            samples.add(Job::First, NAME, created + exec);
            samples.add(Job::Exec, NAME, exec);
            samples.add(Job::Reset, NAME, reset);
            samples.add(Job::Teardown, NAME, ended);
            let (whole, ()) = time(|| succeed(&mut self.run_one_command()));
            samples.add(Job::Whole, NAME, whole);
        }
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        // Ended already unless the bench panicked.
        let _ = run(&mut self.end());
    }
}
