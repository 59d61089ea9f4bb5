//! `kill -9` of the provider, of its spawner and of inits at moments that nobody chose: nothing half is left, nothing
//! that was acknowledged is lost, nothing runs on, and the service does.
//!
//! `DERRICK_CRASH_ROUNDS` says how many times in all, some dozens where it does not; `DERRICK_CRASH_SEED` repeats a run
//! with the moments and the order of a former one, whose seed it printed.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::moments::{Chance, Measures, UnderWay};
use support::{
    Answer, Api, Census, Derrick, Launch, Lives, Mode, Workspace, children, descendants, entries,
    fixture, groups_named, is_zombie, loop_devices, mode, mounts_below, wait_until_empty,
};

/// Rounds in the test command, of which the provider gets half and spawner and inits a quarter each.
const ROUNDS: u64 = 32;

/// Bytes of a large write.
const LARGE: usize = 64 << 20;

/// Lines that a command prints while it is read.
const LINES: u64 = 20_000;

/// What is asked for while the blow falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Makes a layer first, where that is still to be done.
    Create,
    Reset,
    Delete,
    Put,
    Exec,
    Snapshot,
}

const ACTIONS: [Action; 6] = [
    Action::Snapshot,
    Action::Create,
    Action::Reset,
    Action::Delete,
    Action::Put,
    Action::Exec,
];

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Provider,
    /// And its spawner, so that nobody is left to tidy up.
    Both,
    Spawner,
    Init,
}

/// What is in a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    setup: u64,
    dirt: Option<u64>,
    put: Option<u64>,
}

/// One request under way when the blow fell, and what came back.
#[derive(Debug)]
struct Tried {
    action: Action,
    /// `None` where the workspace is only being made.
    id: Option<String>,
    /// What it had, and what it has once it was done.
    before: Option<Content>,
    after: Option<Content>,
    answer: Option<Answer>,
    /// Of an exec: its key, and what of its output was read.
    key: String,
    read: Vec<u8>,
}

/// A provider, and what it has acknowledged.
struct World {
    derrick: Derrick,
    chance: Chance,
    measures: Measures,
    known: BTreeMap<String, Content>,
    /// Likewise of snapshots.
    snapshots: BTreeMap<String, Content>,
    /// Execs that ended, with what they printed: of which workspace, which.
    ended: Vec<(String, String, String)>,
    /// The setup that the config asks for now.
    setup: u64,
    /// Numbers for what is to be told apart.
    next: u64,
    /// Processes of this test's are counted, so one of them at a time.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

fn config(setup: u64) -> Value {
    let script = format!(
        "mkdir -p /layer/files; n=0; while [ $n -lt 200 ]; do echo {setup} > /layer/files/$n; n=$((n + 1)); done
        rm /bin/ed; echo {setup} > /layer/number"
    );
    json!({
        "name": "crash",
        "base": { "type": "tarball", "path": fixture("busybox.tar") },
        "setup_script": script,
        // A small one is soon back at what is kept for ever.
        "pool": { "size": 2 },
    })
}

/// Files that were not there, and none of those that were; and a process that stays, or none.
fn dirt(number: u64, stays: bool) -> String {
    let process = "(sleep 1000 > /dev/null 2>&1 < /dev/null &)";
    format!(
        "mkdir /dirty; n=0; while [ $n -lt 200 ]; do echo {number} > /dirty/$n; n=$((n + 1)); done
        rm -r /layer/files; {}",
        if stays { process } else { ":" }
    )
}

/// Prints what a workspace has, as [`Content::shown`] has it.
const VIEW: &str = r#"
some() { test -e $1 && ls $1 | wc -l && cat $1/* | sort -u; }
echo setup $(cat /layer/number) $(some /layer/files)
echo dirt $(some /dirty)
echo put $(test -e /put && sha256sum < /put)
ls -A / | grep -vxF -e dirty -e put -e runs
test ! -e /bin/ed
"#;

impl Content {
    fn pristine(setup: u64) -> Self {
        Self {
            setup,
            dirt: None,
            put: None,
        }
    }

    /// What [`VIEW`] prints of it, but for the names at the top.
    fn shown(&self) -> String {
        let files = match self.dirt {
            Some(_) => String::new(),
            None => format!(" 200 {}", self.setup),
        };
        let dirt = self.dirt.map(|number| format!(" 200 {number}"));
        let put = self.put.map(|number| {
            let digest = Sha256::digest(large(number));
            let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!(" {digits} -")
        });
        format!(
            "setup {}{files}\ndirt{}\nput{}\n",
            self.setup,
            dirt.unwrap_or_default(),
            put.unwrap_or_default()
        )
    }
}

/// The bytes of a large file.
fn large(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().repeat(LARGE / 8);
    bytes[LARGE / 2..LARGE / 2 + 8].fill(0);
    bytes
}

/// What the long exec prints in all.
fn printed() -> String {
    (0..LINES).map(|line| format!("{line}\n")).collect()
}

impl World {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // What the killed leave comes to this process, and not to whoever else is above it.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .expect("cannot become a child subreaper");
        let chance = Chance::seeded("DERRICK_CRASH_SEED");
        Self {
            derrick: Launch::new(config(1)).start(),
            chance,
            measures: Measures::default(),
            known: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            ended: Vec::new(),
            setup: 1,
            next: 100,
            _alone: alone,
        }
    }

    /// What there is once everything that is made for good was made.
    fn used(&mut self) -> Census {
        let limits = [
            json!({}),
            json!({ "memory": 512 << 20, "pids": 200 }),
            json!({ "disk": 256 << 20 }),
        ];
        let kinds = if mode() == Mode::Root { 3 } else { 1 };
        for limits in &limits[..kinds] {
            let workspace = self.api().create_with(&json!({ "limits": limits }));
            assert!(workspace.delete());
        }
        Census::settled(&self.derrick)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn api(&self) -> Api {
        // On connections of its own: those of before are gone.
        self.derrick.api.with_token(None)
    }

    fn workspace(&self, id: &str) -> Workspace {
        self.api().workspace(id)
    }

    /// One blow in the middle of one request or two, and all that must be true then.
    fn round(&mut self, round: u64, victim: Victim) {
        let spawner = spawner_of(self.derrick.pid()).expect("it was used");
        let runs = entries(&self.derrick.state().join("run"));
        let count = 1 + self.chance.below(2);
        let mut under_way: Vec<_> = (0..count).map(|_| self.begin()).collect();
        let (action, request) = &mut under_way[0];
        let moment = self.measures.moment(word(*action), &mut self.chance);
        println!(
            "round {round}: {victim:?} in {action:?}, {moment:?}, with {} more",
            count - 1
        );
        request.until(moment, &mut self.measures);
        match victim {
            Victim::Provider => self.derrick.kill9(),
            Victim::Both => self.derrick.kill_with_spawner(),
            Victim::Spawner => end(spawner),
            Victim::Init => {
                let inits = children(spawner);
                if !inits.is_empty() {
                    end(*self.chance.one_of(&inits));
                }
            }
        }
        let tried: Vec<_> = under_way
            .into_iter()
            .map(|(_, request)| request.join())
            .collect();
        if matches!(victim, Victim::Provider | Victim::Both) {
            self.start_again(&runs);
        } else {
            if victim == Victim::Spawner {
                Lives::of(&[spawner]).assert_gone();
            }
            // Whatever became of those requests, the next one is served.
            let workspace = self.create_after(victim);
            assert_eq!(
                workspace.ok("cat /layer/number"),
                format!("{}\n", self.setup)
            );
            assert!(workspace.delete());
        }
        let mut settled = BTreeSet::new();
        // What was being made and has no name yet is among the rest.
        let (named, unnamed): (Vec<_>, Vec<_>) = tried
            .iter()
            .partition(|tried| tried.is_done() || tried.id.is_some());
        for tried in named.into_iter().chain(unnamed) {
            self.settle(tried, &mut settled);
        }
        self.assert_whole(&settled);
        self.look_at_one();
        self.look_at_a_snapshot();
    }

    /// Makes a workspace. The one request that the provider sent to a spawner of whose end it had not heard
    /// may fail.
    fn create_after(&self, victim: Victim) -> Workspace {
        let answer = self.api().post("/workspaces", &json!({}));
        if answer.status == 500 && victim == Victim::Spawner {
            assert_eq!(answer.problem(500)["detail"], "the spawner died");
            return self.api().create();
        }
        let made = answer.expect(200).json();
        self.workspace(made["id"].as_str().expect("an id"))
    }

    /// Begins a request.
    fn begin(&mut self) -> (Action, UnderWay<Tried>) {
        let action = *self.chance.one_of(&ACTIONS);
        let number = self.number();
        let mut tried = Tried {
            action,
            id: None,
            before: None,
            after: Some(Content::pristine(self.setup)),
            answer: None,
            key: format!("key-{number}"),
            read: Vec::new(),
        };
        let mut limits = json!({});
        if action == Action::Create {
            limits = self.limits();
        } else {
            let (id, content) = self.some_workspace(action);
            tried.after = match action {
                Action::Reset => Some(Content::pristine(content.setup)),
                Action::Delete => None,
                Action::Put => Some(Content {
                    put: Some(number),
                    ..content.clone()
                }),
                Action::Create | Action::Exec | Action::Snapshot => Some(content.clone()),
            };
            tried.before = Some(content);
            tried.id = Some(id);
        }
        let api = self.api();
        let state = self.derrick.state();
        let request = UnderWay::begin(word(action), &state, move || {
            tried.ask(&api, &limits, number);
            tried
        });
        (action, request)
    }

    /// Limits of some workspaces, where this host enforces them: with control groups, with a disk of their own.
    fn limits(&mut self) -> Value {
        match self.chance.below(4) {
            0 if mode() == Mode::Root => json!({ "memory": 512 << 20, "pids": 200 }),
            1 if mode() == Mode::Root => json!({ "disk": 256 << 20 }),
            _ => json!({ "shm": 1 << 20 }),
        }
    }

    /// A workspace that nothing else is asked of, with some content where that is to go.
    fn some_workspace(&mut self, action: Action) -> (String, Content) {
        let ids: Vec<_> = self.known.keys().cloned().collect();
        let (id, mut content) = if ids.len() < 4 {
            let limits = self.limits();
            let workspace = self.api().create_with(&json!({ "limits": limits }));
            (workspace.id, Content::pristine(self.setup))
        } else {
            let id = self.chance.one_of(&ids).clone();
            let content = self.known.remove(&id).expect("it is known");
            (id, content)
        };
        // Known again when it is settled what it is.
        self.known.remove(&id);
        let workspace = self.workspace(&id);
        let dirties = [Action::Reset, Action::Delete, Action::Snapshot];
        if dirties.contains(&action) && content.dirt.is_none() {
            let number = self.number();
            // Of one in which nothing runs a snapshot is taken in another way.
            let stays = self.chance.below(2) == 0;
            workspace.ok(&dirt(number, stays));
            content.dirt = Some(number);
        }
        let ran = workspace.run("echo out; head -c 100000 /dev/zero | tr '\\0' x");
        let exec = ran["id"].as_str().expect("an id").to_owned();
        let output = ran["output"]["stdout"].as_str().expect("text").to_owned();
        self.ended.push((id.clone(), exec, output));
        (id, content)
    }

    /// Starts the provider on what it left; now and then that is interrupted as well, and now and then the config
    /// asks for another setup.
    fn start_again(&mut self, runs: &[String]) {
        if self.chance.below(3) == 0 {
            self.setup = self.number();
            self.derrick.configure(&config(self.setup));
        }
        if self.chance.below(3) == 0 {
            let mut start = UnderWay::begin("start", &self.derrick.state(), || ());
            let mut child = self.derrick.begin();
            let most = 40;
            let moment = support::moments::Moment::Change(self.chance.below(most));
            start.until(moment, &mut Measures::default());
            child.kill().expect("it can be killed");
            child.wait().expect("it can be waited for");
            start.join();
        }
        self.derrick.start_again();
        // Of the dead there is nothing.
        assert_no_groups(runs);
        self.assert_no_strays();
        assert_eq!(entries(&self.derrick.state().join("run")).len(), 1);
        assert_eq!(loop_devices(&self.derrick.state()), Vec::<String>::new());
        // What was said of execs that ended holds.
        for (id, exec, output) in &self.ended {
            let answer = self.api().get(&format!("/workspaces/{id}/execs/{exec}"));
            if answer.status == 404 {
                assert!(!self.known.contains_key(id), "{}", answer.text());
                continue;
            }
            let told = answer.expect(200).json();
            assert_eq!(told["outcome"]["kind"], "exited", "{told}");
            let exec = self.workspace(id).exec_named(exec);
            let there = exec.output("stream=stdout").text();
            assert!(there == *output, "{} bytes", there.len());
        }
        self.ended.retain(|(id, ..)| self.known.contains_key(id));
    }

    /// Nothing runs but what the present provider has.
    fn assert_no_strays(&self) {
        let all = descendants(std::process::id().cast_signed());
        let provider = self.derrick.pid();
        let ours = descendants(provider);
        let strays: Vec<_> = all
            .into_iter()
            .filter(|pid| *pid != provider && !ours.contains(pid))
            .collect();
        Lives::of(&strays).assert_gone();
        for pid in strays.iter().filter(|pid| is_zombie(**pid)) {
            // Not this process's to bury, if its parent is another one that is just ending.
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
    }

    /// Looks at what became of a request, which is done, or not at all.
    fn settle(&mut self, tried: &Tried, settled: &mut BTreeSet<String>) {
        let is_done = tried.is_done();
        let there: BTreeSet<String> = self.api().list().into_iter().collect();
        let id = match &tried.id {
            Some(id) => id.clone(),
            None if is_done => {
                let made = tried.answer.as_ref().expect("it was done").json();
                made["id"].as_str().expect("an id").to_owned()
            }
            None => {
                // What is not known may be what was being made; a refusal leaves nothing.
                let new: Vec<_> = there
                    .iter()
                    .filter(|id| !self.known.contains_key(*id) && !settled.contains(*id))
                    .collect();
                match new.as_slice() {
                    // It may be that of the other request, which is not settled yet.
                    [] => return,
                    [id, ..] => (*id).clone(),
                }
            }
        };
        let mut allowed = vec![tried.after.clone()];
        if !is_done {
            allowed.push(tried.before.clone());
        }
        if !there.contains(&id) {
            assert!(allowed.contains(&None), "{id} is gone: {tried:?}");
            return;
        }
        let shown = self.view(&id);
        let found = allowed
            .iter()
            .flatten()
            .find(|content| content.shown() == shown);
        let found = found.unwrap_or_else(|| panic!("{id} shows {shown:?}: {tried:?}"));
        self.known.insert(id.clone(), found.clone());
        settled.insert(id.clone());
        match tried.action {
            Action::Exec => self.settle_exec(&id, tried),
            Action::Snapshot => self.settle_snapshot(&id, tried),
            _ => {}
        }
    }

    /// A snapshot is there if that was said; if it was not, it is there whole or not at all.
    fn settle_snapshot(&mut self, id: &str, tried: &Tried) {
        let mut new = self.listed_snapshots();
        new.retain(|snapshot, _| !self.snapshots.contains_key(snapshot));
        if tried.is_done() {
            let said = tried.answer.as_ref().expect("it was done").json();
            let snapshot = said["id"].as_str().expect("an id");
            assert!(new.contains_key(snapshot), "{tried:?}");
        }
        new.retain(|_, workspace| workspace == id);
        for snapshot in new.into_keys() {
            let content = self.known[id].clone();
            self.snapshots.insert(snapshot, content);
        }
    }

    /// What snapshots there are, and of which workspace each is.
    fn listed_snapshots(&self) -> BTreeMap<String, String> {
        let listed = self.api().get("/snapshots").expect(200).json();
        let listed = listed["snapshots"].as_array().expect("a list").clone();
        let word = |one: &Value, key: &str| one[key].as_str().expect("text").to_owned();
        let named = |one| (word(one, "id"), word(one, "workspace"));
        listed.iter().map(named).collect()
    }

    /// Starts from one and finds what was in its workspace; sometimes it goes, if nothing is on it.
    fn look_at_a_snapshot(&mut self) {
        let ids: Vec<_> = self.snapshots.keys().cloned().collect();
        if ids.is_empty() {
            return;
        }
        let id = self.chance.one_of(&ids).clone();
        let workspace = self.api().create_with(&json!({ "snapshot": id }));
        assert_eq!(self.view(&workspace.id), self.snapshots[&id].shown());
        assert!(workspace.delete());
        if ids.len() > 4 {
            self.delete_snapshot(&id);
        }
    }

    /// Whether it went, which it does not where something is on it.
    fn delete_snapshot(&mut self, id: &str) -> bool {
        let answer = self.api().delete(&format!("/snapshots/{id}"));
        let is_gone = answer.status != 409;
        if is_gone {
            answer.expect(200);
            self.snapshots.remove(id);
        }
        is_gone
    }

    /// What was read of an exec is there; it started once at most; if it did not end it says so.
    fn settle_exec(&self, id: &str, tried: &Tried) {
        let workspace = self.workspace(id);
        let told = match &tried.answer {
            Some(answer) if answer.status < 300 => answer.json(),
            _ => {
                let again = workspace.exec_with_key(&tried.key, &long_exec(&tried.key));
                assert!(again.status < 300, "{}", again.text());
                again.json()
            }
        };
        let exec = workspace.exec_of(&told);
        let ended = exec.ended();
        let kind = ended["outcome"]["kind"].as_str().expect("a word");
        let output = exec.output("stream=stdout").body;
        assert!(output.starts_with(&tried.read), "{ended}");
        assert!(printed().as_bytes().starts_with(&output), "{ended}");
        match kind {
            "exited" => assert_eq!(output.len(), printed().len(), "{ended}"),
            kind => assert_eq!(kind, "lost", "{ended}"),
        }
        let runs = workspace.ok(&format!("grep -cx {} /runs || true", tried.key));
        let runs: u64 = runs.trim().parse().unwrap_or(0);
        assert!(runs <= 1, "it ran {runs} times: {ended}");
        assert!(kind != "exited" || runs == 1, "{ended}");
    }

    fn view(&self, id: &str) -> String {
        let shown = self.workspace(id).ok(VIEW);
        let names_at = shown.match_indices('\n').nth(2).expect("three lines").0 + 1;
        let (content, names) = shown.split_at(names_at);
        let usual = [
            "bin", "dev", "etc", "home", "layer", "lib", "lib64", "media", "mnt", "opt", "proc",
            "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var",
        ];
        let unusual: Vec<_> = names.lines().filter(|name| !usual.contains(name)).collect();
        assert!(unusual.is_empty(), "{unusual:?}");
        content.to_owned()
    }

    /// What is on disk is what the API has, and nothing half.
    fn assert_whole(&mut self, settled: &BTreeSet<String>) {
        let state = self.derrick.state();
        let listed: BTreeSet<String> = self.api().list().into_iter().collect();
        let known: BTreeSet<String> = self.known.keys().cloned().collect();
        assert_eq!(listed, known, "settled: {settled:?}");
        wait_until_empty(&state.join("trash"));
        let on_disk: BTreeSet<String> = entries(&state.join("workspaces")).into_iter().collect();
        assert_eq!(on_disk, known);
        for id in &known {
            let mut there = entries(&state.join("workspaces").join(id));
            there.retain(|name| !name.starts_with("generation-"));
            there.sort();
            assert_eq!(there, ["execs", "record.json"], "{id}");
            let all = entries(&state.join("workspaces").join(id));
            assert_eq!(all.len(), 3, "{all:?}");
        }
        let listed: BTreeSet<String> = self.listed_snapshots().into_keys().collect();
        let known: BTreeSet<String> = self.snapshots.keys().cloned().collect();
        assert_eq!(listed, known, "settled: {settled:?}");
        let records: BTreeSet<String> = entries(&state.join("snapshots")).into_iter().collect();
        let expected = known.iter().map(|id| format!("{id}.json")).collect();
        assert_eq!(records, expected);
        for layer in entries(&state.join("layers")) {
            assert_layer(&state.join("layers").join(layer));
        }
        assert_eq!(mounts_below(&state), Vec::<String>::new());
    }

    /// One that nothing was asked of is as it was; sometimes one goes, so that there is room for others.
    fn look_at_one(&mut self) {
        let ids: Vec<_> = self.known.keys().cloned().collect();
        if ids.is_empty() {
            return;
        }
        let id = self.chance.one_of(&ids).clone();
        assert_eq!(self.view(&id), self.known[&id].shown());
        if ids.len() > 5 {
            assert!(self.workspace(&id).delete());
            self.known.remove(&id);
        }
    }

    /// Everything is as it was acknowledged; then it goes, and nothing is left.
    fn end(mut self, first: Option<&Census>) {
        for (id, content) in &self.known {
            assert_eq!(self.view(id), content.shown(), "{id}");
        }
        for id in std::mem::take(&mut self.known).into_keys() {
            assert!(self.workspace(&id).delete());
        }
        for id in self
            .snapshots
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            // Newer ones may be on it, and went before.
            assert!(self.delete_snapshot(id), "{id}");
        }
        if let Some(first) = first {
            first.again(&self.derrick);
        }
        self.assert_whole(&BTreeSet::new());
        let runs = entries(&self.derrick.state().join("run"));
        self.derrick.stop();
        assert_eq!(
            entries(&self.derrick.state().join("run")),
            Vec::<String>::new()
        );
        assert_no_groups(&runs);
        let strays = descendants(std::process::id().cast_signed());
        Lives::of(&strays).assert_gone();
    }
}

impl Tried {
    /// Whether it was said that it is done.
    fn is_done(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|answer| answer.status < 300)
    }

    /// Asks for it, and takes what comes back until the connection breaks off.
    fn ask(&mut self, api: &Api, limits: &Value, number: u64) {
        let json = [("content-type", "application/json")];
        let id = self.id.clone().unwrap_or_default();
        let path = format!("/workspaces/{id}");
        let answer = match self.action {
            Action::Create => {
                let body = json!({ "limits": limits }).to_string();
                api.try_send("POST", "/workspaces", &json, body.as_bytes())
            }
            Action::Reset => api.try_send("POST", &format!("{path}/reset"), &[], b""),
            Action::Delete => api.try_send("DELETE", &path, &[], b""),
            Action::Snapshot => api.try_send("POST", &format!("{path}/snapshots"), &json, b"{}"),
            Action::Put => {
                let kind = [("content-type", "application/octet-stream")];
                api.try_send("PUT", &format!("{path}/files/put"), &kind, &large(number))
            }
            Action::Exec => {
                let headers = [json[0], ("idempotency-key", &*self.key)];
                let body = long_exec(&self.key).to_string();
                api.try_send("POST", &format!("{path}/execs"), &headers, body.as_bytes())
            }
        };
        self.answer = answer.ok();
        if let Some(answer) = &self.answer
            && self.action == Action::Exec
            && answer.status < 300
        {
            let exec = answer.json()["id"].as_str().expect("an id").to_owned();
            let output = format!("{path}/execs/{exec}/output?stream=stdout&follow=true");
            if let Ok(mut output) = api.try_open(&output, &[]) {
                // What came before it broke off came.
                let _ = std::io::Read::read_to_end(&mut output, &mut self.read);
            }
        }
    }
}

/// Notes that it runs, and prints for a while.
fn long_exec(key: &str) -> Value {
    json!({
        "cmd": format!(
            "echo {key} >> /runs; n=0; while [ $n -lt {LINES} ]; do echo $n; n=$((n + 1)); done"
        ),
    })
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Reset => "reset",
        Action::Delete => "delete",
        Action::Put => "put",
        Action::Exec => "exec",
        Action::Snapshot => "snapshot",
    }
}

fn assert_layer(layer: &Path) {
    let name = layer.file_name().expect("a name").to_string_lossy();
    assert!(
        name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{name}"
    );
    let mut there = entries(layer);
    there.sort();
    there.retain(|entry| entry != "used");
    assert_eq!(there, ["meta.json", "tree"], "{name}");
    let meta = std::fs::read(layer.join("meta.json")).expect("it can be read");
    serde_json::from_slice::<Value>(&meta).expect("it is whole");
}

/// No control group is left of providers whose own directories have these names.
fn assert_no_groups(runs: &[String]) {
    let names: Vec<_> = runs.iter().map(|run| format!("derrick-{run}")).collect();
    assert_eq!(groups_named(&names), Vec::<std::path::PathBuf>::new());
}

/// The spawner of a provider, which is started anew when it is needed.
fn spawner_of(provider: i32) -> Option<i32> {
    children(provider).into_iter().find(|pid| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline"));
        words.is_ok_and(|words| words.starts_with(b"derrick-spawner\0"))
    })
}

fn end(pid: i32) {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        // It may have ended by itself.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        // An init of a subordinate id is another user's.
        Err(nix::errno::Errno::EPERM) => {
            let mut kill = support::as_owner("kill");
            let _ = kill.args(["-9", &pid.to_string()]).output();
        }
        Err(error) => panic!("process {pid}: {error}"),
    }
}

/// How many rounds of `part` of all there are.
fn rounds(part: u64) -> u64 {
    let all = std::env::var("DERRICK_CRASH_ROUNDS").map_or(ROUNDS, |text| {
        text.parse().expect("DERRICK_CRASH_ROUNDS is a number")
    });
    all.div_ceil(part)
}

#[test]
fn a_killed_provider_leaves_nothing_half_and_loses_nothing_acknowledged() {
    let mut world = World::new();
    for round in 0..rounds(2) {
        let victim = *world
            .chance
            .one_of(&[Victim::Provider, Victim::Provider, Victim::Both]);
        world.round(round, victim);
    }
    world.end(None);
}

#[test]
fn without_its_spawner_a_provider_goes_on_and_nothing_is_left() {
    let mut world = World::new();
    let first = world.used();
    for round in 0..rounds(4) {
        world.round(round, Victim::Spawner);
    }
    world.end(Some(&first));
}

#[test]
fn without_an_init_a_workspace_goes_on_and_nothing_is_left() {
    let mut world = World::new();
    let first = world.used();
    for round in 0..rounds(4) {
        world.round(round, Victim::Init);
    }
    world.end(Some(&first));
}
