//! `derrick check`: says what this host allows, what is missing, and the fix for each.
//!
//! Forks, so it must be called before the process has a second thread.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::ReportFormat;
use crate::sandbox::identity::Identity;
use crate::sandbox::probe::{Fact, Report, State, probe};

/// Prints the report on stdout; success if the `ns` mode works here, else 1.
#[must_use]
pub fn check(state_dir: &Path, format: ReportFormat) -> ExitCode {
    let report = probe(state_dir);
    let works = report.ns_works();
    let text = match format {
        ReportFormat::Text => Table(&report).to_string(),
        ReportFormat::Json => json(&report),
    };
    // Whoever closed stdout reads the exit code.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn json(report: &Report) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        ns_works: bool,
        #[serde(flatten)]
        report: &'a Report,
    }
    let answer = Answer {
        ns_works: report.ns_works(),
        report,
    };
    serde_json::to_value(answer)
        .map_or_else(|error| error.to_string(), |value| format!("{value:#}\n"))
}

/// A report for people: one line a fact, and what is wrong below it.
struct Table<'a>(&'a Report);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |fact: &Fact| fact.name.len();
        let width = self.0.facts.iter().map(width).max().unwrap_or(0);
        for fact in &self.0.facts {
            let state = match fact.state {
                State::Ok => "ok",
                State::Weaker => "weaker",
                State::Missing => "MISSING",
            };
            writeln!(
                f,
                "{state:<7}  {:<width$}  {}",
                fact.name,
                printable(&fact.found)
            )?;
            for (word, text) in [("so", Some(&fact.effect)), ("fix", fact.fix.as_ref())] {
                let lines = text.map(|text| text.lines()).into_iter().flatten();
                for (number, line) in lines.enumerate() {
                    let label = if number == 0 { word } else { "" };
                    writeln!(
                        f,
                        "{:<7}  {:<width$}  {label:<3}  {}",
                        "",
                        "",
                        printable(line)
                    )?;
                }
            }
        }
        writeln!(f)?;
        f.write_str(&summary(self.0))?;
        f.write_char('\n')
    }
}

/// What a terminal could take for a command is shown as an escape.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Whether `ns` works, in which identity mode, and what each lower mode lacks.
fn summary(report: &Report) -> String {
    const SUBORDINATE: &str = "for an ordinary user with subordinate ids, all sandboxes share one range of ids, \
                               the host's files are read-only and renaming a directory of a layer gives EXDEV";
    const SINGLE: &str =
        "without subordinate ids, chown, other users and package managers do not work either";
    let (Some(identity), true) = (report.identity, report.ns_works()) else {
        return "ns does not work here: see what is MISSING".to_owned();
    };
    let mode = identity.describe();
    match identity {
        Identity::Ranges => {
            format!("ns works here, as root ranges: {mode}; {SUBORDINATE}; {SINGLE}")
        }
        Identity::Subordinate => format!("ns works here, with subordinate ids: {mode}; {SINGLE}"),
        Identity::Single => format!(
            "ns works here, with a single id: {mode}; {}",
            identity.weaker().unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(identity: Option<Identity>, state: State) -> Report {
        let fact = |name, state, effect: &str, fix: Option<&str>| Fact {
            name,
            state,
            found: "as\x1bfound".to_owned(),
            effect: effect.to_owned(),
            fix: fix.map(str::to_owned),
        };
        Report {
            identity,
            facts: vec![
                fact("kernel", State::Ok, "", None),
                fact("user_namespaces", state, "no sandbox", Some("one\n  two")),
            ],
        }
    }

    #[test]
    fn a_table_is_aligned_and_shows_effect_and_fix_of_what_is_wrong() {
        let text = Table(&report(None, State::Missing)).to_string();
        let expected = "\
ok       kernel           as\\u{1b}found
MISSING  user_namespaces  as\\u{1b}found
                          so   no sandbox
                          fix  one
                                 two

ns does not work here: see what is MISSING
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_last_line_tells_the_mode_and_what_lower_ones_lack() {
        let last = |identity| summary(&report(Some(identity), State::Weaker));
        assert_eq!(
            last(Identity::Ranges),
            "ns works here, as root ranges: 65,536 ids of each sandbox's own; for an ordinary user with \
             subordinate ids, all sandboxes share one range of ids, the host's files are read-only and renaming \
             a directory of a layer gives EXDEV; without subordinate ids, chown, other users and package \
             managers do not work either"
        );
        assert_eq!(
            last(Identity::Subordinate),
            "ns works here, with subordinate ids: 65,536 subordinate ids, shared by this user's sandboxes; \
             without subordinate ids, chown, other users and package managers do not work either"
        );
        assert_eq!(
            last(Identity::Single),
            "ns works here, with a single id: one id, the user's own; root inside is the user who runs derrick and \
             there is no other id: chown, other users and package managers do not work; subordinate ids give more, \
             see 'derrick check'"
        );
    }

    #[test]
    fn ns_works_unless_something_is_missing() {
        for (state, works) in [
            (State::Ok, true),
            (State::Weaker, true),
            (State::Missing, false),
        ] {
            let answer: serde_json::Value =
                serde_json::from_str(&json(&report(Some(Identity::Single), state))).unwrap();
            assert_eq!(answer["ns_works"], works);
            assert_eq!(answer["identity"], "single");
            assert_eq!(answer["facts"][1]["name"], "user_namespaces");
        }
    }
}
