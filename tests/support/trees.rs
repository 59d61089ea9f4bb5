//! A small tree with files of every kind, changes to it, and all that can be said of what there is then.

use serde_json::{Value, json};

use super::{Workspace, fixture};

/// A small base, so that every file of it can be looked at.
pub(crate) fn busybox() -> Value {
    json!({
        "name": "test",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "workdir": "/project",
        "setup_script": "
            mkdir -p /project/src/deep /project/old
            echo one > /project/src/one; echo two > /project/src/two
            echo x > /project/src/deep/x; echo y > /project/old/y
            ln -s src/one /project/link
            find /project -depth -exec touch -h -d @1700000000 {} +
        ",
    })
}

/// All files but what is other in each sandbox, with all that can be said of them.
pub(crate) fn files(workspace: &Workspace) -> String {
    workspace.ok("
        cd /
        find . -xdev -mindepth 1 ! -path './proc*' ! -path './sys*' ! -path './dev*' \
            -exec stat -c '%n %F %a %u:%g %h %s %Y %N' {} + | sort
        find . -xdev -type f -exec md5sum {} + | sort
    ")
}

/// Changes of every kind to what setup made, and new files of every kind.
pub(crate) const CHANGES: &str = "
    rm src/one; echo more >> src/two; mkdir src/new; echo n > src/new/n
    rm -r old; mkdir old; echo z > old/z
    ln src/two src/hard; ln -s /nowhere src/dangling; mkfifo src/pipe
    chmod 4750 src/two; touch -d @1000 src/new/n; touch -h -d @2000 src/dangling
    rm -r src/deep; echo file > src/deep
    truncate -s 1G src/sparse; printf end >> src/sparse
    d=/project/chain; for n in $(seq 60); do d=$d/ddddddddd; done; mkdir -p $d; echo far > $d/f
";
