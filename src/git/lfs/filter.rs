//! What git inside a workspace runs for large files: its own git-lfs where there is one, and else a few lines of
//! shell that do the same with what is in any image.
//!
//! They are settings of the checkout. git replaces `%f` in them by a quoted path, and takes two percent signs for
//! one, so there are no two.

/// The settings of a checkout that has large files, by name.
#[must_use]
pub fn settings() -> [(&'static str, String); 2] {
    [
        ("filter.lfs.clean", format!("{}{}", start("clean"), CLEAN)),
        (
            "filter.lfs.smudge",
            format!("{}{}", start("smudge"), SMUDGE),
        ),
    ]
}

/// Hands over to git-lfs, or reads what comes: `$t` is the file that holds it, `$n` its size, `$d` git's own
/// directory; `$o` and `$s` are what it points to, if it is a pointer.
fn start(word: &str) -> String {
    format!("if command -v git-lfs >/dev/null 2>&1; then exec git-lfs {word} -- %f; fi; {READ}")
}

const READ: &str = r#"d=.git; if [ -n "$GIT_DIR" ] || ! [ -d .git ]; then d=$(git rev-parse --git-common-dir) || exit 1; fi; t=$(mktemp "$d/lfs/tmp/XXXXXXXXXX" 2>/dev/null || mktemp) || exit 1; trap 'rm -f "$t"' EXIT; cat >"$t" || exit 1; n=$(wc -c <"$t") || exit 1; n=$((n)); o=; if [ "$n" -le 1024 ]; then { IFS= read -r v; IFS= read -r h; IFS= read -r s; } <"$t"; o=${h#oid sha256:}; s=${s#size }; case $o in *[!0-9a-f]*) o=;; esac; case $s in ''|0*|*[!0-9]*) o=;; esac; l=$((${#v} + ${#h} + ${#s} + 8)); if [ "$v" != "version https://git-lfs.github.com/spec/v1" ] || [ ${#o} != 64 ] || [ ${#h} != 75 ] || { [ "$n" != $l ] && [ "$n" != $((l - 1)) ]; }; then o=; fi; fi; "#;

/// A pointer and an empty file stay what they are; of anything else the content is kept and a pointer goes out.
const CLEAN: &str = r#"if [ -n "$o" ] || [ "$n" = 0 ]; then cat "$t"; exit; fi; h=$(sha256sum <"$t") || exit 1; set -- $h; o=$1; a=${o#??}; b=${a#??}; p=$d/lfs/objects/${o%"$a"}/${a%"$b"}; if ! [ -f "$p/$o" ]; then mkdir -p "$p" && chmod 644 "$t" && mv "$t" "$p/$o" || exit 1; fi; printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %s\n' "$o" "$n""#;

/// A pointer becomes the content that it points to, where that is here; anything else stays what it is.
const SMUDGE: &str = r#"if [ -n "$o" ]; then a=${o#??}; b=${a#??}; p=$d/lfs/objects/${o%"$a"}/${a%"$b"}/$o; if [ -f "$p" ] && [ "$(($(wc -c <"$p")))" = "$s" ]; then cat "$p"; exit; fi; fi; cat "$t""#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_takes_them_as_they_are() {
        for (name, command) in settings() {
            assert!(!command.contains("%%"), "{name}");
            assert!(!command.contains('\n'), "{name}");
            assert_eq!(command.matches("%f").count(), 1, "{name}");
        }
    }
}
