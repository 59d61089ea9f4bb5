//! The document of the routes against the provider: schemathesis asks for what it allows and for what it does not.
//!
//! Every answer must be one that the document has, with the status, type, headers and body that it
//! says, and none may be a 5xx. How much is asked and what for is in `schemathesis/`.

mod support;

use std::process::Command;

use serde_json::json;
use support::{Derrick, GitServer, Scratch, fixture, source};

// F-15: requests that nobody thought of
#[test]
fn every_answer_is_one_that_the_document_has() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("README", "text\n")]);
    upstream.receive();
    let derrick = Derrick::start(json!({
        "name": "test",
        "repositories": [{ "url": upstream.url, "path": "/code/project", "push": ["**"] }],
        "setup_script": "#!/bin/bash\necho set up\n",
    }));
    let url = format!("http://{}", derrick.api.address());
    let directory = Scratch::new();
    let tests = source().join("tests/schemathesis");
    let output = Command::new(fixture("schemathesis/bin/python"))
        .arg(fixture("schemathesis/bin/schemathesis"))
        .arg("--config-file")
        .arg(tests.join("schemathesis.toml"))
        .args(["run", "--no-color", "--exclude-tag", "stream"])
        // An archive of all there is takes long, and ends where a user may not read a file of the
        // host's; its handlers are those of the paths below it.
        .args(["--exclude-path", "/workspaces/{id}/files/"])
        .arg(format!("{url}/openapi.json"))
        .env("SCHEMATHESIS_HOOKS", tests.join("hooks.py"))
        .env("DERRICK_URL", &url)
        // The source is not for writing.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(directory.path())
        .output()
        .expect("cannot start schemathesis");
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        derrick.printed()
    );
}
