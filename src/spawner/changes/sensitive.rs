//! Files that run, or say what runs, on the machine of whoever takes the changes, without being asked for.
//!
//! By name alone, in any directory and in any case of letters: what a tool looks for. The list is of well-known
//! ones and cannot be whole.

use rustix::fs::FileType;

use super::content::Object;
use super::names::is_git_modules;

/// Names of files, in any directory.
const NAMES: &[(&str, &str)] = &[
    (".envrc", "direnv runs it"),
    (".env", "loaded into environments"),
    (".tool-versions", "a version manager acts on it"),
    ("mise.toml", "mise runs what it says"),
    (".mise.toml", "mise runs what it says"),
    (".bashrc", "a shell runs it"),
    (".bash_profile", "a shell runs it"),
    (".bash_login", "a shell runs it"),
    (".bash_logout", "a shell runs it"),
    (".bash_aliases", "a shell runs it"),
    (".profile", "a shell runs it"),
    (".zshrc", "a shell runs it"),
    (".zshenv", "a shell runs it"),
    (".zprofile", "a shell runs it"),
    (".zlogin", "a shell runs it"),
    (".inputrc", "shells read it"),
    (".gitconfig", "git acts on it"),
    (".gitattributes", "git runs the filters that it names"),
    (".gitmodules", "git fetches what it names"),
    (".lfsconfig", "git-lfs acts on it"),
    (".exrc", "an editor runs it"),
    (".vimrc", "an editor runs it"),
    (".nvimrc", "an editor runs it"),
    (".nvim.lua", "an editor runs it"),
    (".dir-locals.el", "an editor runs it"),
    (".mcp.json", "an agent starts the servers that it names"),
    (".cursorrules", "an agent follows it"),
    (".windsurfrules", "an agent follows it"),
    ("CLAUDE.md", "an agent follows it"),
    ("AGENTS.md", "an agent follows it"),
    ("GEMINI.md", "an agent follows it"),
    (".pre-commit-config.yaml", "pre-commit runs what it names"),
    (".pre-commit-hooks.yaml", "pre-commit runs what it names"),
    ("lefthook.yml", "lefthook runs what it says"),
    (".lefthook.yml", "lefthook runs what it says"),
    ("lefthook.yaml", "lefthook runs what it says"),
    (".huskyrc", "husky runs what it says"),
    (".gitlab-ci.yml", "CI runs it"),
    (".travis.yml", "CI runs it"),
    (".drone.yml", "CI runs it"),
    (".cirrus.yml", "CI runs it"),
    (".woodpecker.yml", "CI runs it"),
    ("azure-pipelines.yml", "CI runs it"),
    ("bitbucket-pipelines.yml", "CI runs it"),
    ("appveyor.yml", "CI runs it"),
    (".appveyor.yml", "CI runs it"),
    ("Jenkinsfile", "CI runs it"),
    ("package.json", "a package manager runs its scripts"),
    (".npmrc", "a package manager acts on it"),
    (".yarnrc", "a package manager acts on it"),
    (".yarnrc.yml", "a package manager runs what it names"),
    (".pnpmfile.cjs", "a package manager runs it"),
    ("binding.gyp", "a package manager runs it"),
    ("composer.json", "a package manager runs its scripts"),
    ("setup.py", "an installer runs it"),
    (
        "pyproject.toml",
        "an installer runs the backend that it names",
    ),
    ("conftest.py", "pytest runs it"),
    ("sitecustomize.py", "python runs it at each start"),
    ("usercustomize.py", "python runs it at each start"),
    ("build.rs", "a build runs it"),
    ("rust-toolchain.toml", "rustup acts on it"),
    ("rust-toolchain", "rustup acts on it"),
    ("Makefile", "make runs it"),
    ("GNUmakefile", "make runs it"),
    ("justfile", "just runs it"),
    ("Rakefile", "rake runs it"),
    ("CMakeLists.txt", "a build runs it"),
    ("configure", "a build runs it"),
    ("gradlew", "a build runs it"),
    ("gradlew.bat", "a build runs it"),
    ("mvnw", "a build runs it"),
    ("devcontainer.json", "an editor runs what it says"),
    (".devcontainer.json", "an editor runs what it says"),
    ("authorized_keys", "it lets people in"),
    ("crontab", "cron runs it"),
];

/// Ends of names.
const ENDS: &[(&str, &str)] = &[
    (".pth", "python runs it at each start"),
    (".gradle", "a build runs it"),
    (".gradle.kts", "a build runs it"),
    (".code-workspace", "an editor acts on it"),
    (".sublime-project", "an editor acts on it"),
    (".desktop", "a desktop starts what it names"),
];

/// Directories, with all that is in them.
const DIRECTORIES: &[(&[&str], &str)] = &[
    (&[".github", "workflows"], "CI runs it"),
    (&[".github", "actions"], "CI runs it"),
    (&[".gitlab"], "CI acts on it"),
    (&[".circleci"], "CI runs it"),
    (&[".buildkite"], "CI runs it"),
    (&[".woodpecker"], "CI runs it"),
    (&[".semaphore"], "CI runs it"),
    (&[".vscode"], "an editor acts on it"),
    (&[".idea"], "an editor acts on it"),
    (&[".zed"], "an editor acts on it"),
    (&[".fleet"], "an editor acts on it"),
    (&[".vim"], "an editor runs it"),
    (&[".devcontainer"], "an editor runs what it says"),
    (&[".claude"], "an agent acts on it"),
    (&[".cursor"], "an agent acts on it"),
    (&[".codex"], "an agent acts on it"),
    (&[".gemini"], "an agent acts on it"),
    (&[".windsurf"], "an agent acts on it"),
    (&[".husky"], "git runs it"),
    (&[".githooks"], "git runs it"),
    (&[".cargo"], "cargo acts on it"),
    (&[".mvn"], "a build acts on it"),
    (&["gradle", "wrapper"], "a build runs it"),
    (&[".yarn", "plugins"], "a package manager runs it"),
    (&[".yarn", "releases"], "a package manager runs it"),
    (&[".ssh"], "ssh acts on it"),
    (&["etc", "cron.d"], "cron runs it"),
    (&["etc", "cron.daily"], "cron runs it"),
    (&["etc", "cron.hourly"], "cron runs it"),
    (&["etc", "profile.d"], "a shell runs it"),
    (&["systemd", "system"], "systemd starts it"),
    (&["systemd", "user"], "systemd starts it"),
    (&["etc", "init.d"], "it is started with the machine"),
];

/// Why to look at a new or changed file before it is used, if there is a reason.
pub(super) fn reason(path: &[u8], object: &Object<'_>) -> Option<&'static str> {
    if object.is(FileType::Directory) {
        return None;
    }
    if object.is(FileType::RegularFile) && object.mode() & 0o6000 != 0 {
        return Some("it runs as its owner or group, whoever starts it");
    }
    of_path(path)
}

fn of_path(path: &[u8]) -> Option<&'static str> {
    let path = String::from_utf8_lossy(path);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (name, directories) = parts.split_last()?;
    if is_git_modules(name.as_bytes()) {
        return Some("git fetches what it names");
    }
    let by_name = NAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    let ends = |end: &&(&str, &str)| {
        let start = name.len().checked_sub(end.0.len());
        let found = start.and_then(|start| name.get(start..));
        found.is_some_and(|found| found.eq_ignore_ascii_case(end.0))
    };
    let within = |known: &&(&[&str], &str)| {
        let mut runs = directories.windows(known.0.len());
        runs.any(|run| {
            let mut both = run.iter().zip(known.0);
            both.all(|(part, known)| part.eq_ignore_ascii_case(known))
        })
    };
    by_name
        .or_else(|| ENDS.iter().find(ends))
        .map(|(_, reason)| *reason)
        .or_else(|| Some(DIRECTORIES.iter().find(within)?.1))
}

/// The same of a file in a git directory, at a path that begins with a slash, or is empty where the directory
/// itself is a file.
pub(super) fn reason_in_git(path: &[u8], object: &Object<'_>) -> Option<&'static str> {
    let path = String::from_utf8_lossy(path).to_ascii_lowercase();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return (!object.is(FileType::Directory)).then_some("it leads git to another directory");
    }
    if object.is(FileType::Directory) {
        return None;
    }
    if parts.contains(&"hooks") {
        return Some("git runs it");
    }
    match parts.last().copied() {
        Some("config" | "config.worktree") => Some("git runs what it names"),
        Some("attributes") => Some("git runs the filters that it names"),
        Some("alternates" | "http-alternates") => Some("git reads the repositories that it names"),
        Some("commondir" | "gitdir") => Some("it leads git to another directory"),
        Some("grafts") => Some("it shows another history"),
        _ if parts.contains(&"replace") => Some("it shows another history"),
        _ if object.is(FileType::Symlink) => Some("it leads git somewhere else"),
        _ => None,
    }
}

/// Whether git itself reads, or runs, the file of a git directory at this path below it.
pub(super) fn is_read_by_git(path: &[u8]) -> bool {
    let path = String::from_utf8_lossy(path).to_ascii_lowercase();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        []
        | ["config" | "config.worktree" | "commondir" | "gitdir"]
        | ["hooks", _]
        | ["info", "attributes" | "grafts"]
        | ["objects", "info", "alternates" | "http-alternates"] => true,
        // Those of submodules and of further work trees.
        ["modules" | "worktrees", .., last] => {
            matches!(last, "config" | "config.worktree" | "commondir" | "gitdir")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_by_itself_is_found_anywhere_and_in_any_case() {
        for path in [
            "/project/.envrc",
            "/project/sub/PACKAGE.json",
            "/project/.github/workflows/ci.yml",
            "/project/.GitHub/Workflows/deep/ci.yml",
            "/project/.vscode/tasks.json",
            "/project/.claude/settings.json",
            "/usr/lib/python3/x.pth",
            "/root/.ssh/authorized_keys",
            "/etc/cron.d/x",
            "/project/makefile",
            "/project/GITMOD~1",
        ] {
            assert!(of_path(path.as_bytes()).is_some(), "{path}");
        }
        for path in [
            "/project/src/main.c",
            "/project/.github/README.md",
            "/project/workflows/ci.yml",
            "/project/envrc",
            "/",
            "/project/\u{e9}h",
        ] {
            assert_eq!(of_path(path.as_bytes()), None, "{path}");
        }
    }
}
