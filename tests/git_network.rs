//! The way to a git server: certificates of an authority of its own, and proxies, with and without a password.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::secrets::assert_nowhere;
use support::{Derrick, GitServer, Launch, Proxy, Scratch, TlsServer, Upstream};

/// A config with this repository in `/project`, and further fields of it.
fn config(upstream: &Upstream, fields: &Value) -> Launch {
    let mut repository = fields.clone();
    repository["url"] = upstream.url.clone().into();
    repository["path"] = "/project".into();
    Launch::new(json!({
        "name": "test",
        "repositories": [repository],
        "setup_script": "cp -r /project/.git /copy; env > /environment",
    }))
    .environment("DERRICK_LOG", "trace")
}

/// What derrick says to a create that fails.
fn refusal(derrick: &Derrick) -> String {
    let problem = derrick.api.post("/workspaces", &json!({})).problem(422);
    problem["detail"].as_str().expect("a text").to_owned()
}

const TOKEN: &str = "canary-c05b1e77a2d94f63";

#[test]
fn a_host_is_trusted_by_the_authority_that_its_repository_names_and_by_no_other() {
    let server = TlsServer::before(GitServer::with_token(TOKEN));
    let upstream = server.repository("project", &[("file", "1\n")]);
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let with = |authority: Option<&std::path::Path>| {
        config(
            &upstream,
            &json!({ "token_file": token, "ca_file": authority }),
        )
    };
    let derrick = with(Some(&server.authority())).start();
    let workspace = derrick.create();
    assert_eq!(workspace.ok("cat /project/file"), "1\n");
    let commit = upstream.commit(&[("file", "2\n")]);
    assert_eq!(workspace.fetch()["repositories"][0]["new_commit"], commit);
    assert_nowhere(TOKEN, &derrick, &workspace);

    let asked = server.plain.requests().len();
    let own = server.authority().to_string_lossy().into_owned();
    for launch in [
        with(None),
        with(Some(&server.other_authority())),
        // The repository's own word counts.
        with(Some(&server.other_authority())).environment("GIT_SSL_CAINFO", &own),
    ] {
        let said = refusal(&launch.start());
        assert!(said.contains("cannot verify the host"), "{said}");
        assert!(!said.contains(".pem"), "{said}");
    }
    assert_eq!(server.plain.requests().len(), asked);
}

#[test]
fn a_proxy_is_used_where_one_is_named_and_the_environment_s_otherwise() {
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "1\n")]);
    let secure = TlsServer::before(GitServer::with_token(TOKEN));
    let scratch = Scratch::new();
    let token = scratch.file("token", TOKEN);
    let hidden = secure.repository("project", &[("file", "1\n")]);
    let (named, other) = (Proxy::start(None), Proxy::start(None));
    let plain = json!({ "proxy": named.url() });
    let authority = secure.authority();
    let behind_tls = json!({ "proxy": named.url(), "ca_file": authority, "token_file": token });
    for (upstream, fields, what) in [
        (&upstream, &plain, "GET http://127.0.0.1:"),
        (&hidden, &behind_tls, "CONNECT 127.0.0.1:"),
    ] {
        let before = named.asked().len();
        let derrick = config(upstream, fields)
            .environment("http_proxy", &other.url())
            .environment("https_proxy", &other.url())
            .start();
        assert_eq!(derrick.create().ok("cat /project/file"), "1\n");
        let asked = &named.asked()[before..];
        assert!(asked.iter().all(|asked| asked.allowed), "{asked:?}");
        assert!(
            asked.iter().any(|asked| asked.what.starts_with(what)),
            "{asked:?}"
        );
    }
    // The token is for the host at the tunnel's end.
    let tunnels = named
        .asked()
        .into_iter()
        .filter(|asked| asked.what.starts_with("CONNECT"));
    assert!(tunnels.into_iter().all(|asked| !asked.with_credentials));
    assert!(other.asked().is_empty(), "{:?}", other.asked());
    let derrick = config(&upstream, &json!({}))
        .environment("http_proxy", &other.url())
        .start();
    derrick.create();
    assert!(!other.asked().is_empty());
}

#[test]
fn a_proxy_s_password_opens_it_and_is_found_nowhere() {
    let password = "canary-3d7fe1a940b86c25";
    let server = GitServer::open();
    let upstream = server.repository("project", &[("file", "1\n")]);
    let proxy = Proxy::start(Some(&format!("ada:{password}")));
    let scratch = Scratch::new();
    let url = proxy.url_with(&format!("ada:{password}"));
    let file = scratch.file("proxy", &url);
    for launch in [
        config(&upstream, &json!({ "proxy_file": file })),
        config(&upstream, &json!({ "proxy_env": "SECRET_PROXY" }))
            .environment("SECRET_PROXY", &url),
    ] {
        let derrick = launch.start();
        let workspace = derrick.create();
        upstream.commit(&[("file", "2\n")]);
        workspace.fetch();
        assert_nowhere(password, &derrick, &workspace);
    }
    let asked = proxy.asked();
    assert!(asked.iter().any(|asked| asked.allowed), "{asked:?}");
    for asked in asked {
        assert_eq!(asked.exposed, Vec::<String>::new());
        let git = ["git", "git-remote-http", "derrick"];
        assert!(
            asked
                .holders
                .iter()
                .all(|name| git.contains(&name.as_str())),
            "{asked:?}"
        );
    }

    // A wrong one, and none.
    fs::write(&file, url.replace(password, "canary-wrong")).expect("its own");
    for fields in [
        json!({ "proxy_file": file }),
        json!({ "proxy": proxy.url() }),
    ] {
        let derrick = config(&upstream, &fields).start();
        let said = refusal(&derrick);
        assert!(said.contains("the proxy for"), "{said}");
        assert!(
            !format!("{said}{}", derrick.printed()).contains("canary"),
            "{said}"
        );
    }
}
