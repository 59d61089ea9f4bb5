//! Users of a workspace, and whom commands are to run as.

use serde_json::json;

use super::Derrick;

/// Makes a user `ada` with a group besides her own and a home.
pub(crate) const ADA: &str = "echo 'ada:x:1000:1001::/home/ada:/bin/sh' >> /etc/passwd\n\
                   echo 'crew:x:50:bob,ada' >> /etc/group\n\
                   mkdir -p /home/ada && chown 1000:1001 /home/ada 2> /dev/null || true\n";

/// A provider whose commands run as `user`, after this setup.
pub(crate) fn provider(user: &str, setup: &str) -> Derrick {
    Derrick::start(json!({ "name": "users", "user": user, "setup_script": setup }))
}

/// What the API says to a command of a user that cannot be had.
pub(crate) fn refusal(derrick: &Derrick) -> String {
    let problem = derrick.create().cmd("true").problem(422);
    assert_eq!(problem["type"], "urn:derrick:problem:not-possible");
    problem["detail"].as_str().expect("a text").to_owned()
}
