//! Requests, as bytes on a connection: each gets an answer, and none of the server's faults.
//!
//! The provider has no workspace and refuses everything. The first line of the input is the request's, the
//! rest its body.

#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use derrick::provider::changes::*;
use derrick::provider::files::*;
use derrick::provider::push::*;
use derrick::provider::snapshots::*;
use derrick::provider::*;
use derrick::server::http::{HttpOptions, Listener, serve};
use derrick::tally::Timings;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

struct Front {
    runtime: Runtime,
    directory: tempfile::TempDir,
}

fuzz_target!(|bytes: &[u8]| {
    static FRONT: OnceLock<Front> = OnceLock::new();
    let front = FRONT.get_or_init(start);
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let (line, body) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let mut request = line.to_vec();
    request
        .extend_from_slice(b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: ");
    let kind: &[u8] = match line.starts_with(b"PUT") {
        true => b"application/octet-stream",
        false => b"application/json",
    };
    request.extend_from_slice(kind);
    request.extend_from_slice(format!("\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
    request.extend_from_slice(body);
    let answer = front.runtime.block_on(async {
        let mut stream = UnixStream::connect(front.directory.path().join("socket"))
            .await
            .expect("it listens");
        // It may answer and close before it has read all of it.
        let _ = stream.write_all(&request).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
        let _ = read.await.expect("it answers");
        answer
    });
    assert!(
        !answer.starts_with(b"HTTP/1.1 5"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
});

fn start() -> Front {
    let runtime = Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listener = {
        let _entered = runtime.enter();
        Listener::unix(&directory.path().join("socket")).expect("the directory is new")
    };
    let options = HttpOptions {
        read_timeout: Duration::from_secs(5),
        ..HttpOptions::default()
    };
    runtime.spawn(serve(
        listener,
        Arc::new(Empty),
        options,
        std::future::pending(),
    ));
    Front { runtime, directory }
}

struct Empty;

fn nothing<T>() -> Result<T, Error> {
    Err(Error::NoSuchWorkspace("none".to_owned()))
}

#[async_trait]
impl Provider for Empty {
    async fn create(&self, _asked: NewWorkspace) -> Result<WorkspaceId, Error> {
        nothing()
    }

    fn owner(&self, _id: &WorkspaceId) -> Result<Option<String>, Error> {
        nothing()
    }

    async fn describe(&self, _id: &WorkspaceId) -> Result<Description, Error> {
        nothing()
    }

    async fn remove(&self, _id: &WorkspaceId) -> Result<bool, Error> {
        nothing()
    }

    async fn renew(
        &self,
        _id: &WorkspaceId,
        _ttl: Option<Duration>,
        _latitude: Latitude,
    ) -> Result<Lease, Error> {
        nothing()
    }

    async fn start(
        &self,
        _id: &WorkspaceId,
        _command: Command,
    ) -> Result<(Arc<Exec>, Novelty), Error> {
        nothing()
    }

    fn execs(&self, _id: &WorkspaceId) -> Result<Vec<ExecRecord>, Error> {
        nothing()
    }

    fn exec(&self, _id: &WorkspaceId, _exec: ExecId) -> Result<Arc<Exec>, Error> {
        nothing()
    }

    async fn start_session(
        &self,
        _id: &WorkspaceId,
        _name: String,
        _command: Command,
    ) -> Result<SessionRecord, Error> {
        nothing()
    }

    fn sessions(&self, _id: &WorkspaceId) -> Result<Vec<SessionRecord>, Error> {
        nothing()
    }

    fn session(&self, _id: &WorkspaceId, _name: &str) -> Result<Arc<Session>, Error> {
        nothing()
    }

    async fn run_in_session(
        &self,
        _id: &WorkspaceId,
        _name: &str,
        _line: String,
        _timeout: Option<Duration>,
    ) -> Result<Ran, Error> {
        nothing()
    }

    async fn remove_session(&self, _id: &WorkspaceId, _name: &str) -> Result<bool, Error> {
        nothing()
    }

    fn events(&self, _id: &WorkspaceId) -> Result<Arc<Events>, Error> {
        nothing()
    }

    async fn run(&self, _id: &WorkspaceId, _command: Command) -> Result<Finished, Error> {
        nothing()
    }

    async fn write_file(
        &self,
        _id: &WorkspaceId,
        _target: FilePath,
        _content: FileContent,
    ) -> Result<(), Error> {
        nothing()
    }

    async fn read_file(&self, _id: &WorkspaceId, _source: FilePath) -> Result<OpenFile, Error> {
        nothing()
    }

    async fn reset(&self, _id: &WorkspaceId, _wish: ResetWish) -> Result<Receipt, Error> {
        nothing()
    }

    async fn change_limits(
        &self,
        _id: &WorkspaceId,
        _change: LimitsChange,
    ) -> Result<Description, Error> {
        nothing()
    }

    async fn pause(&self, _id: &WorkspaceId) -> Result<Description, Error> {
        nothing()
    }

    async fn resume(&self, _id: &WorkspaceId) -> Result<Description, Error> {
        nothing()
    }

    async fn fetch(&self, _id: &WorkspaceId, _wish: FetchWish) -> Result<Vec<Fetched>, Error> {
        nothing()
    }

    fn list(&self) -> Vec<WorkspaceId> {
        Vec::new()
    }

    fn enforcement(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        nothing()
    }

    async fn layers(&self) -> Result<Vec<Kept>, Error> {
        nothing()
    }

    async fn collect(&self, _bounds: Bounds, _mode: Mode) -> Result<Collected, Error> {
        nothing()
    }

    fn figures(&self) -> Figures {
        let none = Timings::default().read();
        Figures {
            running: 0,
            stopped: 0,
            waiting: 0,
            execs: 0,
            outcomes: Vec::new(),
            removals: Vec::new(),
            exec_durations: none.clone(),
            exec_bytes: (0, 0),
            create_durations: none.clone(),
            reset_durations: none,
            sandboxes: 0,
            quarantined: 0,
            pool: Level::default(),
            layers: None,
            layer_bytes: None,
            collected: (0, 0, 0),
            enforcement: Vec::new(),
            weaker: 0,
        }
    }

    async fn shutdown(&self) {}
}

#[async_trait]
impl ShowChanges for Empty {
    async fn changes(
        &self,
        _id: &WorkspaceId,
        _within: Option<RawPath>,
        _form: Form,
    ) -> Result<ToldChanges, Error> {
        nothing()
    }
}

#[async_trait]
impl HandOut for Empty {
    async fn commit(
        &self,
        _id: &WorkspaceId,
        _path: Option<PathBuf>,
        _message: Message,
    ) -> Result<Committed, Error> {
        nothing()
    }

    async fn bundle(
        &self,
        _id: &WorkspaceId,
        _path: Option<PathBuf>,
        _reference: Option<String>,
    ) -> Result<Bundled, Error> {
        nothing()
    }

    async fn push(&self, _id: &WorkspaceId, _wish: PushWish) -> Result<Pushed, Error> {
        nothing()
    }
}

#[async_trait]
impl Snapshots for Empty {
    async fn snapshot(&self, _id: &WorkspaceId, _label: Option<String>) -> Result<Taken, Error> {
        nothing()
    }

    async fn fork(
        &self,
        _id: &WorkspaceId,
        _count: usize,
        _label: Option<String>,
        _asked: NewWorkspace,
    ) -> Result<Forked, Error> {
        nothing()
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        Vec::new()
    }

    fn show_snapshot(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    fn label_snapshot(&self, id: SnapshotId, _label: Option<String>) -> Result<Snapshot, Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    async fn export_snapshot(
        &self,
        id: SnapshotId,
        _compression: Compression,
    ) -> Result<Content, Error> {
        Err(Error::NoSuchSnapshot(id.to_string()))
    }

    async fn import_snapshot(
        &self,
        _content: Content,
        _owner: Option<String>,
    ) -> Result<Imported, Error> {
        nothing()
    }

    async fn fence(&self, _id: &WorkspaceId) -> Result<Snapshot, Error> {
        nothing()
    }

    async fn fence_at(&self, _id: &WorkspaceId, _at: f64) -> Result<Fence, Error> {
        nothing()
    }
}

#[async_trait]
impl Files for Empty {
    async fn get(
        &self,
        _id: &WorkspaceId,
        _target: FileTarget,
        _page: Page,
    ) -> Result<Found, Error> {
        nothing()
    }

    async fn stat(
        &self,
        _id: &WorkspaceId,
        _target: FileTarget,
        _links: Links,
    ) -> Result<Entry, Error> {
        nothing()
    }

    async fn put(
        &self,
        _id: &WorkspaceId,
        _target: FileTarget,
        _creation: Creation,
        _content: Content,
    ) -> Result<(Entry, Before), Error> {
        nothing()
    }

    async fn change(
        &self,
        _id: &WorkspaceId,
        _target: FileTarget,
        _change: Change,
    ) -> Result<Option<Entry>, Error> {
        nothing()
    }

    async fn pack(
        &self,
        _id: &WorkspaceId,
        _target: FileTarget,
        _compression: Compression,
    ) -> Result<Content, Error> {
        nothing()
    }

    async fn unpack(
        &self,
        _id: &WorkspaceId,
        _target: FileTarget,
        _compression: Compression,
        _content: Content,
    ) -> Result<Unpacked, Error> {
        nothing()
    }
}
