//! A snapshot that goes from one provider to another is the same there; and an archive that a stranger wrote
//! reaches nothing but its own layer, or leaves nothing at all.

mod support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::trees::{CHANGES, busybox, files};
use support::{
    Answer, Api, Derrick, Launch, Mode, Workspace, entries, entry, mode, succeed, wait_until_empty,
    wait_until_gone,
};
use tar::EntryType;

fn snapshot(workspace: &Workspace) -> String {
    let taken = workspace.post("snapshots", &json!({ "label": "work" }));
    id(&taken.expect(201).json())
}

fn id(described: &Value) -> String {
    described["id"].as_str().expect("an id").to_owned()
}

fn export(api: &Api, snapshot: &str, query: &str) -> Vec<u8> {
    let answer = api.get(&format!("/snapshots/{snapshot}/export{query}"));
    answer.expect(200).body
}

fn import(api: &Api, archive: &[u8]) -> Answer {
    let kind = [("content-type", "application/octet-stream")];
    api.send("POST", "/snapshots/import", &kind, archive)
}

fn start_from(api: &Api, snapshot: &str) -> Workspace {
    api.create_with(&json!({ "snapshot": snapshot }))
}

/// All that is seen of the files; how many links and blocks a directory has depends on the layers that it is in.
fn seen(workspace: &Workspace) -> String {
    let lines = files(workspace);
    let lines = lines
        .lines()
        .map(|line| match line.split_once(" directory ") {
            Some((name, rest)) => {
                let rest: Vec<_> = rest.split(' ').collect();
                format!("{name} {} {} {}\n", rest[0], rest[1], rest[4..].join(" "))
            }
            None => format!("{line}\n"),
        });
    lines.collect()
}

/// Fails with the lines that are other.
fn assert_same(seen: &str, expected: &str, what: &str) {
    let other = |a: &str, b: &str| -> Vec<String> {
        let there: HashSet<_> = b.lines().collect();
        let lines = a.lines().filter(|line| !there.contains(line));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(other(seen, expected), other(expected, seen), "{what}");
    assert_eq!(seen.lines().count(), expected.lines().count(), "{what}");
}

/// Layers, snapshots and whatever is on its way.
fn all_there_is(derrick: &Derrick) -> Vec<String> {
    let mut all = Vec::new();
    for directory in ["layers", "snapshots"] {
        all.extend(entries(&derrick.state().join(directory)));
    }
    // A record that is being written once more.
    all.retain(|name| !name.ends_with(".new"));
    all.sort();
    all
}

/// What an archive says before everything else.
fn head_of(archive: &[u8]) -> Value {
    let key = b"DERRICK.snapshot=";
    let mut places = archive.windows(key.len());
    let start = places.position(|part| part == key).expect("it says it") + key.len();
    let end = archive[start..].iter().position(|byte| *byte == b'\n');
    let end = start + end.expect("it ends");
    serde_json::from_slice(&archive[start..end]).expect("JSON")
}

/// A pax header, global or for the entry after it.
fn pax(kind: EntryType, key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    entry(kind, "pax", "", &record)
}

/// An archive of these entries that says the same of itself as another one.
fn forged(head: &Value, entries: &[Vec<u8>]) -> Vec<u8> {
    let head = head.to_string();
    let mut archive = pax(
        EntryType::XGlobalHeader,
        "DERRICK.snapshot",
        head.as_bytes(),
    );
    archive.extend(entries.concat());
    archive.extend([0; 1024]);
    archive
}

#[test]
fn a_snapshot_is_the_same_in_another_provider() {
    let (here, there) = (Derrick::start(busybox()), Derrick::start(busybox()));
    let workspace = here
        .api
        .create_with(&json!({ "env": { "GREETING": "hello" } }));
    workspace.ok(&CHANGES.replace("1G", "64M"));
    workspace.ok("mkdir -p /project/gone; echo x > /project/gone/x; echo x > /project/replaced");
    let first = snapshot(&workspace);
    // What a layer below has is gone, replaced and renamed in the one above.
    workspace.ok("
        rm -r gone; mkdir gone; echo y > gone/y
        rm replaced; mkdir replaced; echo z > replaced/z
        rm link; mkdir link; echo l > link/l
        mv src/new moved-new; rm -r chain; ln gone/y moved-new/hard
        rm /bin/vi; chmod 700 /project; touch -d @7 /project/old
        mkdir -m 0 closed; echo kept > closed/file; touch \"$(printf 'odd\\nname')\"
        echo raw > \"$(printf 'not \\377\\376 UTF-8')\"; ln -s \"$(printf 'to \\377')\" \"$(printf ' \\001=\\t')\"
        n=$(printf '%0255d' 0); mkdir $n; ln -s $n/$n $n/$n; ln $n/$n src/$n
    ");
    if mode() == Mode::Root {
        // Redirected, where the kernel does that, with changes in what was renamed.
        workspace.ok("
            mv /etc /etc-moved; rm -f /etc-moved/group; echo new > /etc-moved/new; mkdir /etc-moved/in
            mkdir /etc; cp /etc-moved/passwd /etc/passwd
        ");
    }
    if mode() != Mode::Single {
        workspace.ok("chown 5:6 gone/y; chown -h 7:8 src/dangling; chown 1000:1000 moved-new");
    }
    let second = snapshot(&workspace);
    let before = seen(&workspace);
    let mut last = Vec::new();
    for (exported, query) in [
        (&second, ""),
        (&second, "?archive=tar.zst"),
        (&second, "?archive=tar.gz"),
        (&first, "?archive=tar"),
    ] {
        let archive = export(&here.api, exported, query);
        let imported = import(&there.api, &archive).expect(201).json();
        assert_eq!(imported["label"], "work", "{imported}");
        assert_eq!(imported["workspace"], Value::Null, "{imported}");
        assert_eq!(imported["unpacked"]["left_out"], Value::Null, "{imported}");
        assert_eq!(
            imported["unpacked"]["owners_changed"],
            Value::Null,
            "{imported}"
        );
        let expected = seen(&start_from(&here.api, exported));
        let copy = start_from(&there.api, &id(&imported));
        assert_same(&seen(&copy), &expected, query);
        assert_eq!(copy.ok("echo $GREETING"), "hello\n");
        // It is a snapshot like any other: the base of others, what a reset returns to, and what goes out.
        copy.ok("rm -rf src; echo later > /later");
        let later = snapshot(&copy);
        assert_eq!(start_from(&there.api, &later).ok("cat /later"), "later\n");
        copy.reset();
        assert_same(&seen(&copy), &expected, query);
        last = export(&there.api, &id(&imported), "");
        let back = import(&here.api, &last).expect(201).json();
        assert_same(&seen(&start_from(&here.api, &id(&back))), &expected, query);
    }
    assert_same(&seen(&start_from(&here.api, &second)), &before, "after it");
    // Any tar program reads it.
    let mut names = tar::Archive::new(last.as_slice());
    let names = names.entries().expect("entries");
    let names = names.map(|entry| {
        entry
            .expect("an entry")
            .path()
            .expect("a name")
            .into_owned()
    });
    assert!(
        names
            .into_iter()
            .any(|name| name == Path::new("project/src/.wh.one"))
    );
}

#[test]
fn what_a_host_base_has_of_its_own_goes_along() {
    let derrick = Derrick::on_host();
    let workspace = derrick.create();
    workspace
        .python(
            r#"
import os
os.makedirs("/work/deep")
open("/work/deep/file", "w").write("text")
os.setxattr("/work/deep/file", "user.note", b"\0binary\n")
os.setxattr("/work/deep", "user.note", b"directory")
for name in range(300):
    os.link("/work/deep/file", f"/work/link{name}")
os.utime("/work/deep/file", ns=(1, -1_500_000_000))
"#,
        )
        .expect(0);
    if mode() == Mode::Root {
        workspace
            .ok("mv /usr/share/perl5 /usr/share/moved; echo x > /usr/local/x; rm /usr/bin/awk");
        workspace.ok("setcap cap_net_raw+p /work/deep/file 2> /dev/null || true");
    }
    let look = |workspace: &Workspace| {
        workspace
            .python(
                r#"
import os
file = os.stat("/work/deep/file")
print(file.st_nlink, file.st_mtime_ns, os.getxattr("/work/deep", "user.note"))
for name in sorted(os.listxattr("/work/deep/file")):
    print(name, os.getxattr("/work/deep/file", name))
print(os.path.lexists("/usr/bin/awk"), os.path.exists("/usr/local/x"))
print(sorted(os.listdir("/usr/share/moved"))[:5] if os.path.exists("/usr/share/moved") else "")
print(os.path.exists("/usr/share/perl5"))
"#,
            )
            .expect(0)
    };
    let before = look(&workspace);
    assert!(
        before.starts_with("301 -1500000000 b'directory'\n"),
        "{before}"
    );
    let archive = export(&derrick.api, &snapshot(&workspace), "");
    let imported = import(&derrick.api, &archive).expect(201).json();
    assert_eq!(look(&start_from(&derrick.api, &id(&imported))), before);
}

#[test]
fn the_strange_is_taken_in_without_harm() {
    let derrick = Derrick::start(busybox());
    let head = head_of(&export(&derrick.api, &snapshot(&derrick.create()), ""));
    let file = |name: &str, content: &[u8]| entry(EntryType::Regular, name, "", content);
    let owned = |name: &str, id: u64| {
        let mut bytes = file(name, b"x");
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_uid(id);
        header.set_gid(id);
        header.set_mode(0o6755);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    };
    let strange = [
        // The last one counts, whatever the first was.
        file("project/twice", b"one"),
        file("project/twice", b"two"),
        entry(EntryType::Directory, "project/kind", "", b""),
        file("project/kind/in", b"x"),
        file("project/kind", b"file"),
        entry(EntryType::Symlink, "project/turned", "/etc", b""),
        entry(EntryType::Directory, "project/turned", "", b""),
        file("project/turned/in", b"x"),
        entry(EntryType::Link, "project/twice", "project/twice", b""),
        file("project/brief", b"x"),
        file("project/.wh.brief", b""),
        file("project/.wh.never", b""),
        file("nowhere/.wh.never", b""),
        owned("project/setuid", 0),
        owned("project/nobody", 200_000),
        // Hidden by what every sandbox has there.
        file("proc/planted", b"x"),
        file("dev/shm/planted", b"x"),
        file("sys/planted", b"x"),
    ];
    let imported = import(&derrick.api, &forged(&head, &strange));
    let imported = imported.expect(201).json();
    let unpacked = &imported["unpacked"];
    assert_eq!(unpacked["left_out"]["count"], 3, "{imported}");
    assert_eq!(unpacked["owners_changed"]["count"], 1, "{imported}");
    let workspace = start_from(&derrick.api, &id(&imported));
    let shown = workspace.ok("
        cat twice kind; test ! -h turned; ls turned; ls -d brief never /nowhere 2> /dev/null
        stat -c '%n %u %a' setuid nobody; ls -A /dev/shm; ls /proc/planted /sys/planted 2>&1 | wc -l
    ");
    assert_eq!(shown, "twofilein\nsetuid 0 6755\nnobody 0 755\n2\n");
    // On the host it is not root's, but where root is the only one there is.
    let layers = derrick.state().join("layers");
    let planted = entries(&layers).into_iter().find_map(|layer| {
        let path = layers.join(layer).join("tree/0/project/setuid");
        std::fs::metadata(path).ok()
    });
    let planted = planted.expect("it is in a layer");
    assert_ne!(planted.uid(), 0);
    assert!(entries(&layers).iter().all(|layer| {
        let tree = layers.join(layer).join("tree/0");
        ["proc", "sys", "dev/shm"]
            .iter()
            .all(|at| !tree.join(at).join("planted").exists())
    }));
}

#[test]
fn a_small_archive_of_much_is_refused() {
    let derrick = Derrick::start(busybox());
    let head = head_of(&export(&derrick.api, &snapshot(&derrick.create()), ""));
    let before = all_there_is(&derrick);
    // Behind its end mark, where nothing is written for it: what is told apart is how it is packed.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    bomb.write_all(&forged(&head, &[])).expect("its beginning");
    std::io::copy(&mut std::io::repeat(0).take(3 << 29), &mut bomb).expect("its zeros");
    let bomb = bomb.finish().expect("its end");
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let problem = import(&derrick.api, &bomb).problem(422);
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("limit"), "{detail}");
    assert_eq!(all_there_is(&derrick), before);
}

/// Whether a file of an archive is somewhere below the state directory, in what is on its way or in a layer.
fn is_anywhere(derrick: &Derrick, file: &str) -> bool {
    let state = derrick.state();
    let below = |directory: &Path| -> Vec<PathBuf> {
        let listed = std::fs::read_dir(directory).into_iter().flatten();
        listed
            .map(|entry| entry.expect("an entry").path())
            .collect()
    };
    let runs = below(&state.join("run")).into_iter();
    let mut places: Vec<PathBuf> = runs
        .flat_map(|run| below(&run.join("staging")))
        .map(|build| build.join("upper/0"))
        .collect();
    places.extend(
        below(&state.join("trash"))
            .iter()
            .map(|at| at.join("upper/0")),
    );
    places.extend(
        below(&state.join("layers"))
            .iter()
            .map(|at| at.join("tree/0")),
    );
    places.iter().any(|place| place.join(file).exists())
}

#[test]
fn a_crash_while_one_is_taken_in_leaves_nothing() {
    const FILES: usize = 6_000;
    let mut derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo work > /project/work");
    let head = head_of(&export(&derrick.api, &snapshot(&workspace), ""));
    let bulk = (0..FILES).map(|number| {
        let name = format!("bulk/{number}");
        entry(EntryType::Regular, &name, "", b"x")
    });
    let archive = forged(&head, &bulk.collect::<Vec<_>>());
    let before = all_there_is(&derrick);
    let (first, last) = ("bulk/100", format!("bulk/{}", FILES - 1));
    for crash in [
        Derrick::kill9 as fn(&mut Derrick),
        Derrick::kill_with_spawner,
    ] {
        let mut stream = begin_import(&derrick.api, archive.len());
        stream.write_all(&archive).expect("the archive");
        while !is_anywhere(&derrick, first) {
            std::thread::yield_now();
        }
        crash(&mut derrick);
        assert!(!is_anywhere(&derrick, &last), "it was through already");
        derrick.start_again();
        assert_eq!(all_there_is(&derrick), before);
        wait_until_empty(&derrick.state().join("trash"));
        assert!(!is_anywhere(&derrick, first));
    }
    let imported = import(&derrick.api, &archive).expect(201).json();
    let layer = all_there_is(&derrick)
        .into_iter()
        .find(|name| !before.contains(name) && !name.ends_with(".json"));
    let layer = derrick.state().join("layers").join(layer.expect("a layer"));
    derrick.restart();
    let workspace = start_from(&derrick.api, &id(&imported));
    assert_eq!(workspace.ok("ls /bulk | wc -l"), format!("{FILES}\n"));
    assert!(workspace.delete());
    // As if it had ended before there was a record of it.
    derrick.stop();
    let record = format!("snapshots/{}.json", id(&imported));
    std::fs::remove_file(derrick.state().join(record)).expect("there is one");
    derrick.start_again();
    wait_until_gone(&layer);
    assert_eq!(all_there_is(&derrick), before);
}

#[test]
fn one_that_was_imported_is_kept_as_long_as_something_is_on_it() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo work > /project/work");
    let archive = export(&derrick.api, &snapshot(&workspace), "");
    let before = all_there_is(&derrick);
    let imported = id(&import(&derrick.api, &archive).expect(201).json());
    let path = format!("/snapshots/{imported}");
    let everything = json!({ "max_size": 0 });
    derrick.api.post("/gc", &everything).expect(200);
    let on_it = start_from(&derrick.api, &imported);
    assert_eq!(on_it.ok("cat /project/work"), "work\n");
    on_it.ok("echo more > /project/more");
    let later = snapshot(&on_it);
    derrick.api.delete(&path).problem(409);
    assert!(on_it.delete());
    // The other snapshot is on it still.
    derrick.api.delete(&path).problem(409);
    derrick.api.post("/gc", &everything).expect(200);
    let again = start_from(&derrick.api, &later);
    assert_eq!(again.ok("cat /project/work /project/more"), "work\nmore\n");
    assert!(again.delete());
    let layers = all_there_is(&derrick).into_iter();
    let layers = layers.filter(|name| !before.contains(name) && !name.ends_with(".json"));
    let layers: Vec<_> = layers.collect();
    for snapshot in [&later, &imported] {
        derrick
            .api
            .delete(&format!("/snapshots/{snapshot}"))
            .expect(200);
    }
    for layer in layers {
        wait_until_gone(&derrick.state().join("layers").join(layer));
    }
    assert_eq!(all_there_is(&derrick), before);
}

#[test]
fn what_an_archive_has_no_form_for_is_named() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("mkdir -p /project/odd; echo x > /project/odd/.wh.name");
    let taken = snapshot(&workspace);
    let path = format!("/snapshots/{taken}/export");
    let problem = derrick.api.get(&path).problem(422);
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("project/odd/.wh.name"), "{detail}");
    workspace.ok("rm /project/odd/.wh.name");
    export(&derrick.api, &snapshot(&workspace), "");
    // Deeper than any path reaches.
    workspace.ok(
        "d=$(printf '%0200d' 0); n=0; while [ $n -lt 30 ]; do mkdir $d; cd $d; n=$((n + 1)); done",
    );
    let taken = snapshot(&workspace);
    let problem = derrick
        .api
        .get(&format!("/snapshots/{taken}/export"))
        .problem(422);
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("path that is too long"), "{detail}");
}

// What archives of files and of bases are refused for, and what only one of a snapshot could bring.
#[test]
fn a_hostile_archive_leaves_nothing() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("echo work > /project/work");
    let honest = export(&derrick.api, &snapshot(&workspace), "");
    let head = head_of(&honest);
    let file = |name: &str, content: &[u8]| entry(EntryType::Regular, name, "", content);
    let directory = |name: &str| entry(EntryType::Directory, name, "", b"");
    let link = |name: &str, to: &str| entry(EntryType::Symlink, name, to, b"");
    let attribute = |name: &str| {
        [
            pax(
                EntryType::XHeader,
                &format!("SCHILY.xattr.{name}"),
                b"/elsewhere",
            ),
            directory("project/planted"),
        ]
        .concat()
    };
    let huge = {
        let mut header = tar::Header::new_gnu();
        header.set_path("project/huge").expect("a name");
        header.set_entry_type(EntryType::Regular);
        header.set_size(1 << 60);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    // What is not refused is taken in: the same shape without malice.
    let taken = import(
        &derrick.api,
        &forged(
            &head,
            &[
                directory("project/new"),
                file("project/new/file", b"x"),
                file("/absolute", b"inside"),
                link("project/out", "/etc"),
                file("project/.wh.link", b""),
            ],
        ),
    );
    let taken = start_from(&derrick.api, &id(&taken.expect(201).json()));
    assert_eq!(
        taken.ok("cat /absolute; ls -d /project/link 2>&1 | wc -l"),
        "inside1\n"
    );
    taken.ok("test -h /project/out; test ! -e /project/link");
    assert!(!Path::new("/absolute").exists());

    let before = all_there_is(&derrick);
    let other = |field: &str, value: Value| {
        let mut other = head.clone();
        other[field] = value;
        other
    };
    let hostile: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![file("../../escape", b"x")], "escape"),
        (vec![file("project/../../escape", b"x")], "escape"),
        (
            vec![
                link("project/way", "/etc"),
                file("project/way/planted", b"x"),
            ],
            "way",
        ),
        (
            vec![
                link("project/way", "../.."),
                file("project/way/planted", b"x"),
            ],
            "way",
        ),
        (
            vec![entry(
                EntryType::Link,
                "project/hard",
                "../../etc/passwd",
                b"",
            )],
            "hard",
        ),
        (
            vec![entry(
                EntryType::Link,
                "project/hard",
                "/proc/self/root/etc/passwd",
                b"",
            )],
            "hard",
        ),
        (vec![file("project/.wh..", b"")], ".wh.."),
        (vec![file("project/.wh...", b"")], ".wh..."),
        (vec![file("project/.wh.", b"")], ".wh."),
        (vec![file("project/.wh..wh.aufs", b"")], "aufs"),
        (vec![file("project/.wh.src", b"content")], ".wh.src"),
        (vec![directory("project/.wh.src")], ".wh.src"),
        (vec![file("project/.wh.src/file", b"x")], ".wh.src"),
        (vec![file(".wh..wh..opq", b"")], "opq"),
        (vec![file("project/.wh..wh..opq", b"")], "opq"),
        (
            vec![
                directory("project"),
                file("project/a", b"x"),
                file("project/.wh..wh..opq", b""),
            ],
            "opq",
        ),
        (
            vec![entry(EntryType::Char, "project/device", "", b"")],
            "device",
        ),
        (
            vec![entry(EntryType::Block, "project/device", "", b"")],
            "device",
        ),
        (vec![attribute("trusted.overlay.redirect")], "planted"),
        (vec![attribute("trusted.overlay.opaque")], "planted"),
        (vec![attribute("user.overlay.redirect")], "planted"),
        (vec![attribute("security.selinux")], "planted"),
        (vec![huge], "limit"),
    ];
    for (entries, named) in &hostile {
        let problem = import(&derrick.api, &forged(&head, entries)).problem(422);
        let detail = problem["detail"].as_str().expect("a text");
        assert!(detail.contains(named), "{named}: {detail}");
        assert_eq!(all_there_is(&derrick), before, "{named}");
    }
    let truncated = &honest[..honest.len() / 2];
    let squeezed = export(&derrick.api, &id_of_first(&derrick.api), "?archive=tar.zst");
    let mut damaged = honest.clone();
    let middle = 512 * 5 + 150;
    damaged[middle] ^= 0x55;
    for archive in [
        &b""[..],
        b"no archive",
        truncated,
        &squeezed[..squeezed.len() / 2],
        &damaged,
        &forged(&other("format", json!(2)), &[]),
        &forged(&other("env", json!({ "A=B": "x" })), &[]),
        &forged(&other("label", json!("x".repeat(1000))), &[]),
        &forged(&json!("nothing"), &[]),
        // Without a head at all.
        &[file("project/file", b"x"), vec![0; 1024]].concat(),
    ] {
        import(&derrick.api, archive).problem(422);
        assert_eq!(all_there_is(&derrick), before);
    }
    // It stands on what is not here: both are named.
    let elsewhere = "0".repeat(64);
    let archive = forged(&other("base", json!(elsewhere)), &[]);
    let problem = import(&derrick.api, &archive).problem(409);
    let detail = problem["detail"].as_str().expect("a text");
    let present = head["base"].as_str().expect("a digest");
    assert!(
        detail.contains(&elsewhere) && detail.contains(present),
        "{detail}"
    );
    assert_eq!(all_there_is(&derrick), before);
    // What there was is as it was.
    assert_eq!(workspace.ok("cat /project/work"), "work\n");
}

fn id_of_first(api: &Api) -> String {
    let listed = api.get("/snapshots").expect(200).json();
    id(&listed["snapshots"][0])
}

/// Begins a request that imports so many bytes; the server is waiting for these.
fn begin_import(api: &Api, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(api.address()).expect("connect");
    let head = format!(
        "POST /snapshots/import HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-tar\r\n\
         expect: 100-continue\r\ncontent-length: {length}\r\n\r\n",
        api.address()
    );
    stream.write_all(head.as_bytes()).expect("the head");
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut said = vec![0; go_on.len()];
    stream.read_exact(&mut said).expect("what it says");
    assert_eq!(said, go_on);
    stream
}

#[test]
fn an_archive_that_breaks_off_on_its_way_leaves_nothing() {
    let derrick = Derrick::start(busybox());
    let workspace = derrick.create();
    workspace.ok("head -c 3145728 /dev/urandom > /project/much");
    let archive = export(&derrick.api, &snapshot(&workspace), "");
    let before = all_there_is(&derrick);
    let mut stream = begin_import(&derrick.api, archive.len());
    stream
        .write_all(&archive[..archive.len() - 1000])
        .expect("the most");
    stream.shutdown(Shutdown::Write).expect("no more");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(all_there_is(&derrick), before);
    import(&derrick.api, &archive).expect(201);
}

#[test]
fn a_token_exports_and_imports_what_is_its_own() {
    const ADMIN: &str = "0123456789abcdef0123456789abcdef";
    const A: &str = "5f3a9c1e7b2d8046a1c4e6f8091b3d57";
    const B: &str = "c8e1f4a79b3056d2e7185a9c4f60b2d3";
    let derrick = Launch::new(busybox())
        .token(&format!(
            "{ADMIN}\n{A} name=a scope=own\n{B} name=b scope=own\n"
        ))
        .start();
    let (a, b) = (
        derrick.api.with_token(Some(A)),
        derrick.api.with_token(Some(B)),
    );
    let own = a.create();
    own.ok("echo secret > /secret");
    let taken = snapshot(&own);
    b.get(&format!("/snapshots/{taken}/export")).problem(404);
    let archive = export(&a, &taken, "");
    let imported = import(&b, &archive).expect(201).json();
    assert_eq!(imported["owner"], "b", "{imported}");
    // It is b's now, and a's it is not.
    let path = format!("/snapshots/{}", id(&imported));
    a.get(&path).problem(404);
    a.get(&format!("{path}/export")).problem(404);
    let listed = a.get(&format!("/workspaces/{}/snapshots", own.id));
    let listed = listed.expect(200).json();
    assert_eq!(
        listed["snapshots"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    assert_eq!(start_from(&b, &id(&imported)).ok("cat /secret"), "secret\n");
    derrick.replace_tokens(&format!(
        "{ADMIN}\n{A} name=a scope=own\n{B} name=b scope={}\n",
        own.id
    ));
    let mut refused = import(&b, &archive);
    // Until the new tokens are read, which ends what is under way.
    while matches!(refused.status, 201 | 401) {
        refused = import(&b, &archive);
    }
    refused.problem(403);
}

#[test]
fn an_archive_that_the_disk_does_not_take_leaves_nothing() {
    let disk = std::env::var_os("DERRICK_SMALL_DISK")
        .expect("DERRICK_SMALL_DISK names no small filesystem; tests/run as root makes one");
    let state = Path::new(&disk).join("imports");
    let archive = {
        let derrick = Derrick::start(busybox());
        let workspace = derrick.create();
        // Kept aside it fits, and unpacked beside that it does not.
        workspace.ok("head -c 34603008 /dev/urandom > /project/much");
        export(&derrick.api, &snapshot(&workspace), "")
    };
    let derrick = Launch::new(busybox())
        .state(&state)
        .arguments(["--min-free", "0"])
        .start();
    let workspace = derrick.create();
    let before = all_there_is(&derrick);
    let problem = import(&derrick.api, &archive).problem(507);
    assert!(problem.to_string().contains("space"), "{problem}");
    assert_eq!(all_there_is(&derrick), before);
    let small = forged(
        &head_of(&archive),
        &[entry(EntryType::Regular, "small", "", b"x")],
    );
    // What there is of the other one goes in the background.
    while import(&derrick.api, &small).status != 201 {}
    workspace.ok("echo on > /on");
    drop(derrick);
    succeed(support::as_owner("rm").arg("-rf").arg(&state));
}
