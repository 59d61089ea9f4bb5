//! What a config may say and what it may not, with the whole message for each.

use std::fs;

use super::*;

const TOKEN_NAME: &str = "DERRICK_TEST_TOKEN";

fn environment(name: &str) -> Option<std::ffi::OsString> {
    match name {
        TOKEN_NAME => Some("hunter2".into()),
        "EMPTY" => Some("".into()),
        _ => None,
    }
}

fn read(text: &str) -> Result<WorkspaceConfig, String> {
    WorkspaceConfig::from_json_in(text, "c.json", &environment).map_err(|error| error.to_string())
}

/// Asserts the whole message of each wrong text.
fn assert_messages(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(read(text).err().as_deref(), Some(*expected), "{text}");
    }
}

/// A config with one repository that has these fields.
fn with_repository(fields: &str) -> String {
    format!(r#"{{"name":"n","repositories":[{{{fields}}}]}}"#)
}

#[test]
fn a_config_of_bosun_ai_is_accepted_as_it_is() {
    let text = r#"{
        "name": "swiftide-ask",
        "repositories": [
            {
                "name": "swiftide-ask",
                "path": "/code/swiftide-ask",
                "url": "https://github.com/bosun-ai/swiftide-ask"
            }
        ],
        "setup_script": "echo 'setting up'\napt-get update\n"
    }"#;
    let config = WorkspaceConfig::from_json(text, "c.json").unwrap();
    assert_eq!(config.name, "swiftide-ask");
    assert_eq!(config.repositories.len(), 1);
    assert_eq!(config.repositories[0].path, Path::new("/code/swiftide-ask"));
    assert_eq!(config.repositories[0].reference, None);
    assert!(config.setup_script.unwrap().starts_with("echo"));
    assert!(matches!(&config.base, Base::Host { include } if include.is_empty()));
    assert_eq!(config.workdir, Path::new("/"));
    assert_eq!(config.user, "root");
    assert_eq!(config.network, Network::None);
    assert_eq!(config.setup.network, None);
}

#[test]
fn every_setting_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    let text = format!(
        r#"{{
            "name": "My project 1.0",
            "repositories": [
                {{"url": "https://example.org/a.git", "path": "/code//a/", "reference": "v1.0", "token_env": "{TOKEN_NAME}"}},
                {{"url": "git@example.org:b.git", "path": "/code/./b", "reference": null}},
                {{"url": "{here}", "path": "/code/c"}}
            ],
            "setup_script": null,
            "base": {{"include": ["{here}"], "type": "host"}},
            "env": {{"A": "", "B.C": "x=y"}},
            "workdir": "/code/a/",
            "user": "www-data",
            "network": "none",
            "setup": {{"network": "host"}},
            "best_effort": ["landlock"],
            "limits": null,
            "pool": {{"size": null}}
        }}"#
    );
    let config = read(&text).unwrap();
    let paths: Vec<_> = config
        .repositories
        .iter()
        .map(|r| r.path.to_str().unwrap())
        .collect();
    assert_eq!(paths, ["/code/a", "/code/b", "/code/c"]);
    assert_eq!(config.workdir.to_str(), Some("/code/a"));
    assert_eq!(config.user, "www-data");
    assert_eq!(config.setup.network, Some(Network::Host));
    assert_eq!(config.best_effort, [Restriction::Landlock]);
    assert_eq!(config.env.len(), 2);
    assert!(matches!(&config.base, Base::Host { include } if include == &[directory.path()]));
}

#[test]
fn a_base_has_a_short_and_a_full_form() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    let tarball = directory.path().join("base.tar.zst");
    fs::write(&tarball, "").unwrap();
    let base = |json: &str| {
        read(&format!(r#"{{"name":"n","base":{json}}}"#))
            .unwrap()
            .base
    };
    assert!(matches!(base(r#""host""#), Base::Host { .. }));
    assert!(matches!(base(r#"{"type":"host"}"#), Base::Host { .. }));
    assert!(matches!(
        base(&format!(r#"{{"type":"directory","path":"{here}"}}"#)),
        Base::Directory { path } if path == directory.path()
    ));
    assert!(matches!(
        base(&format!(r#"{{"path":"{}","type":"tarball"}}"#, tarball.display())),
        Base::Tarball { path } if path == tarball
    ));
}

#[test]
fn what_is_written_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    for base in [
        Base::default(),
        Base::Directory {
            path: directory.path().to_owned(),
        },
    ] {
        let config = WorkspaceConfig {
            base,
            ..WorkspaceConfig::built_in()
        };
        let text = serde_json::to_string(&config).unwrap();
        let again = read(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}

#[test]
fn unknown_fields_are_refused_with_their_place_and_the_nearest_known_one() {
    assert_messages(&[
        (
            "{\n  \"name\": \"n\",\n  \"setup_scrpt\": \"x\"\n}",
            "c.json:3:3: setup_scrpt: there is no such field; did you mean \"setup_script\"?",
        ),
        (
            r#"{"name":"n","zzz":1}"#,
            "c.json:1:13: zzz: there is no such field; known are name, repositories, setup_script, base, env, workdir, user, network, storage, setup, profile, best_effort, limits, requests, max_workspaces, min_free_memory, ttl, idle_timeout, pool, layers",
        ),
        (
            r#"{"name":"n","repositories":[{"url":"/","pth":"/a"}]}"#,
            "c.json:1:40: repositories[0].pth: there is no such field; did you mean \"path\"?",
        ),
        (
            r#"{"name":"n","base":{"type":"host","includes":[]}}"#,
            "c.json:1:35: base.includes: there is no such field; did you mean \"include\"?",
        ),
        (
            r#"{"name":"n","base":{"type":"host","path":"/x"}}"#,
            "c.json:1:35: base.path: there is no such field; known are type, include",
        ),
        (
            r#"{"name":"n","base":{"base":"host"}}"#,
            "c.json:1:21: base.base: there is no such field; known are type, include, path",
        ),
        (
            r#"{"name":"n","setup":{"netwrok":"host"}}"#,
            "c.json:1:22: setup.netwrok: there is no such field; did you mean \"network\"?",
        ),
        (
            r#"{"name":"n","limits":{"mem":1}}"#,
            "c.json:1:23: limits.mem: there is no such field; did you mean \"memory\"?",
        ),
    ]);
}

#[test]
fn values_of_the_wrong_kind_are_refused_without_repeating_them() {
    assert_messages(&[
        ("{}", "c.json:1:1: name: is missing"),
        ("[1]", "c.json:1:1: is a list, must be an object"),
        (
            "{\"name\": 1\n",
            "c.json:2:1: not valid JSON: EOF while parsing an object",
        ),
        (
            r#"{"name":"n","name":"m"}"#,
            "c.json:1:13: the field \"name\" is there twice",
        ),
        (
            r#"{"name":7}"#,
            "c.json:1:9: name: is the number 7, must be a text",
        ),
        (
            r#"{"name":"n","repositories":"https://u:hunter2@h/x"}"#,
            "c.json:1:28: repositories: is a text, must be a list",
        ),
        (
            r#"{"name":"n","repositories":[{"path":"/a"}]}"#,
            "c.json:1:29: repositories[0].url: is missing",
        ),
        (
            r#"{"name":"n","repositories":[{"path":["/a"],"url":"/"}]}"#,
            "c.json:1:37: repositories[0].path: is a list, must be a text",
        ),
        (
            r#"{"name":"n","env":{"A":1}}"#,
            "c.json:1:24: env.A: is the number 1, must be a text",
        ),
        (
            r#"{"name":"n","env":["A=1"]}"#,
            "c.json:1:19: env: is a list, must be an object",
        ),
        (
            r#"{"name":"n","network":"nat"}"#,
            "c.json:1:23: network: \"nat\" is not known; known: none, host",
        ),
        (
            r#"{"name":"n","network":"Host"}"#,
            "c.json:1:23: network: \"Host\" is not known; known: none, host, did you mean \"host\"?",
        ),
        (
            r#"{"name":"n","network":"http://u:hunter2@proxy"}"#,
            "c.json:1:23: network: this text is not known; known: none, host",
        ),
        (
            r#"{"name":"n","network":true}"#,
            "c.json:1:23: network: is true, must be one of: none, host",
        ),
        (
            r#"{"name":"n","best_effort":["seccomp"]}"#,
            "c.json:1:28: best_effort[0]: \"seccomp\" is not known; known: landlock, limits",
        ),
        (
            r#"{"name":"n","base":"debian"}"#,
            "c.json:1:20: base: \"debian\" is not known; known: host, directory, tarball",
        ),
        (
            r#"{"name":"n","base":"tarball"}"#,
            "c.json:1:20: base: a tarball needs a path; write {\"type\": \"tarball\", \"path\": \"/…\"}",
        ),
        (
            r#"{"name":"n","base":1}"#,
            "c.json:1:20: base: is the number 1, must be \"host\" or an object with a \"type\"",
        ),
        (
            r#"{"name":"n","base":{}}"#,
            "c.json:1:20: base.type: is missing",
        ),
        (
            r#"{"name":"n","base":{"type":"directory"}}"#,
            "c.json:1:20: base.path: is missing",
        ),
        (
            r#"{"name":"n","base":{"type":"docker"}}"#,
            "c.json:1:28: base.type: \"docker\" is not known; known: host, directory, tarball",
        ),
    ]);
}

#[test]
fn a_nul_is_refused_everywhere() {
    let reason = "contains a NUL character, which Linux takes in no text; remove it";
    let cases = [
        (r#"{"name":"a\u0000"}"#, "1:9: name"),
        (
            r#"{"name":"n","setup_script":"a\u0000"}"#,
            "1:28: setup_script",
        ),
        (r#"{"name":"n","env":{"A":"\u0000"}}"#, "1:24: env.A"),
        (
            r#"{"name":"n","env":{"A\u0000":""}}"#,
            "1:30: env[\"A\\0\"]",
        ),
    ];
    for (text, place) in cases {
        assert_eq!(read(text).unwrap_err(), format!("c.json:{place}: {reason}"));
    }
}

#[test]
fn names_are_refused_unless_they_fit_a_hostname() {
    let long = "a".repeat(64);
    let allowed =
        "is not allowed; a name has letters a-z and A-Z, digits, '-', '_', '.' and spaces";
    let start = "must start with a letter or a digit and not end with a space";
    let cases = [
        ("", start.to_owned()),
        (" a", start.to_owned()),
        ("a ", start.to_owned()),
        ("-a", start.to_owned()),
        ("a/b", format!("'/' {allowed}")),
        ("ü", format!("'ü' {allowed}")),
        (r"a\nb", format!("'\\n' {allowed}")),
        (
            &long,
            "has 64 characters; at most 63 are allowed".to_owned(),
        ),
    ];
    for (name, reason) in cases {
        let text = format!(r#"{{"name":"{name}"}}"#);
        assert_eq!(
            read(&text).unwrap_err(),
            format!("c.json:1:9: name: {reason}")
        );
    }
    assert!(read(&format!(r#"{{"name":"{}"}}"#, "a".repeat(63))).is_ok());
}

#[test]
fn urls_are_refused_when_unknown_or_with_credentials_which_are_never_repeated() {
    const FORMS: &str =
        "use https://, http://, ssh://, file://, user@host:path, or an absolute path";
    const CREDENTIALS: &str = "contains credentials, which would end up in logs and in the workspace; remove them and name the token's place in token_env or token_file";
    let query = "has a query or a fragment, which may hold a secret; git needs neither, remove it";
    let host = format!("has no host name where one must be; {FORMS}");
    let unknown = format!("is no URL that derrick knows; {FORMS}");
    let path = "has no path; a repository's path follows the host";
    let cases = [
        ("", format!("is empty; {FORMS}")),
        ("https://u:hunter2@h/x", CREDENTIALS.to_owned()),
        ("https://hunter2@h/x", CREDENTIALS.to_owned()),
        ("http://:hunter2@h/x", CREDENTIALS.to_owned()),
        ("ssh://git:hunter2@h/x", CREDENTIALS.to_owned()),
        ("ftp://u:hunter2@h/x", CREDENTIALS.to_owned()),
        ("u:hunter2@h:x", CREDENTIALS.to_owned()),
        ("https://h/x?access_token=hunter2", query.to_owned()),
        ("https://h/x#hunter2", query.to_owned()),
        (
            "https://h/a b",
            "contains a space, a backslash or a control character; percent-encode it".to_owned(),
        ),
        (
            "git://h/x",
            format!("\"git\" is no URL scheme for a repository; {FORMS}"),
        ),
        (
            "ext::sh -c x",
            "contains a space, a backslash or a control character; percent-encode it".to_owned(),
        ),
        ("ext::sh", unknown.clone()),
        ("-oProxyCommand:x", unknown.clone()),
        ("git@:x", unknown.clone()),
        ("git@h:", unknown.clone()),
        ("ssh://-oProxyCommand=x/y", host.clone()),
        ("https:///x", host.clone()),
        ("https://h", path.to_owned()),
        ("https://h/", path.to_owned()),
        (
            "code/x",
            format!("is neither a URL nor an absolute path; {FORMS}"),
        ),
        (
            "file://server/x",
            "names a host; a file URL has three slashes, as in \"file:///srv/git/x.git\""
                .to_owned(),
        ),
        (
            "file://",
            "must be file:// and an absolute path, as in \"file:///srv/git/x.git\"".to_owned(),
        ),
        (
            "/nonexistent/x.git",
            "/nonexistent/x.git does not exist; name a repository of this host".to_owned(),
        ),
        (
            "file:///nonexistent/x.git",
            "/nonexistent/x.git does not exist; name a repository of this host".to_owned(),
        ),
    ];
    for (url, reason) in cases {
        let error = read(&with_repository(&format!(r#""url":"{url}","path":"/a""#))).unwrap_err();
        assert_eq!(
            error,
            format!("c.json:1:36: repositories[0].url: {reason}"),
            "{url}"
        );
        assert!(!error.contains("hunter2"));
    }
    for url in [
        "https://example.org/a.git",
        "http://[::1]:8080/a",
        "https://example.org/@scope/a",
        "ssh://git@example.org:22/a.git",
        "git@example.org:a/b.git",
        "example.org:a",
        "file:///tmp",
        "file://localhost/tmp",
        "/tmp",
    ] {
        let text = with_repository(&format!(r#""url":"{url}","path":"/a""#));
        assert_eq!(
            read(&text)
                .map(|config| config.repositories[0].url.clone())
                .as_deref(),
            Ok(url)
        );
    }
}

#[test]
fn paths_of_repositories_are_absolute_and_apart() {
    let part = "a".repeat(256);
    let cases = [
        ("code", "\"code\" is not absolute; write it from '/' on".to_owned()),
        ("", "\"\" is not absolute; write it from '/' on".to_owned()),
        ("/a/../b", "\"/a/../b\" contains \"..\"; write the path without it".to_owned()),
        ("/", "is the root of the workspace; a repository needs a directory below it, such as \"/code/project\"".to_owned()),
        ("//.", "is the root of the workspace; a repository needs a directory below it, such as \"/code/project\"".to_owned()),
        ("/proc/x", "lies in /proc, which the kernel fills; choose a directory such as \"/code/project\"".to_owned()),
        (&format!("/{part}"), "has a part of more than 255 bytes, which Linux does not take".to_owned()),
        (&"/aaaa".repeat(801), "has more than 4000 bytes, which Linux does not take".to_owned()),
    ];
    for (path, reason) in cases {
        let text = with_repository(&format!(r#""path":"{path}","url":"https://h/x""#));
        let expected = format!("c.json:1:37: repositories[0].path: {reason}");
        assert_eq!(read(&text).unwrap_err(), expected);
    }
    for (second, how) in [
        ("/code/a", "is the path of"),
        ("/code/a/", "is the path of"),
        ("/code/a/b", "lies inside"),
        ("/code", "contains"),
    ] {
        let text = format!(
            r#"{{"name":"n","repositories":[{{"url":"https://h/x","path":"/code/a"}},{{"url":"https://h/y","path":"{second}"}}]}}"#
        );
        assert_eq!(
            read(&text).unwrap_err(),
            format!(
                "c.json:1:96: repositories[1].path: {how} repositories[0]; each repository needs a directory of its own"
            )
        );
    }
    assert!(read(r#"{"name":"n","repositories":[{"url":"https://h/x","path":"/code/a"},{"url":"https://h/y","path":"/code/ab"}]}"#).is_ok());
}

#[test]
fn references_follow_the_rules_of_git() {
    let right =
        "write a branch, a tag or a commit, such as \"main\", \"v1.2\" or \"refs/pull/7/head\"";
    let invalid = format!("is no valid reference name; {right}");
    let cases = [
        ("", format!("is empty; leave it out or {right}")),
        (
            "--upload-pack=x",
            format!("starts with '-', which git would take for an option; {right}"),
        ),
        ("a b", format!("' ' is not allowed in a reference; {right}")),
        ("a~1", format!("'~' is not allowed in a reference; {right}")),
        ("a:b", format!("':' is not allowed in a reference; {right}")),
        (
            r"a\\b",
            format!("'\\\\' is not allowed in a reference; {right}"),
        ),
        (
            r"a\tb",
            format!("'\\t' is not allowed in a reference; {right}"),
        ),
        ("a..b", invalid.clone()),
        ("a@{1}", invalid.clone()),
        ("@", invalid.clone()),
        ("/a", invalid.clone()),
        ("a/", invalid.clone()),
        ("a//b", invalid.clone()),
        ("a/.b", invalid.clone()),
        ("a.lock", invalid.clone()),
        ("a.lock/b", invalid.clone()),
        ("a.", invalid.clone()),
    ];
    for (reference, reason) in cases {
        let text = with_repository(&format!(
            r#""reference":"{reference}","url":"https://h/x","path":"/a""#
        ));
        let expected = format!("c.json:1:42: repositories[0].reference: {reason}");
        assert_eq!(read(&text).unwrap_err(), expected);
    }
    for reference in [
        "main",
        "feature/a-b_c",
        "v1.0",
        "refs/pull/7/head",
        "0a1b2c",
        "a@b",
        "ü",
    ] {
        let text = with_repository(&format!(
            r#""reference":"{reference}","url":"https://h/x","path":"/a""#
        ));
        assert!(read(&text).is_ok(), "{reference}");
    }
}

#[test]
fn tokens_are_looked_for_at_once_and_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("good"), "hunter2\n").unwrap();
    fs::write(at("bad"), "hunter2\nhunter3\n").unwrap();
    fs::write(at("large"), vec![b'a'; 70_000]).unwrap();
    let here = directory.path().display();
    let cases = [
        (
            r#""token_env":"DERRICK_TEST_NONE","url":"https://h/x""#.to_owned(),
            "1:42: repositories[0].token_env: names a variable that is not set in derrick's environment; set it before the start",
        ),
        (
            r#""token_env":"EMPTY","url":"https://h/x""#.to_owned(),
            "1:42: repositories[0].token_env: names a variable whose content is empty",
        ),
        (
            r#""token_env":"","url":"https://h/x""#.to_owned(),
            "1:42: repositories[0].token_env: an environment variable's name cannot be empty",
        ),
        (
            r#""token_env":"A=b","url":"https://h/x""#.to_owned(),
            "1:42: repositories[0].token_env: an environment variable's name cannot contain '=' or NUL",
        ),
        (
            format!(r#""token_env":"{TOKEN_NAME}","token_file":"{here}/good","url":"https://h/x""#),
            "1:76: repositories[0].token_file: is there beside token_env; a repository is opened by one of them",
        ),
        (
            format!(r#""token_env":"{TOKEN_NAME}","url":"git@h:x""#),
            "1:42: repositories[0].token_env: has no use: only https and http repositories take a token",
        ),
        (
            r#""token_file":"hunter2","url":"https://h/x""#.to_owned(),
            "1:43: repositories[0].token_file: must be the absolute path of a file, without \"..\"",
        ),
        (
            format!(r#""token_file":"{here}/none","url":"https://h/x""#),
            "1:43: repositories[0].token_file: names a file that cannot be read: No such file or directory (os error 2)",
        ),
        (
            format!(r#""token_file":"{here}","url":"https://h/x""#),
            "1:43: repositories[0].token_file: names a file that cannot be read: it is no file",
        ),
        (
            format!(r#""token_file":"{here}/bad","url":"https://h/x""#),
            "1:43: repositories[0].token_file: names a file whose content contains a control character; it must be one line of text",
        ),
        (
            format!(r#""token_file":"{here}/large","url":"https://h/x""#),
            "1:43: repositories[0].token_file: names a file that cannot be read: it is larger than 64 KiB",
        ),
    ];
    for (fields, expected) in cases {
        let text = with_repository(&fields).replace("}]}", r#","path":"/a"}]}"#);
        let error = read(&text).unwrap_err();
        assert!(!error.contains("hunter"), "{error}");
        assert_eq!(error, format!("c.json:{expected}"));
    }
    let fields = format!(r#""token_file":"{here}/good","url":"https://h/x","path":"/a""#);
    let config = read(&with_repository(&fields)).unwrap();
    let repository = &config.repositories[0];
    assert!(
        matches!(repository.credentials(), Ok(Some(Credentials::Token(token))) if token.expose() == "hunter2")
    );
    assert!(!format!("{config:?}").contains("hunter2"));
    fs::remove_file(at("good")).unwrap();
    assert_eq!(
        repository.credentials().unwrap_err().to_string(),
        "getting the credentials of https://h/x: token_file names a file that cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn a_repository_has_one_kind_of_credentials_and_all_that_goes_with_it() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    for (name, mode) in [
        ("open", 0o644),
        ("key", 0o600),
        ("pro-gram", 0o755),
        ("any", 0o777),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, "hunter2\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let is_there = |field, first| {
        format!("{field}: is there beside {first}; a repository is opened by one of them")
    };
    let goes_with =
        "username: has no use: it goes with password_env, password_file or credential_command";
    let http = |fields: &str| format!(r#""url":"https://h/x",{fields}"#);
    let ssh = |fields: &str| format!(r#""url":"git@h:x",{fields}"#);
    let cases = [
        (http(r#""token_env":"T","password_file":"/x""#), is_there("password_file", "token_env")),
        (http(r#""password_env":"T","password_file":"/x""#), is_there("password_file", "password_env")),
        (http(r#""token_file":"/x","credential_command":["/x"]"#), is_there("credential_command", "token_file")),
        (ssh(r#""credential_command":["/x"],"ssh_key_file":"/x""#), is_there("ssh_key_file", "credential_command")),
        (http(r#""username":"ada""#), goes_with.to_owned()),
        (http(r#""username":"ada","token_env":"DERRICK_TEST_TOKEN""#), goes_with.to_owned()),
        (ssh(&format!(r#""username":"ada","ssh_key_file":"{here}/key""#)), goes_with.to_owned()),
        (http(r#""username":"","password_env":"DERRICK_TEST_TOKEN""#), "username: is empty; write the user's name, or leave it out".to_owned()),
        (http(r#""username":"a:b","password_env":"DERRICK_TEST_TOKEN""#), "username: contains a colon or a control character, which no user's name can have".to_owned()),
        (http(r#""password_env":"DERRICK_TEST_TOKEN""#), "password_env: needs \"username\" beside it".to_owned()),
        (http(r#""username":"ada","password_env":"EMPTY""#), "password_env: names a variable whose content is empty".to_owned()),
        (ssh(r#""username":"ada","password_env":"DERRICK_TEST_TOKEN""#), "password_env: has no use: only https and http repositories take a password".to_owned()),
        (http(&format!(r#""ssh_key_file":"{here}/key""#)), "ssh_key_file: has no use: only ssh repositories take a key".to_owned()),
        (http(&format!(r#""known_hosts_file":"{here}/key""#)), "known_hosts_file: has no use: only ssh has known hosts".to_owned()),
        (ssh(&format!(r#""ssh_key_file":"{here}/open""#)), "ssh_key_file: names a file that others than its owner may use (its mode is 644); run chmod 600 on it".to_owned()),
        (ssh(&format!(r#""ssh_key_file":"{here}/none""#)), "ssh_key_file: names a file that cannot be read: No such file or directory (os error 2)".to_owned()),
        (ssh(&format!(r#""ssh_key_file":"{here}""#)), "ssh_key_file: names a file that cannot be read: it is no file".to_owned()),
        (ssh(r#""ssh_key_file":"key""#), "ssh_key_file: must be the absolute path of a file, without \"..\"".to_owned()),
        (ssh(r#""ssh_key_file":"/a b""#), "ssh_key_file: has a character that ssh takes for its own; a path for it has letters, digits and /._+-@,= alone".to_owned()),
        (ssh(r#""known_hosts_file":"/%h""#), "known_hosts_file: has a character that ssh takes for its own; a path for it has letters, digits and /._+-@,= alone".to_owned()),
        (ssh(&format!(r#""known_hosts_file":"{here}/none""#)), "known_hosts_file: cannot be read: No such file or directory (os error 2)".to_owned()),
        (http(r#""credential_command":[]"#), "credential_command: is empty; write a program and its arguments".to_owned()),
        (http(r#""credential_command":["hunter2"]"#), "credential_command: must begin with the absolute path of a program, without \"..\"".to_owned()),
        (http(&format!(r#""credential_command":["{here}/none"]"#)), "credential_command: names a program that cannot be used: No such file or directory (os error 2)".to_owned()),
        (http(&format!(r#""credential_command":["{here}/open"]"#)), "credential_command: names no program: it is no file that can be executed".to_owned()),
        (http(&format!(r#""credential_command":["{here}/any"]"#)), "credential_command: names a program that every user of this host can write; run chmod o-w on it".to_owned()),
    ];
    for (fields, expected) in cases {
        let error = read(&with_repository(&format!(r#"{fields},"path":"/a""#))).unwrap_err();
        let (_, said) = error.split_once("repositories[0].").expect(&error);
        assert_eq!(said, expected, "{fields}");
        assert!(!error.contains("hunter"), "{error}");
    }
    let right = [
        http(r#""username":"ada","password_env":"DERRICK_TEST_TOKEN""#),
        http(&format!(
            r#""username":"ada","password_file":"{here}/open""#
        )),
        http(&format!(
            r#""username":"ada","credential_command":["{here}/pro-gram","x"]"#
        )),
        ssh(&format!(
            r#""ssh_key_file":"{here}/key","known_hosts_file":"{here}/open""#
        )),
        ssh(&format!(r#""known_hosts_file":"{here}/open""#)),
    ];
    for fields in right {
        let config = read(&with_repository(&format!(r#"{fields},"path":"/a""#)));
        assert!(!format!("{config:?}").contains("hunter"), "{config:?}");
        assert!(config.is_ok(), "{config:?}");
    }
}

#[test]
fn the_way_to_a_host_is_one_and_holds_no_credentials_in_the_config() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("ca"), "-----BEGIN CERTIFICATE-----\nx\n").unwrap();
    fs::write(at("odd"), "hunter2").unwrap();
    fs::write(at("proxy"), "http://ada:hunter2@proxy:3128/\n").unwrap();
    let no_proxy = "no URL of a proxy; it must be as \"http://host:port\" or with https";
    let cases = [
        (r#""ca_file":"/x","url":"http://h/x""#.to_owned(), "ca_file: has no use: only https has certificates".to_owned()),
        (r#""ca_file":"x","url":"https://h/x""#.to_owned(), "ca_file: must be the absolute path of a file, without \"..\"".to_owned()),
        (format!(r#""ca_file":"{here}/none","url":"https://h/x""#), "ca_file: cannot be read: No such file or directory (os error 2)".to_owned()),
        (format!(r#""ca_file":"{here}/odd","url":"https://h/x""#), "ca_file: has no certificate; it must have some as PEM, from \"-----BEGIN CERTIFICATE-----\" on".to_owned()),
        (r#""proxy":"http://a:hunter2@p:1","url":"https://h/x""#.to_owned(), "proxy: contains credentials; name the place of the whole URL in proxy_env or proxy_file".to_owned()),
        (r#""proxy":"p:1","url":"https://h/x""#.to_owned(), format!("proxy: is {no_proxy}")),
        (r#""proxy":"socks5://p:1","url":"https://h/x""#.to_owned(), format!("proxy: is {no_proxy}")),
        (r#""proxy":"http://p:1/x","url":"https://h/x""#.to_owned(), format!("proxy: is {no_proxy}")),
        (r#""proxy":"http://p:1","url":"git@h:x""#.to_owned(), "proxy: has no use: only https and http repositories are reached through a proxy".to_owned()),
        (r#""proxy":"http://p:1","proxy_env":"P","url":"https://h/x""#.to_owned(), "proxy_env: is there beside proxy; there is one proxy at most".to_owned()),
        (format!(r#""proxy_env":"{TOKEN_NAME}","url":"https://h/x""#), format!("proxy_env: leads to what is {no_proxy}")),
        (format!(r#""proxy_file":"{here}/odd","url":"https://h/x""#), format!("proxy_file: leads to what is {no_proxy}")),
        (format!(r#""proxy_file":"{here}/none","url":"https://h/x""#), "proxy_file: names a file that cannot be read: No such file or directory (os error 2)".to_owned()),
    ];
    for (fields, expected) in cases {
        let error = read(&with_repository(&format!(r#"{fields},"path":"/a""#))).unwrap_err();
        let (_, said) = error.split_once("repositories[0].").expect(&error);
        assert_eq!(said, expected, "{fields}");
        assert!(!error.contains("hunter"), "{error}");
    }
    let right = format!(
        r#""url":"https://h/x","path":"/a","ca_file":"{here}/ca","proxy_file":"{here}/proxy""#
    );
    let config = read(&with_repository(&right)).unwrap();
    let proxy = config.repositories[0].proxy().unwrap().unwrap();
    assert_eq!(proxy.expose(), "http://ada:hunter2@proxy:3128/");
}

#[test]
fn a_depth_counts_commits_and_goes_with_a_history_that_ends() {
    let whole =
        "depth: cannot be had with the history \"branch\" or \"full\": these are of all commits";
    for (fields, expected) in [
        (r#""depth":3,"history":"branch""#, whole),
        (r#""depth":3,"history":"full""#, whole),
        (
            r#""depth":100001"#,
            "depth: is more than 100000; leave it out to have all commits",
        ),
        (
            r#""depth":0"#,
            "depth: the number 0 does not fit, must be a nonzero u32",
        ),
    ] {
        let text = with_repository(&format!(r#"{fields},"url":"https://h/x","path":"/a""#));
        let error = read(&text).unwrap_err();
        let (_, said) = error.split_once("repositories[0].").expect(&error);
        assert_eq!(said, expected, "{fields}");
    }
    for fields in [
        r#""depth":1"#,
        r#""depth":100000,"history":"none""#,
        r#""depth":3,"history":"sealed","submodules":true"#,
        r#""depth":null"#,
    ] {
        let text = with_repository(&format!(r#"{fields},"url":"https://h/x","path":"/a""#));
        assert!(read(&text).is_ok(), "{fields}");
    }
}

#[test]
fn a_filter_is_one_of_files() {
    for (text, filter) in [
        ("blob:none", "blob:none"),
        ("blob:limit=0", "blob:none"),
        ("blob:limit=1", "blob:limit=1"),
        ("blob:limit=3k", "blob:limit=3072"),
        ("blob:limit=2M", "blob:limit=2097152"),
        ("blob:limit=1g", "blob:limit=1073741824"),
    ] {
        let text = with_repository(&format!(
            r#""filter":"{text}","url":"https://h/x","path":"/a""#
        ));
        let config = read(&text).unwrap();
        let read = config.repositories[0].filter.unwrap();
        assert_eq!(read.to_string(), filter);
    }
    for odd in [
        "",
        "blob:limit=",
        "blob:limit=k",
        "blob:limit=+1",
        "blob:limit=-1",
        "blob:limit=1.5m",
        "blob:limit=1kk",
        "blob:limit=18446744073709551616",
        "blob:limit=18446744073709551615k",
        "tree:0",
        "combine:blob:none+tree:0",
        "sparse:oid=main:x",
        "BLOB:NONE",
        " blob:none",
    ] {
        let text = with_repository(&format!(
            r#""filter":"{odd}","url":"https://h/x","path":"/a""#
        ));
        let error = read(&text).unwrap_err();
        let (_, said) = error.split_once("repositories[0].").expect(&error);
        let expected = "filter: is no filter of files; write \"blob:none\", or \"blob:limit=\" and a number of bytes, \
                        which may end in k, m or g";
        assert_eq!(said, expected, "{odd}");
    }
}

#[test]
fn submodules_are_allowed_by_beginnings_of_urls() {
    let odd = "submodule_urls: has what no URL begins with; write \"https://host/group/\", \"git@host:group/\" or a directory";
    for (fields, expected) in [
        (
            r#""submodules":true,"history":"none""#,
            "submodules: cannot be had with the history \"none\": the commits that are named would not be there",
        ),
        (
            r#""submodule_urls":["https://h/"]"#,
            "submodule_urls: has no use without \"submodules\": true",
        ),
        (r#""submodules":true,"submodule_urls":[""]"#, odd),
        (r#""submodules":true,"submodule_urls":["h/x"]"#, odd),
        (
            r#""submodules":true,"submodule_urls":["https://h/../x"]"#,
            odd,
        ),
        (r#""submodules":true,"submodule_urls":["ftp://h/x"]"#, odd),
        (
            r#""submodules":true,"submodule_urls":["https://hunter2@h/x"]"#,
            "submodule_urls: has credentials in a URL; remove them",
        ),
    ] {
        let text = with_repository(&format!(r#"{fields},"url":"https://h/x","path":"/a""#));
        let error = read(&text).unwrap_err();
        let (_, said) = error.split_once("repositories[0].").expect(&error);
        assert_eq!(said, expected, "{fields}");
    }
    let prefixes = r#"["https://h/g","git@h:g/","ssh://git@h/","/srv/git","file:///srv/"]"#;
    let fields =
        format!(r#""url":"https://h/x","path":"/a","submodules":true,"submodule_urls":{prefixes}"#);
    assert!(read(&with_repository(&fields)).is_ok());
}

#[test]
fn large_files_are_allowed_by_beginnings_of_http_urls() {
    let odd = "lfs_urls: has what no URL of a server of large files begins with; write \"https://host/group/\"";
    let strange = "lfs_urls: has an odd character, a query, \"..\" or \".\" in a URL; write \"https://host/group/\"";
    for (fields, expected) in [
        (
            r#""lfs_urls":["https://h/"]"#,
            "lfs_urls: has no use without \"lfs\": true",
        ),
        (r#""lfs":true,"lfs_urls":[""]"#, odd),
        (r#""lfs":true,"lfs_urls":["https://"]"#, odd),
        (r#""lfs":true,"lfs_urls":["https:///x"]"#, odd),
        (r#""lfs":true,"lfs_urls":["git@h:x"]"#, odd),
        (r#""lfs":true,"lfs_urls":["/srv/x"]"#, odd),
        (r#""lfs":true,"lfs_urls":["https://h/../x"]"#, strange),
        (r#""lfs":true,"lfs_urls":["https://h/%2e%2e/x"]"#, strange),
        (r#""lfs":true,"lfs_urls":["https://h/?x"]"#, strange),
        (
            r#""lfs":true,"lfs_urls":["https://hunter2@h/x"]"#,
            "lfs_urls: has credentials in a URL; remove them",
        ),
    ] {
        let text = with_repository(&format!(r#"{fields},"url":"https://h/x","path":"/a""#));
        let error = read(&text).unwrap_err();
        let (_, said) = error.split_once("repositories[0].").expect(&error);
        assert_eq!(said, expected, "{fields}");
    }
    let fields =
        r#""url":"git@h:x","path":"/a","lfs":true,"lfs_urls":["https://h/g","http://h:80/"]"#;
    assert!(read(&with_repository(fields)).is_ok());
}

#[test]
fn a_token_file_that_the_workspace_could_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().canonicalize().unwrap();
    fs::write(here.join("token"), "hunter2").unwrap();
    let here = here.display();
    let text = |base: &str| {
        format!(
            r#"{{"name":"n","repositories":[{{"token_file":"{here}/token","url":"https://h/x","path":"/a"}}],"base":{base}}}"#
        )
    };
    for base in [
        format!(r#"{{"type":"host","include":["{here}"]}}"#),
        format!(r#"{{"type":"directory","path":"{here}"}}"#),
    ] {
        assert_eq!(
            read(&text(&base)).unwrap_err(),
            format!(
                "c.json:1:43: repositories[0].token_file: lies in {here}, which the base shows to the workspace; move the file elsewhere"
            )
        );
    }
    assert!(read(&text("\"host\"")).is_ok());
    // Other files with secrets likewise.
    let base = format!(r#"{{"type":"directory","path":"{here}"}}"#);
    let key = directory.path().join("token");
    fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for (url, field) in [
        ("https://h/x", r#""username":"a","password_file""#),
        ("git@h:x", r#""ssh_key_file""#),
    ] {
        let text = text(&base)
            .replace("https://h/x", url)
            .replace(r#""token_file""#, field);
        let error = read(&text).unwrap_err();
        assert!(error.contains("_file: lies in"), "{error}");
    }
}

#[test]
fn bases_are_refused_unless_the_host_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    let file = format!("{here}/file");
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink("/", format!("{here}/link")).unwrap();
    let include =
        |path: &str| format!(r#"{{"name":"n","base":{{"type":"host","include":["{path}"]}}}}"#);
    let of_type = |kind: &str, path: &str| {
        format!(r#"{{"name":"n","base":{{"type":"{kind}","path":"{path}"}}}}"#)
    };
    let secrets = |real: &str| {
        format!(
            "1:46: base.include[0]: {real} holds the host's secrets and accounts; name the directory below it that is needed"
        )
    };
    let cases = [
        (include("/nonexistent"), "1:46: base.include[0]: /nonexistent does not exist; name a directory of this host".to_owned()),
        (include(&file), format!("1:46: base.include[0]: {file} is no directory; name a directory of this host")),
        (include("opt"), "1:46: base.include[0]: \"opt\" is not absolute; write it from '/' on".to_owned()),
        (include("/"), secrets("/")),
        (include("/etc/"), secrets("/etc")),
        (include(&format!("{here}/link")), secrets("/")),
        (include("/proc/self"), "1:46: base.include[0]: lies in /proc, which a workspace never gets from the host; remove it".to_owned()),
        (of_type("directory", "/nonexistent"), "1:47: base.path: /nonexistent does not exist; name a directory of this host".to_owned()),
        (of_type("directory", &file), format!("1:47: base.path: {file} is no directory; name a directory of this host")),
        (of_type("directory", "/"), "1:47: base.path: is the host's own root, with its secrets; for the host's programs, write \"base\": \"host\"".to_owned()),
        (of_type("directory", "/tmp/../etc"), "1:47: base.path: \"/tmp/../etc\" contains \"..\"; write the path without it".to_owned()),
        (of_type("tarball", &format!("{here}/none.tar")), format!("1:45: base.path: {here}/none.tar does not exist; name a file of this host")),
        (of_type("tarball", here), format!("1:45: base.path: {here} is no file; name a file of this host")),
        (of_type("tarball", "base.tar"), "1:45: base.path: \"base.tar\" is not absolute; write it from '/' on".to_owned()),
    ];
    for (text, expected) in cases {
        assert_eq!(read(&text).unwrap_err(), format!("c.json:{expected}"));
    }
    assert_eq!(
        read(&format!(
            r#"{{"name":"n","base":{{"type":"host","include":["{here}","{here}/"]}}}}"#
        ))
        .unwrap_err(),
        format!(
            "c.json:1:{}: base.include[1]: is there twice; remove one",
            49 + here.len()
        )
    );
}

#[test]
fn names_of_variables_the_workdir_and_the_user_are_checked() {
    assert_messages(&[
        (
            r#"{"name":"n","env":{"":"x"}}"#,
            "c.json:1:23: env[\"\"]: an environment variable's name cannot be empty",
        ),
        (
            r#"{"name":"n","env":{"A=B":"x"}}"#,
            "c.json:1:26: env[\"A=B\"]: an environment variable's name cannot contain '=' or NUL",
        ),
        (
            r#"{"name":"n","user":"99999"}"#,
            "c.json:1:20: user: must be below 65536, if it is a number",
        ),
        (
            r#"{"name":"n","workdir":"code"}"#,
            "c.json:1:23: workdir: \"code\" is not absolute; write it from '/' on",
        ),
    ]);
}

#[test]
fn limits_are_checked_and_what_is_not_supported_is_refused() {
    let size = "is no size; write a number of bytes, or a number and B, kB, MB, GB, KiB, MiB or GiB, such as \"512MiB\"";
    let little = "limits.memory: is less than the 4 MiB that a sandbox needs at least; write more, such as \"512MiB\"";
    let no_files = |field| {
        format!(
            "limits.{field}: is no size that a filesystem can have; write 4 KiB or more, such as \"64MiB\""
        )
    };
    let kept = "limits.output: must be from 1 B to 1 GiB; write a size such as \"10MiB\"";
    let cases = [
        (r#"{"memory":1024}"#, little.to_owned()),
        (r#"{"memory":0}"#, little.to_owned()),
        (r#"{"memory":"lots"}"#, format!("limits.memory: \"lots\" {size}")),
        (r#"{"memory":"-1GB"}"#, format!("limits.memory: \"-1GB\" {size}")),
        (r#"{"memory":"1.5.5G"}"#, format!("limits.memory: \"1.5.5G\" {size}")),
        (r#"{"memory":"999999999999GB"}"#, format!("limits.memory: \"999999999999GB\" {size}")),
        (r#"{"memory":-1}"#, "limits.memory: is the number -1, must be a size: a number of bytes, or a text such as \"512MiB\"".to_owned()),
        (r#"{"disk":"5 KiB"}"#, "limits.disk: is no size that a disk can have; write at least 1 MiB and at most 8 TiB, such as \"10GiB\"".to_owned()),
        (r#"{"inodes":1000}"#, "limits.inodes: bounds the files on a disk whose size is not bounded; set \"disk\" as well".to_owned()),
        (r#"{"cpus":0}"#, "limits.cpus: 0 is no number of cpus that can be shared out; write 0.01 or more, such as 1.5".to_owned()),
        (r#"{"cpus":"2"}"#, "limits.cpus: is a text, must be a number".to_owned()),
        (r#"{"pids":-5}"#, "limits.pids: the number -5 does not fit, must be a whole number from 0 to 4294967295".to_owned()),
        (r#"{"pids":0}"#, "limits.pids: is 0; write a number above 0, such as 256".to_owned()),
        (r#"{"pids":1.5}"#, "limits.pids: is the number 1.5, must be a whole number".to_owned()),
        (r#"{"open_files":3}"#, "limits.open_files: is less than the 16 that a shell needs; write more, such as 1024".to_owned()),
        (r#"{"shm":0}"#, no_files("shm")),
        (r#"{"tmp":4095}"#, no_files("tmp")),
        (r#"{"tmp":18446744073709551615}"#, no_files("tmp")),
        (r#"{"output":0}"#, kept.to_owned()),
        (r#"{"output":"2GiB"}"#, kept.to_owned()),
        (r#"{"execs":0}"#, "limits.execs: is 0; write a number above 0, such as 16".to_owned()),
        (r#""1GB""#, "limits: is a text, must be an object".to_owned()),
    ];
    for (limits, expected) in cases {
        let error = read(&format!(r#"{{"name":"n","limits":{limits}}}"#)).unwrap_err();
        let column = if limits.starts_with('"') {
            22
        } else {
            22 + limits.find(':').unwrap() + 1
        };
        assert_eq!(error, format!("c.json:1:{column}: {expected}"));
    }
    assert_messages(&[
        (
            r#"{"name":"n","requests":{"memory":0}}"#,
            "c.json:1:34: requests.memory: is 0; leave it out or write a size such as \"256MiB\"",
        ),
        (
            r#"{"name":"n","requests":{"cpus":-1}}"#,
            "c.json:1:32: requests.cpus: -1 is no number of cpus that can be shared out; write 0.01 or more, such as 1.5",
        ),
        (
            r#"{"name":"n","limits":{"cpus":1},"requests":{"cpus":1.5}}"#,
            "c.json:1:52: requests.cpus: 1.5 is above limits.cpus, 1; write that or less",
        ),
        (
            r#"{"name":"n","limits":{"memory":"8MiB"},"requests":{"memory":8388609}}"#,
            "c.json:1:61: requests.memory: 8388609 is above limits.memory, 8388608; write that or less",
        ),
        (
            r#"{"name":"n","ttl":0}"#,
            "c.json:1:19: ttl: 0 is no number of seconds that can be waited; write a number above 0, such as 3600",
        ),
        (
            r#"{"name":"n","max_workspaces":0}"#,
            "c.json:1:30: max_workspaces: is 0; write a number above 0, such as 100",
        ),
    ]);
    let set = read(r#"{"name":"n","limits":{"memory":"512MiB","cpus":1.5,"pids":256}}"#).unwrap();
    let limits = crate::sandbox::Limits {
        memory: Some(512 << 20),
        cpus: Some(1.5),
        pids: Some(256),
        ..Default::default()
    };
    assert_eq!(crate::sandbox::Limits::from(&set.limits.unwrap()), limits);
    for nothing in [
        r#""limits":null"#,
        r#""limits":{}"#,
        r#""limits":{"memory":null}"#,
        r#""pool":null"#,
        r#""pool":{}"#,
        r#""pool":{"size":null}"#,
        r#""pool":{"size":0,"memory":"1GiB"}"#,
        r#""layers":null"#,
        r#""layers":{}"#,
        r#""layers":{"max_size":"20GiB","max_age":86400}"#,
    ] {
        assert!(
            read(&format!(r#"{{"name":"n",{nothing}}}"#)).is_ok(),
            "{nothing}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_a_config_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("good"), r#"{"name":"n"}"#).unwrap();
    fs::write(at("open"), r#"{"name":"n"}"#).unwrap();
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::write(at("large"), vec![b' '; 2 << 20]).unwrap();
    fs::write(at("latin1"), b"{\"name\":\"\xfc\"}").unwrap();
    fs::write(at("wrong"), r#"{"name":""}"#).unwrap();
    assert_eq!(WorkspaceConfig::from_file(&at("good")).unwrap().name, "n");
    let cases = [
        ("none", "No such file or directory (os error 2)"),
        ("", "Is a directory (os error 21)"),
        (
            "open",
            "every user of this host can write it; run chmod o-w on it",
        ),
        ("large", "it is larger than 1 MiB"),
        ("latin1", "it is not UTF-8"),
    ];
    for (name, source) in cases {
        let error = anyhow::Error::from(WorkspaceConfig::from_file(&at(name)).unwrap_err());
        let expected = format!(
            "reading the workspace config {}: {source}",
            at(name).display()
        );
        assert_eq!(format!("{error:#}"), expected);
    }
    assert_eq!(
        WorkspaceConfig::from_file(&at("wrong"))
            .unwrap_err()
            .to_string(),
        format!(
            "{}:1:9: name: must start with a letter or a digit and not end with a space",
            at("wrong").display()
        )
    );
}

#[test]
fn the_examples_are_right_but_for_files_that_this_host_lacks() {
    let missing = "does not exist; name a file of this host";
    let cases = [
        ("minimal.json", None),
        ("python-project.json", None),
        (
            "tarball.json",
            Some(format!("5:13: base.path: /srv/derrick/debian.tar.zst {missing}")),
        ),
        (
            "network.json",
            Some("8:21: repositories[0].token_file: names a file that cannot be read: No such file or directory (os error 2)".to_owned()),
        ),
    ];
    for (name, expected) in cases {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(name);
        let found = WorkspaceConfig::from_json(&fs::read_to_string(file).unwrap(), name);
        let found = found.err().map(|error| error.to_string());
        assert_eq!(found, expected.map(|expected| format!("{name}:{expected}")));
    }
}

#[test]
fn the_setup_has_the_network_of_the_commands_unless_it_has_its_own() {
    for (fields, expected) in [
        ("", Network::None),
        (r#","network":"host""#, Network::Host),
        (
            r#","network":"host","setup":{"network":"none"}"#,
            Network::None,
        ),
        (r#","setup":{"network":"host"}"#, Network::Host),
    ] {
        let config = read(&format!(r#"{{"name":"n"{fields}}}"#)).unwrap();
        assert_eq!(config.setup_network(), expected);
    }
}

#[test]
fn the_built_in_config_breaks_no_rule() {
    let text = serde_json::to_string(&WorkspaceConfig::built_in()).unwrap();
    assert_eq!(read(&text).unwrap().name, "default");
}

#[test]
fn the_shipped_schema_is_that_of_the_types() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.schema.json");
    let shipped: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert!(
        shipped == WorkspaceConfig::json_schema(),
        "config.schema.json is not up to date; run: cargo run -- schema > config.schema.json"
    );
}
