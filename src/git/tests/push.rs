//! Pushes, as far as no workspace is needed for them: `tests/push.rs` has the others.

use futures_util::FutureExt as _;

use super::*;
use crate::git::push::LOOKING;

#[tokio::test]
async fn an_owner_whose_pushes_do_not_end_keeps_nobody_else_waiting() {
    let setting = Setting::new();
    let upstream = Git::new();
    let tip: CommitId = upstream.commit("first").parse().expect("an id");
    let repository = repository(&upstream.url(), None);
    let enter = || LOOKING.enter(Some("slow")).now_or_never();
    let held: Vec<_> = std::iter::from_fn(enter).collect();
    assert!(!held.is_empty());
    let outgoing = Outgoing {
        name: "HEAD".to_owned(),
        bases: vec![tip.clone()],
        tip,
        bundle: None,
        branch: "theirs".to_owned(),
        owner: Some("other".to_owned()),
    };
    let looked_at = setting.mirrors.push(&repository, outgoing);
    // It had its turn. The git that looks is started by derrick's program, which these tests are not.
    let refused = looked_at.await.expect_err("no git is confined");
    assert!(matches!(refused, PushError::Unfit(_)), "{refused}");
}
