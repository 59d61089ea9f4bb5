//! P13: what a workspace must have and cannot get, it does not start without; what it has is shown.

mod support;

use serde_json::json;
use support::{Derrick, Launch};

#[test]
fn a_restriction_that_a_test_turned_off_is_told_everywhere() {
    let derrick = Derrick::without(["seccomp", "landlock"]);
    let workspace = derrick.create();
    let expected = "DERRICK_TEST_WITHOUT turns off [\"landlock\",\"seccomp\"]";
    let health = derrick.api.get("/health").expect(200).json();
    let description = workspace.describe();
    for weaker in [&health["weaker"], &description["enforcement"]["weaker"]] {
        let weaker = weaker.as_array().expect("a list");
        assert!(weaker.contains(&json!(expected)), "{weaker:?}");
    }
    assert_eq!(health["sandbox"]["seccomp_filters"], 0);
    assert_eq!(health["sandbox"]["landlock"]["state"], "off");
    assert!(
        derrick.printed().contains(expected),
        "{}",
        derrick.printed()
    );
}

#[test]
fn a_restriction_that_there_is_not_cannot_be_turned_off() {
    let launch = Launch::new(json!({ "name": "test" })).without(["seccomp", "everything"]);
    let said = launch.try_start().expect_err("it starts");
    assert!(
        said.contains("DERRICK_TEST_WITHOUT: unknown variant `everything`"),
        "{said}"
    );
}
