//! What a program says that opens an upstream: the `get` of git's credential helpers, gitcredentials(7).
//!
//! It runs on the host as derrick's user, with an environment that tells nothing but where programs and that
//! user's files are, and is told scheme and host alone, as git itself tells. It is asked for each use, a few at
//! once, and never told how that went. What it prints beside its answer is thrown away, as it may hold a secret.
//! What it leaves running when it has answered goes on, as a cache that keeps the answer does.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::process::Running;
use crate::config::Secret;

/// How long a program may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Programs that are asked at once; others wait.
static ASKING: Semaphore = Semaphore::const_new(8);

/// An answer is a few lines; what is larger than this, in bytes, is none.
const LARGEST_ANSWER: u64 = 64 << 10;

/// Variables of the provider that a program is given.
const PASSED_ON: [&str; 2] = ["PATH", "HOME"];

/// What a program answered.
#[derive(Debug)]
pub(super) enum Answer {
    Password {
        username: String,
        password: Secret,
    },
    /// A header's value, as its scheme and the rest (git 2.46).
    Header {
        scheme: String,
        credential: Secret,
    },
}

/// Asks `command` what opens `host` over `protocol`.
///
/// # Errors
/// A phrase of what it did, without anything that it said.
pub(super) async fn ask(
    command: &[String],
    (protocol, host): (&str, &str),
    username: Option<&str>,
    patience: Duration,
) -> Result<Answer, String> {
    let mut question = format!("capability[]=authtype\nprotocol={protocol}\nhost={host}\n");
    if let Some(username) = username {
        question.push_str(&format!("username={username}\n"));
    }
    question.push('\n');
    let _place = ASKING
        .acquire()
        .await
        .map_err(|closed| closed.to_string())?;
    let asked = tokio::time::timeout(patience, run(command, question.into_bytes()));
    match asked.await {
        Err(_) => Err(format!("did not end within {} s", patience.as_secs())),
        Ok(Err(error)) => Err(format!("cannot be run: {error}")),
        Ok(Ok((_, answer))) if answer.len() as u64 > LARGEST_ANSWER => {
            Err("answered more than 64 KiB".to_owned())
        }
        Ok(Ok((status, _))) if !status.success() => Err(format!(
            "ended with {status}; run it by hand, with 'get', to see why"
        )),
        Ok(Ok((_, answer))) => parse(&answer, username),
    }
}

/// Runs it to its end, or until it has said too much; killed when this is dropped.
async fn run(command: &[String], question: Vec<u8>) -> io::Result<(ExitStatus, Vec<u8>)> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::other("there is none"))?;
    let mut called = Command::new(program);
    called
        .args(arguments)
        .arg("get")
        .current_dir("/")
        .env_clear();
    for name in PASSED_ON {
        called.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    called
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut running = Running::start(&mut called)?;
    let (stdin, stdout) = running.pipes();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that wants to know nothing may have closed it.
            let _ = stdin.write_all(&question).await;
        }
    };
    let listen = async {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            let mut stdout = stdout.take(LARGEST_ANSWER + 1);
            stdout.read_to_end(&mut answer).await?;
        }
        Ok::<_, io::Error>(answer)
    };
    let ((), answer) = tokio::join!(feed, listen);
    let answer = answer?;
    if answer.len() as u64 > LARGEST_ANSWER {
        running.kill();
    }
    Ok((running.wait().await?, answer))
}

fn parse(answer: &[u8], asked_for: Option<&str>) -> Result<Answer, String> {
    let nothing = || Err("answered no password".to_owned());
    let Ok(answer) = str::from_utf8(answer) else {
        return Err("answered what is not UTF-8".to_owned());
    };
    let value = |key: &str| {
        let lines = answer.lines().take_while(|line| !line.is_empty());
        let values = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.last().filter(|value| !value.is_empty())
    };
    if value("quit").is_some_and(|quit| quit == "1" || quit == "true") {
        return nothing();
    }
    let secret = |text: &str| {
        Secret::from_bytes(text.as_bytes().to_vec())
            .map_err(|reason| format!("answered a password that {reason}"))
    };
    if let (Some(scheme), Some(credential)) = (value("authtype"), value("credential")) {
        if !scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err("answered an authtype that is none".to_owned());
        }
        return Ok(Answer::Header {
            scheme: scheme.to_owned(),
            credential: secret(credential)?,
        });
    }
    let Some(password) = value("password") else {
        return nothing();
    };
    let Some(username) = value("username").or(asked_for) else {
        return Err("answered a password and no username".to_owned());
    };
    if username.contains(|c: char| c.is_control() || c == ':') {
        return Err("answered a username that is none".to_owned());
    }
    Ok(Answer::Password {
        username: username.to_owned(),
        password: secret(password)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of a shell's words; not a file, which another test's fork could hold open for writing.
    async fn told(script: &str, username: Option<&str>) -> Result<String, String> {
        let command = ["/bin/sh", "-c", script, "helper"].map(str::to_owned);
        // Those that answer do so at once.
        let patience = match script.contains("sleep") {
            true => Duration::from_millis(200),
            false => PATIENCE,
        };
        let answer = ask(&command, ("https", "h:8443"), username, patience).await?;
        Ok(match answer {
            Answer::Password { username, password } => format!("{username} {}", password.expose()),
            Answer::Header { scheme, credential } => format!("{scheme}: {}", credential.expose()),
        })
    }

    #[tokio::test]
    async fn what_a_program_answers_is_taken_as_git_takes_it() {
        for (script, username, expected) in [
            ("echo username=ada; echo password=a=b", None, "ada a=b"),
            (
                "echo password=x; echo password=y; echo; echo password=z",
                Some("ada"),
                "ada y",
            ),
            ("echo username=eve; echo password=x", Some("ada"), "eve x"),
            ("echo authtype=Bearer; echo credential=t", None, "Bearer: t"),
            // What it was asked, and how it was called.
            (
                "printf password=; cat | tr '\\n' ' '; echo \"$1\"",
                Some("ada"),
                "ada capability[]=authtype protocol=https host=h:8443 username=ada  get",
            ),
            (
                "echo password=kept; exec >&-; cat > /dev/null",
                Some("ada"),
                "ada kept",
            ),
        ] {
            assert_eq!(
                told(script, username).await.as_deref(),
                Ok(expected),
                "{script}"
            );
        }
    }

    #[tokio::test]
    async fn a_program_that_does_not_answer_is_said_so() {
        for (script, expected) in [
            ("true", "answered no password"),
            (
                "echo quit=1; echo username=a; echo password=canary",
                "answered no password",
            ),
            (
                "echo password=canary",
                "answered a password and no username",
            ),
            (
                "echo username=a:b; echo password=canary",
                "answered a username that is none",
            ),
            (
                "printf 'password=canary\\001\\nusername=a\\n'",
                "answered a password that contains a control character; it must be one line of text",
            ),
            (
                "printf 'password=canary\\377'",
                "answered what is not UTF-8",
            ),
            (
                "echo 'authtype=a b'; echo credential=canary",
                "answered an authtype that is none",
            ),
            (
                "echo canary; exit 3",
                "ended with exit status: 3; run it by hand, with 'get', to see why",
            ),
            ("yes canary", "answered more than 64 KiB"),
            ("exec sleep 1000", "did not end within 0 s"),
            (
                "echo password=canary; exec sleep 1000",
                "did not end within 0 s",
            ),
        ] {
            assert_eq!(
                told(script, None).await,
                Err(expected.to_owned()),
                "{script}"
            );
        }
        let missing = ["/nonexistent".to_owned()];
        let error = ask(&missing, ("https", "h"), None, PATIENCE).await;
        let error = error.expect_err("there is none");
        assert!(error.starts_with("cannot be run: No such file"), "{error}");
    }

    #[tokio::test]
    async fn a_program_gets_the_provider_s_path_and_home_and_nothing_else() {
        let names = "printf password=; env | cut -d= -f1 | grep -v -e ^_ -e PWD -e SHLVL | sort | tr '\\n' ' '";
        let names = told(names, Some("ada")).await.expect("it answers");
        let has_home = std::env::var_os("HOME").is_some();
        let expected = if has_home {
            "ada HOME LC_ALL PATH "
        } else {
            "ada LC_ALL PATH "
        };
        assert_eq!(names, expected);
    }
}
