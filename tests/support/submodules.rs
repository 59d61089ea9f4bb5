//! Submodules of upstream repositories, as their developers make them.

use super::{Upstream, git};

/// Has `of` name these submodules and no others, each by path and URL at the commit that it is at; the commit.
pub(crate) fn name(of: &Upstream, submodules: &[(&str, &str, &Upstream)]) -> String {
    let named = git(&of.work, &["ls-files", "--stage"]);
    for line in named.lines().filter(|line| line.starts_with("160000 ")) {
        let path = line.split('\t').next_back().unwrap_or_default();
        git(&of.work, &["update-index", "--force-remove", path]);
    }
    let mut list = String::new();
    for (path, url, submodule) in submodules {
        list += &format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n");
        let entry = format!("160000,{},{path}", submodule.head());
        git(&of.work, &["update-index", "--add", "--cacheinfo", &entry]);
    }
    std::fs::write(of.work.join(".gitmodules"), list).expect("its own");
    git(&of.work, &["add", ".gitmodules"]);
    of.git(&["commit", "--quiet", "--allow-empty", "--message=submodules"]);
    of.head()
}

/// Changes a file of `of` beside its submodules; the commit.
pub(crate) fn change(of: &Upstream, file: &str, content: &str) -> String {
    std::fs::write(of.work.join(file), content).expect("its own");
    git(&of.work, &["add", file]);
    of.git(&["commit", "--quiet", "--message=change"]);
    of.head()
}
