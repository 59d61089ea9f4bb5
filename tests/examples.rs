//! The example configs, each run as it is but for what only its own host has: where the repository and
//! the archive are, the token, and packages that would come over the network.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Derrick, GitServer, Launch, Scratch, fixture, source};

const TOKEN: &str = "token-of-the-example";

fn example(name: &str) -> Value {
    let file = source().join("examples").join(name);
    let text = fs::read_to_string(&file).expect("the example is there");
    serde_json::from_str(&text).expect("it is JSON")
}

/// With a token for the API, which a config with the host's network asks an ordinary user for.
fn start(config: Value) -> Derrick {
    Launch::new(config)
        .token("0123456789abcdef0123456789abcdef")
        .start()
}

#[test]
fn minimal_gives_the_programs_of_the_host() {
    let derrick = start(example("minimal.json"));
    let workspace = derrick.create();
    assert_eq!(workspace.ok("pwd; echo works"), "/\nworks\n");
}

#[test]
fn network_gives_a_private_repository_at_a_tag_and_the_network() {
    let server = GitServer::with_token(TOKEN);
    let upstream = server.repository("service", &[("version", "1.4.2\n")]);
    upstream.git(&["tag", "v1.4.2"]);
    upstream.commit(&[("version", "2.0.0\n")]);
    let scratch = Scratch::new();
    let mut config = example("network.json");
    config["repositories"][0]["url"] = json!(upstream.url);
    config["repositories"][0]["token_file"] = json!(scratch.file("git-token", TOKEN));
    let derrick = start(config);
    let workspace = derrick.create();
    assert_eq!(workspace.ok("pwd; cat version"), "/code/service\n1.4.2\n");
    let here = server.requests().len();
    let asked = format!("git ls-remote {} 2> /dev/null; true", upstream.url);
    workspace.ok(&asked);
    assert!(
        server.requests().len() > here,
        "the server is not reached from inside"
    );
}

#[test]
fn python_project_gives_a_virtual_environment_beside_the_repository() {
    let server = GitServer::open();
    let files = [("tests/test_it.py", "import sys\nprint(sys.prefix)\n")];
    let upstream = server.repository("itsdangerous", &files);
    let mut config = example("python-project.json");
    config["repositories"][0]["url"] = json!(upstream.url);
    let script = config["setup_script"].as_str().expect("a text");
    let install = "/code/venv/bin/pip install --editable /code/itsdangerous pytest freezegun";
    assert!(script.contains(install), "{script}");
    config["setup_script"] = json!(script.replace(install, "/code/venv/bin/pip --version"));
    let derrick = start(config);
    let workspace = derrick.create();
    assert_eq!(workspace.ok("python3 tests/test_it.py"), "/code/venv\n");
    let interfaces = "ls /sys/class/net | grep -v '^lo$'";
    assert_eq!(workspace.sh(interfaces).output, "", "it has a network");
}

#[test]
fn tarball_gives_the_archives_system() {
    let mut config = example("tarball.json");
    config["base"]["path"] = json!(fixture("debian.tar.zst"));
    let script = config["setup_script"].as_str().expect("a text");
    let install = "apt-get update && apt-get install --yes git build-essential";
    assert!(script.contains(install), "{script}");
    config["setup_script"] = json!(script.replace(install, "dpkg --version > /installed"));
    let derrick = start(config);
    let workspace = derrick.create();
    assert_eq!(
        workspace.ok("grep -c 'package management' /installed"),
        "1\n"
    );
}
