//! The provider's life: however it ends nothing is left running or mounted, and nothing acknowledged is lost.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::{
    Derrick, Launch, Lives, Mode, Scratch, descendants, entries, fixture, mode, mounts_below,
    open_files, succeed, wait_until_empty,
};

#[test]
fn sigterm_ends_the_provider_and_all_that_it_started() {
    let mut derrick = Derrick::on_host();
    for _ in 0..3 {
        derrick.create().keep_busy();
    }
    let lives = Lives::below(derrick.pid());
    assert!(lives.count() >= 3 * 3, "only {} processes", lives.count());
    let status = derrick.stop();
    assert_eq!(status.code(), Some(0), "{}", derrick.printed());
    lives.assert_gone();
    lives.assert_namespaces_gone();
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
}

#[test]
fn ctrl_c_ends_the_provider_and_all_that_it_started() {
    let mut derrick = Derrick::on_host();
    derrick.create().keep_busy();
    let lives = Lives::below(derrick.pid());
    let status = derrick.interrupt();
    assert!(matches!(status.code(), Some(0 | 130)), "{status}");
    lives.assert_gone();
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(process: i32) -> Self {
        let process = Pid::from_raw(process);
        kill(process, Signal::SIGSTOP).expect("it can be signalled");
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Whoever killed it was quicker.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn ids_are_free_when_the_last_process_is_gone_however_the_provider_ends() {
    if mode() != Mode::Root {
        // All sandboxes of an ordinary user have the same ids.
        return;
    }
    let config = json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "pool": { "size": 0 },
    });
    let mut first = Derrick::start(config.clone());
    let workspace = first.create();
    workspace.ok("echo text > /file");
    let lives = Lives::below(first.pid());
    let all = descendants(first.pid());
    let is_init = |process: &&i32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm"));
        name.is_ok_and(|name| name.trim() == "derrick-init")
    };
    let init = *all.iter().find(is_init).expect("it has an init");
    let _init = Stopped::stop(init);
    let spawner = Stopped::stop(all[0]);
    first.kill9();
    assert!(Path::new(&format!("/proc/{init}")).exists());

    // Another derrick, with a copy of these files, has to have the ids that they are written with.
    let scratch = Scratch::new();
    let state = scratch.join("state");
    fs::create_dir(&state).expect("a scratch directory");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("its owner");
    for part in ["layers", "workspaces", "present.json"] {
        let from = first.state().join(part);
        succeed(Command::new("cp").arg("-a").args([from, state.join(part)]));
    }
    let second = Launch::new(config).state(&state).start();
    let workspace = second.api.workspace(&workspace.id);
    let line = json!({ "cmd": "cat /file" });
    let path = format!("/workspaces/{}/cmd_with_output", workspace.id);
    let refused = second.api.post(&path, &line);
    let detail = refused.problem(500)["detail"].to_string();
    assert!(detail.contains("is in use by another derrick"), "{detail}");

    // It kills what stands still, and ends.
    drop(spawner);
    lives.assert_gone();
    assert_eq!(workspace.ok("cat /file"), "text\n");
}

#[test]
fn a_signal_during_a_long_start_ends_it_cleanly() {
    let scratch = Scratch::new();
    // Minutes of work, in few bytes.
    let archive = {
        let sink = zstd::Encoder::new(Vec::new(), 1).expect("memory takes everything");
        let mut archive = tar::Builder::new(sink);
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        for number in 0..300_000 {
            let name = format!("many/{number}");
            archive
                .append_data(&mut header, name, std::io::empty())
                .expect("memory takes everything");
        }
        let sink = archive.into_inner().expect("memory takes everything");
        scratch.file(
            "base.tar.zst",
            sink.finish().expect("memory takes everything"),
        )
    };
    let base = json!({ "type": "tarball", "path": archive });
    let config = json!({ "name": "test", "base": base }).to_string();
    let config = scratch.file("config.json", config);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut child = Command::new(support::binary())
            .args(["--listen", "127.0.0.1:0", "-w"])
            .arg(&config)
            .arg("--state-dir")
            .arg(scratch.join("state"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start derrick");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is a pipe")).lines();
        let said = log.find(|line| {
            line.as_ref()
                .is_ok_and(|line| line.contains("unpacking a tarball"))
        });
        said.expect("it unpacks").expect("it is text");
        let pid = child.id().cast_signed();
        let lives = Lives::below(pid);
        assert!(lives.count() >= 1, "{} processes", lives.count());
        kill(Pid::from_raw(pid), signal).expect("it runs");
        let rest: Vec<_> = log.map_while(Result::ok).collect();
        let output = child.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{signal}: {}\n{rest:?}",
            output.status
        );
        assert_eq!(output.stdout, b"", "{signal}: it served");
        lives.assert_gone();
        for place in ["run", "trash"] {
            assert_eq!(
                entries(&scratch.join("state").join(place)),
                Vec::<String>::new()
            );
        }
    }
}

#[test]
fn a_restart_brings_workspaces_back_with_their_files_and_says_that_processes_are_gone() {
    for crash in [false, true] {
        let mut derrick = Derrick::start(json!({
            "name": "test",
            "workdir": "/srv",
            "setup_script": "echo setup > /srv/file",
        }));
        let workspace = derrick
            .api
            .create_with(&json!({ "env": { "COLOUR": "blue" } }));
        workspace.ok(
            "echo changed > file; echo new > /new; rm -r /media; mv /srv /moved; ln -s moved /srv",
        );
        workspace.write_file("/written", b"acknowledged");
        workspace.keep_busy();
        assert_eq!(workspace.describe()["state"], json!("running"));
        if crash {
            derrick.kill9();
            derrick.start_again();
        } else {
            derrick.restart();
        }
        assert_eq!(derrick.api.list(), [workspace.id.as_str()]);
        let workspace = derrick.api.workspace(&workspace.id);
        let description = workspace.describe();
        assert_eq!(description["state"], json!("stopped"), "{description}");
        let detail = description["state_detail"].as_str().unwrap_or_default();
        assert!(detail.contains("process"), "{description}");

        assert_eq!(
            workspace.ok("cat file /new /written; ls -d /media 2> /dev/null; echo $COLOUR"),
            "changed\nnew\nacknowledgedblue\n"
        );
        assert!(!workspace.ok("cat /proc/[0-9]*/comm").contains("sleep"));
        assert_eq!(workspace.describe()["state"], json!("running"));
        workspace.reset();
        assert_eq!(workspace.ok("cat /srv/file; echo $COLOUR"), "setup\nblue\n");
        assert_eq!(workspace.sh("test -e /new").exit_code, 1);
    }
}

#[test]
fn files_are_read_and_written_after_a_restart_without_a_command_first() {
    let mut derrick = Derrick::on_host();
    let id = {
        let workspace = derrick.create();
        workspace.write_file("/kept", b"content");
        workspace.id
    };
    derrick.restart();
    let workspace = derrick.api.workspace(&id);
    assert_eq!(workspace.read_file("/kept"), b"content");
    derrick.restart();
    let workspace = derrick.api.workspace(&id);
    workspace.write_file("/more", b"more");
    assert_eq!(workspace.ok("cat /kept /more"), "contentmore");
}

#[test]
fn nothing_leaks_however_often_workspaces_come_and_go() {
    let derrick = Derrick::start(json!({ "name": "test", "pool": { "size": 0 } }));
    let round = || {
        let workspace = derrick.create();
        workspace.ok("echo x > /x; (sleep 1000 > /dev/null 2>&1 &)");
        workspace.write_file("/file", b"x");
        workspace.read_file("/file");
        workspace.sh_with("sleep 1000", &json!({ "timeout": 1 }));
        workspace.reset_and_wait();
        workspace.ok("true");
        assert!(workspace.delete());
    };
    let look = || {
        wait_until_empty(&derrick.state().join("trash"));
        // The spawner, the first of them, stays; what removed files ends when it has.
        Lives::of(&descendants(derrick.pid())[1..]).assert_gone();
        (
            open_files(derrick.pid()),
            entries(&derrick.state().join("workspaces")),
        )
    };
    // What the first workspace brings into being for good, such as the layer, is no leak.
    round();
    let (files, workspaces) = look();
    for _ in 0..5 {
        round();
    }
    let (files_then, workspaces_then) = look();
    assert_eq!(workspaces_then, workspaces);
    assert_eq!(
        files_then.len(),
        files.len(),
        "{files:#?} became {files_then:#?}"
    );
    assert_eq!(mounts_below(&derrick.state()), Vec::<String>::new());
}

#[test]
fn a_base_that_is_gone_is_a_clear_error_and_the_service_goes_on() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    fs::create_dir(&root).expect("it is the test's own");
    succeed(
        std::process::Command::new("tar")
            .arg("-xf")
            .arg(fixture("busybox.tar"))
            .arg("-C")
            .arg(&root),
    );
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "directory", "path": root },
        // One that is ready has the base mounted already.
        "pool": { "size": 0 },
    }));
    is_missed_by_name(&derrick, &root);
}

/// Moves `path` away: a new workspace is refused with an error that names it, the service goes on, and
/// with the path back all is well.
fn is_missed_by_name(derrick: &Derrick, path: &Path) {
    let there = derrick.create();
    let moved = path.with_extension("moved");
    fs::rename(path, &moved).expect("it is the test's own");
    let answer = derrick.api.post("/workspaces", &json!({}));
    let status = answer.status;
    let problem = answer.problem(status);
    assert!(status >= 400, "{problem}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(&*path.to_string_lossy()), "{problem}");
    derrick.api.get("/health").expect(200);
    there.ok("true");
    fs::rename(&moved, path).expect("it is the test's own");
    derrick.create().ok("true");
    there.ok("true");
}

#[test]
fn a_layer_that_is_gone_is_a_clear_error_and_the_service_goes_on() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    let derrick = Launch::new(json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "pool": { "size": 0 },
    }))
    .state(&state)
    .start();
    let layer = derrick.create().describe()["layer"].clone();
    let layer = layer.as_str().expect("a layer has a name").to_owned();
    is_missed_by_name(&derrick, &state.join("layers").join(layer));
}

#[test]
fn an_included_directory_that_is_gone_is_a_clear_error_and_the_service_goes_on() {
    let scratch = Scratch::new();
    let tool = scratch.join("tool");
    fs::create_dir(&tool).expect("it is the test's own");
    for directory in [scratch.path(), &tool] {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory, open).expect("it is the test's own");
    }
    let derrick = Derrick::start(json!({
        "name": "test",
        "base": { "type": "host", "include": [tool] },
        "pool": { "size": 0 },
    }));
    is_missed_by_name(&derrick, &tool);
}

#[test]
fn a_full_disk_is_a_clear_error_and_the_service_goes_on() {
    let disk = std::env::var_os("DERRICK_SMALL_DISK")
        .expect("DERRICK_SMALL_DISK names no small filesystem; tests/run as root makes one");
    let state = Path::new(&disk).join("state");
    let derrick = Launch::new(json!({ "name": "test" }))
        .state(&state)
        .arguments(["--min-free", "0"])
        .start();
    let workspace = derrick.create();

    let ran = workspace.sh("head -c 1G /dev/zero > /big");
    assert_ne!(ran.exit_code, 0);
    assert!(
        ran.output.contains("No space left on device"),
        "{}",
        ran.output
    );
    let body = json!({ "path": "/more", "content": "eHh4".repeat(1 << 16) });
    workspace.post("write_file", &body).problem(507);
    let answer = derrick.api.post("/workspaces", &json!({}));
    if answer.status != 200 {
        let problem = answer.problem(507);
        assert!(problem.to_string().contains("space"), "{problem}");
    }
    derrick.api.get("/health").expect(200);
    workspace.ok("rm /big; echo x > /small");
    workspace.post("write_file", &body).expect(200);

    // The same for inodes.
    let ran = workspace.sh("mkdir /many; cd /many; seq 100000 | xargs touch");
    assert!(
        ran.output.contains("No space left on device"),
        "{}",
        ran.output
    );
    let answer = workspace.post("reset", &json!({}));
    if answer.status != 200 {
        // A new upper needs an inode, and none is left.
        answer.problem(507);
        workspace.ok("rm -r /many");
        workspace.reset();
    }
    workspace.ok("echo x > /small; test ! -e /many");
    assert!(workspace.delete());
    drop(derrick);
    succeed(support::as_owner("rm").arg("-rf").arg(&state));
}

#[test]
fn a_log_that_nothing_can_be_written_to_ends_nothing() {
    let scratch = Scratch::new();
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("there is /dev/full");
    let mut provider = Command::new(support::binary())
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(scratch.join("state"))
        .stdout(Stdio::piped())
        .stderr(full)
        .spawn()
        .expect("cannot start derrick");
    let mut line = String::new();
    let mut stdout = BufReader::new(provider.stdout.take().expect("it is a pipe"));
    stdout
        .read_line(&mut line)
        .expect("it says where it listens");
    let address = line.trim_end().strip_prefix("listening on http://");
    let api = support::Api::new(address.unwrap_or_else(|| panic!("{line:?}")), None);
    let workspace = api.create();
    workspace.ok("true");
    api.get("/nowhere").problem(404);
    assert!(workspace.delete());
    let pid = Pid::from_raw(provider.id().cast_signed());
    kill(pid, Signal::SIGTERM).expect("it runs");
    assert!(provider.wait().expect("it ends").success());
}
