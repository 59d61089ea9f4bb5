//! Under which names of the upstream the commits of workspaces may be pushed.
//!
//! A pattern is a branch's name in which `*` stands for any text without a slash, `**` for any text, and `{id}`
//! for the workspace's id.

/// What stands for the workspace's id.
const ID: &str = "{id}";

/// Whether a pattern allows the branch `name` to the workspace `id`.
pub(super) fn allows(pattern: &str, id: &str, name: &str) -> bool {
    fits(pattern.replace(ID, id).as_bytes(), name.as_bytes())
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=name.len()).any(|at| fits(rest, &name[at..])),
        [b'*', rest @ ..] => (0..=name.len())
            .take_while(|&at| !name[..at].contains(&b'/'))
            .any(|at| fits(rest, &name[at..])),
        [first, rest @ ..] => name
            .split_first()
            .is_some_and(|(byte, name)| byte == first && fits(rest, name)),
    }
}

/// What is wrong with a pattern.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    const RIGHT: &str = "write a branch's name, in which * stands for any text without a slash, ** for any text \
                         and {id} for the workspace's id, such as \"agents/*\"";
    if pattern.starts_with("refs/") {
        return Err(format!(
            "starts with refs/, which a branch's name is without; {RIGHT}"
        ));
    }
    if pattern.matches('*').count() > 3 {
        return Err(format!("has more than three *; {RIGHT}"));
    }
    super::rules::reference(&pattern.replace(ID, "id").replace('*', "x"))
        .map_err(|_| format!("fits no branch; {RIGHT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_what_it_says_and_nothing_else() {
        for (pattern, name, fit) in [
            ("agents/*", "agents/a", true),
            ("agents/*", "agents/", true),
            ("agents/*", "agents/a/b", false),
            ("agents/*", "agentsx", false),
            ("agents/*", "xagents/a", false),
            ("agents/**", "agents/a/b", true),
            ("agents/{id}/*", "agents/w-1/fix", true),
            ("agents/{id}/*", "agents/w-2/fix", false),
            ("a*c*", "abcd", true),
            ("a*c*", "abd", false),
            ("main", "main", true),
            ("main", "main2", false),
            ("**", "main", true),
        ] {
            assert_eq!(allows(pattern, "w-1", name), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_that_fits_no_branch_is_refused() {
        for right in ["agents/*", "agents/{id}", "**", "a-*-b", "{id}/*"] {
            assert_eq!(check(right), Ok(()), "{right}");
        }
        for wrong in [
            "",
            "refs/heads/x",
            "a b",
            "a..b",
            "-x",
            "a/",
            "/a",
            "a?",
            "*****",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
