//! Whom commands run as: any user of the workspace, looked up in files that nobody trusts.

mod support;

use serde_json::json;
use support::accounts::{ADA, provider, refusal};
use support::{Mode, mode};

#[test]
fn a_user_has_its_own_ids_groups_and_environment_and_no_capability() {
    let derrick = provider("ada", ADA);
    if mode() == Mode::Single {
        let detail = refusal(&derrick);
        let expected =
            "user 'ada' (uid 1000) cannot be used: only uid 0 is mapped in this identity mode";
        assert_eq!(detail, expected);
        return;
    }
    let workspace = derrick.create();
    assert_eq!(workspace.ok("id -u; id -g; id -G"), "1000\n1001\n1001 50\n");
    assert_eq!(
        workspace.ok("echo $HOME $USER $LOGNAME"),
        "/home/ada ada ada\n"
    );
    let ids = workspace.ok("grep -E '^(Uid|Gid|Cap(Inh|Prm|Eff|Amb))' /proc/self/status");
    let expected = "Uid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\n";
    assert!(ids.starts_with(expected), "{ids}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(
            ids.contains(&format!("{set}:\t0000000000000000\n")),
            "{ids}"
        );
    }
    assert_ne!(workspace.sh("echo x >> /etc/passwd").exit_code, 0);
    assert_eq!(workspace.ok("echo x > ~/mine && cat ~/mine"), "x\n");
}

#[test]
fn what_the_caller_sets_goes_before_what_the_user_brings() {
    let derrick = provider("root", "true");
    let workspace = derrick.create();
    let print = "echo $HOME $USER $LOGNAME";
    assert_eq!(workspace.ok(print), "/root root root\n");
    let own = workspace.sh_with(print, &json!({ "env": { "HOME": "/h", "USER": "u" } }));
    assert_eq!(own.expect(0), "/h u root\n");
}

#[test]
fn the_users_directory_is_entered_as_the_user() {
    if mode() == Mode::Single {
        return;
    }
    let closed = format!("{ADA}mkdir -m 0700 /closed");
    let derrick = provider("ada", &closed);
    let workspace = derrick.create();
    let body = json!({ "cmd": "pwd", "working_dir": "/closed" });
    let problem = workspace.post("cmd_with_output", &body).problem(403);
    assert!(
        problem["detail"]
            .as_str()
            .expect("a text")
            .contains("/closed")
    );
}

#[test]
fn a_user_who_is_not_there_is_named() {
    let derrick = provider("nobody-of-that-name", "true");
    assert_eq!(
        refusal(&derrick),
        "there is no user 'nobody-of-that-name' in the workspace"
    );
}
