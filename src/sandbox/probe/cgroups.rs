//! What `derrick check` says of control groups.

use std::path::Path;

use super::Fact;
use crate::sandbox::cgroups::{Caller, Controller, Layout};

/// Which controllers `caller` can use. `offers` gives those of a group of version 2, `usable` says
/// whether a group can be made below one.
pub(super) fn fact(
    layout: &Layout,
    caller: Caller,
    offers: impl Fn(&Path) -> String,
    usable: impl Fn(&Path) -> bool,
) -> Fact {
    let (mut have, mut lack) = (Vec::new(), Vec::new());
    for controller in Controller::ALL {
        match layout.place(controller, caller, &offers, &usable) {
            Some(place) => have.push(format!("{} on {}", controller.name(), place.version)),
            None => lack.push(controller.name()),
        }
    }
    let kind = layout.kind();
    let found = if have.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}: {}", have.join(", "))
    };
    if lack.is_empty() {
        return Fact::ok("cgroups", found);
    }
    let lack = lack.join(", ");
    let delegated = layout.unified(caller).is_some_and(usable);
    Fact::weaker(
        "cgroups",
        format!("{found}; {lack} cannot be used"),
        format!("the kernel does not account or limit {lack} per sandbox"),
    )
    .fix(Some(fix(kind, caller, delegated).to_owned()))
}

fn fix(kind: &str, caller: Caller, delegated: bool) -> &'static str {
    match (kind, caller) {
        ("none", _) => "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ("v1" | "hybrid", Caller::User) => {
            "boot with systemd.unified_cgroup_hierarchy=1: only version 2 can be given to an ordinary user"
        }
        ("v2", Caller::User) if delegated => {
            "write /etc/systemd/system/user@.service.d/delegate.conf:\n\
             [Service]\n\
             Delegate=cpu memory pids\n\
             and then: systemctl daemon-reload, and log in again"
        }
        ("v2", Caller::User) => {
            "start derrick with: systemd-run --user --scope --property=Delegate=yes derrick"
        }
        _ => {
            "run derrick where /sys/fs/cgroup is not mounted read-only (docker: --privileged --cgroupns=host)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::cgroups::examples::{SESSION, UNIFIED, V1, V2};
    use crate::sandbox::probe::State;

    #[test]
    fn controllers_count_where_they_are_and_can_be_used() {
        let hybrid = format!("{V1}{UNIFIED}");
        let all = "cpuset cpu io memory hugetlb pids";
        let unlimited = "the kernel does not account or limit";
        let cases = [
            (
                V2,
                "0::/",
                Caller::Root,
                all,
                true,
                State::Ok,
                "v2: memory on v2, pids on v2, cpu on v2".to_owned(),
                String::new(),
            ),
            (
                V1,
                "",
                Caller::Root,
                "",
                true,
                State::Ok,
                "v1: memory on v1, pids on v1, cpu on v1".to_owned(),
                String::new(),
            ),
            (
                &hybrid,
                "0::/",
                Caller::Root,
                "hugetlb",
                true,
                State::Ok,
                "hybrid: memory on v1, pids on v1, cpu on v1".to_owned(),
                String::new(),
            ),
            (
                &hybrid,
                "0::/",
                Caller::User,
                "hugetlb",
                true,
                State::Weaker,
                "hybrid; memory, pids, cpu cannot be used".to_owned(),
                format!("{unlimited} memory, pids, cpu per sandbox"),
            ),
            (
                V2,
                SESSION,
                Caller::User,
                "memory pids",
                true,
                State::Weaker,
                "v2: memory on v2, pids on v2; cpu cannot be used".to_owned(),
                format!("{unlimited} cpu per sandbox"),
            ),
            (
                V2,
                SESSION,
                Caller::User,
                all,
                false,
                State::Weaker,
                "v2; memory, pids, cpu cannot be used".to_owned(),
                format!("{unlimited} memory, pids, cpu per sandbox"),
            ),
            (
                "",
                "",
                Caller::Root,
                "",
                true,
                State::Weaker,
                "none; memory, pids, cpu cannot be used".to_owned(),
                format!("{unlimited} memory, pids, cpu per sandbox"),
            ),
        ];
        for (mountinfo, groups, caller, offered, usable, state, found, effect) in cases {
            let layout = Layout::of(mountinfo, groups);
            let fact = fact(&layout, caller, |_| offered.to_owned(), |_| usable);
            assert_eq!(
                (fact.state, fact.found, fact.effect),
                (state, found, effect)
            );
        }
    }

    #[test]
    fn each_lack_has_its_own_fix() {
        let hybrid = format!("{V1}{UNIFIED}");
        let cases = [
            (
                "",
                Caller::Root,
                "",
                true,
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            ),
            (
                V1,
                Caller::User,
                "",
                true,
                "boot with systemd.unified_cgroup_hierarchy=1: only version 2 can be given to an ordinary user",
            ),
            (
                &hybrid,
                Caller::User,
                "",
                true,
                "boot with systemd.unified_cgroup_hierarchy=1: only version 2 can be given to an ordinary user",
            ),
            (
                V2,
                Caller::User,
                "memory pids",
                true,
                "write /etc/systemd/system/user@.service.d/delegate.conf:\n[Service]\nDelegate=cpu memory pids\nand then: systemctl daemon-reload, and log in again",
            ),
            (
                V2,
                Caller::User,
                "memory pids cpu",
                false,
                "start derrick with: systemd-run --user --scope --property=Delegate=yes derrick",
            ),
            (
                V2,
                Caller::Root,
                "memory pids cpu",
                false,
                "run derrick where /sys/fs/cgroup is not mounted read-only (docker: --privileged --cgroupns=host)",
            ),
        ];
        for (mountinfo, caller, offered, usable, fix) in cases {
            let layout = Layout::of(mountinfo, SESSION);
            let fact = fact(&layout, caller, |_| offered.to_owned(), |_| usable);
            assert_eq!(fact.fix.as_deref(), Some(fix));
        }
    }
}
