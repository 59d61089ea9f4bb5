//! Files on the wire: what of a request reaches the provider, and what is made of its answer.

use futures_util::{StreamExt, stream};

use super::*;
use crate::provider::files::{
    Before, Change, Compression, Content, Creation, Entry, EntryType, FileTarget, Files, Found,
    Links, Page, RawPath, Unpacked,
};

impl Fake {
    /// Everything is at every path, but for `/none`.
    fn file(&self, id: &WorkspaceId, target: &FileTarget, call: &str) -> Result<Entry, Error> {
        let user = target.user.as_deref().unwrap_or("-");
        self.call(id, format!("{call} {:?} as {user}", target.path))?;
        if target.path.as_bytes() == b"/none" {
            return Err(Error::NoSuchFile("there is no file /none".to_owned()));
        }
        Ok(Entry {
            path: target.path.to_string(),
            path_base64: None,
            name: "n".to_owned(),
            name_base64: None,
            kind: EntryType::File,
            size: 7,
            mode: "0640".to_owned(),
            uid: 3,
            gid: 4,
            mtime: 1.5,
            target: None,
            target_base64: None,
        })
    }

    async fn take(&self, mut content: Content) -> Result<(), Error> {
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|error| Error::Host(format!("cannot read: {error}")))?;
            self.written.lock().unwrap().extend_from_slice(&piece);
        }
        Ok(())
    }
}

#[async_trait]
impl Files for Fake {
    async fn get(&self, id: &WorkspaceId, target: FileTarget, page: Page) -> Result<Found, Error> {
        let entry = self.file(id, &target, &format!("get {page:?}"))?;
        if target.path.as_bytes().ends_with(b"/") {
            let next = RawPath::from(&b"last\xff"[..]);
            return Ok(Found::Directory(vec![entry], Some(next)));
        }
        let file = self.read_file(id, named("f")).await?;
        Ok(Found::File(file, entry))
    }

    async fn stat(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        links: Links,
    ) -> Result<Entry, Error> {
        self.file(id, &target, &format!("stat {links:?}"))
    }

    async fn put(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        creation: Creation,
        content: Content,
    ) -> Result<(Entry, Before), Error> {
        let entry = self.file(id, &target, &format!("put {creation:?}"))?;
        self.take(content).await?;
        let before = match target.path.as_bytes() {
            b"/old" => Before::File,
            _ => Before::Nothing,
        };
        Ok((entry, before))
    }

    async fn change(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        change: Change,
    ) -> Result<Option<Entry>, Error> {
        let entry = self.file(id, &target, &format!("{change:?}"))?;
        Ok((!matches!(change, Change::Remove(_))).then_some(entry))
    }

    async fn pack(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        compression: Compression,
    ) -> Result<Content, Error> {
        self.file(id, &target, &format!("pack {compression:?}"))?;
        let broken = std::io::Error::other("broken off");
        let end = match target.path.as_bytes() {
            b"/broken" => Some(Err(broken)),
            _ => None,
        };
        let pieces = [Ok("tar".into())].into_iter().chain(end);
        Ok(stream::iter(pieces).boxed())
    }

    async fn unpack(
        &self,
        id: &WorkspaceId,
        target: FileTarget,
        compression: Compression,
        content: Content,
    ) -> Result<Unpacked, Error> {
        self.file(id, &target, &format!("unpack {compression:?}"))?;
        self.take(content).await?;
        Ok(Unpacked {
            entries: 2,
            bytes: 9,
            left_out: None,
            owners_changed: None,
            attributes_left_out: None,
        })
    }
}

fn named(path: &str) -> FilePath {
    FilePath {
        path: path.to_owned(),
        working_dir: None,
    }
}

const ENTRY: &str =
    r#""name":"n","type":"file","size":7,"mode":"0640","uid":3,"gid":4,"mtime":1.5}"#;

fn entry(path: &str) -> String {
    format!(r#"{{"path":"{path}",{ENTRY}"#)
}

async fn send(server: &Server, method: &str, rest: &str, headers: &str, body: &[u8]) -> Reply {
    let head = format!("{method} /workspaces/w/files{rest} HTTP/1.1{headers}");
    server.send(&head, body).await
}

#[tokio::test]
async fn a_path_arrives_as_the_bytes_that_it_stands_for() {
    let server = Server::start();
    for (sent, arrived) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a%20b%0A", "/a b\\n"),
        ("/%FF%fe", "/\\xff\\xfe"),
        ("/..%2f..%2Fetc", "/../../etc"),
        ("/a+b", "/a+b"),
        ("//a//", "//a//"),
        ("/100%25", "/100%"),
    ] {
        let rest = format!("{sent}?stat=true&follow=false&user=33");
        let reply = send(&server, "GET", &rest, "", b"").await;
        assert_eq!(reply.status, 200, "{sent}: {}", reply.text());
        let call = format!("stat Keep \"{arrived}\" as 33");
        assert_eq!(server.calls().pop().unwrap(), call);
    }
    let reply = send(&server, "GET", "/a%00b?stat=true", "", b"").await;
    reply.detail(400, "invalid-request", &["NUL"]);
    let reply = server.get("/workspaces/x/files/a").await;
    reply.problem(404, "no-such-workspace");
    let reply = server.get("/workspaces/%FF/files/a").await;
    reply.problem(404, "no-such-workspace");
}

#[tokio::test]
async fn a_file_comes_whole_or_in_the_part_that_was_asked_for() {
    let server = Server::start();
    let whole = send(&server, "GET", "/f", "", b"").await;
    assert_eq!((whole.status, &*whole.body), (200, &b"line\n\x00\xff"[..]));
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-length", "7"),
        ("last-modified", "Thu, 01 Jan 1970 00:00:01 GMT"),
        ("derrick-file-mode", "0640"),
        ("derrick-file-uid", "3"),
        ("derrick-file-gid", "4"),
        ("accept-ranges", "bytes"),
    ] {
        assert_eq!(whole.header(name), Some(value), "{name}");
    }
    let date = "Thu, 01 Jan 1970 00:00:01 GMT";
    for (headers, status, range, body) in [
        ("Range: bytes=1-2", 206, Some("bytes 1-2/7"), &b"in"[..]),
        ("Range: bytes=-2", 206, Some("bytes 5-6/7"), b"\x00\xff"),
        ("Range: bytes=0-1,3-4", 200, None, b"line\n\x00\xff"),
        (
            &format!("Range: bytes=0-0\r\nIf-Range: {date}"),
            206,
            Some("bytes 0-0/7"),
            b"l",
        ),
        (
            "Range: bytes=0-0\r\nIf-Range: \"other\"",
            200,
            None,
            b"line\n\x00\xff",
        ),
    ] {
        let reply = send(&server, "GET", "/f", &format!("\r\n{headers}"), b"").await;
        assert_eq!((reply.status, &*reply.body), (status, body), "{headers}");
        assert_eq!(reply.header("content-range"), range, "{headers}");
    }
    let none = send(&server, "GET", "/f", "\r\nRange: bytes=7-", b"").await;
    none.problem(416, "range-not-satisfiable");
    assert_eq!(none.header("content-range"), Some("bytes */7"));
    let head = send(&server, "HEAD", "/f", "", b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("7"));
    let none = send(&server, "GET", "/none", "", b"").await;
    none.problem(404, "no-such-file");
}

#[tokio::test]
async fn a_listing_says_where_the_next_one_begins() {
    let server = Server::start();
    let reply = send(&server, "GET", "/d/?limit=3&after=bGFzdP8", "", b"").await;
    let listing = format!(r#"{{"entries":[{}],"next":"bGFzdP8"}}"#, entry("/d/"));
    reply.is_json(200, &listing);
    let call = "get Page { after: Some(\"last\\xff\"), limit: 3 } \"/d/\" as -";
    assert_eq!(server.calls().pop().unwrap(), call);
}

#[tokio::test]
async fn what_is_put_arrives_as_it_was_sent() {
    let server = Server::start();
    let kind = "\r\nContent-Type: application/octet-stream";
    for (rest, status, call) in [
        (
            "/new",
            201,
            "put Creation { mode: None, parents: Make } \"/new\" as -",
        ),
        (
            "/old?mode=0750&parents=false&user=ada",
            200,
            "put Creation { mode: Some(488), parents: Expect } \"/old\" as ada",
        ),
    ] {
        let reply = send(&server, "PUT", rest, kind, b"any\xff\x00bytes").await;
        let path = rest.split('?').next().unwrap();
        reply.is_json(status, &entry(path));
        assert_eq!(server.calls().pop().unwrap(), call);
        assert_eq!(
            server.fake.written.lock().unwrap().split_off(0),
            b"any\xff\x00bytes"
        );
    }
    let reply = send(&server, "PUT", "/d?archive=tar.zst", kind, b"archive").await;
    reply.is_json(200, r#"{"entries":2,"bytes":9}"#);
    assert_eq!(server.calls().pop().unwrap(), "unpack Zstd \"/d\" as -");
    let packed = format!("{kind}\r\nContent-Encoding: gzip");
    let reply = send(&server, "PUT", "/f", &packed, b"x").await;
    reply.problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_callers_fault() {
    let server = Server::start();
    let mut stream = server.connect().await;
    let host = server.address.unwrap();
    let head = format!(
        "PUT /workspaces/w/files/f HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    Reply::parse(&reply).detail(400, "invalid-request", &["ended before it was complete"]);
}

#[tokio::test]
async fn an_archive_that_breaks_off_does_not_look_whole() {
    let server = Server::start();
    let whole = send(&server, "GET", "/d?archive=tar.gz", "", b"").await;
    assert_eq!(whole.header("content-type"), Some("application/gzip"));
    assert!(whole.text().ends_with("0\r\n\r\n"), "{}", whole.text());
    let mut stream = server.connect().await;
    let host = server.address.unwrap();
    let head =
        format!("GET /workspaces/w/files/broken?archive=tar HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut broken = Vec::new();
    stream.read_to_end(&mut broken).await.unwrap();
    assert!(!broken.ends_with(b"0\r\n\r\n"), "{}", broken.escape_ascii());
    let head = send(&server, "HEAD", "/d?archive=tar", "", b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(server.calls().pop().unwrap(), "stat Follow \"/d\" as -");
}

#[tokio::test]
async fn a_change_is_one_of_those_that_there_are() {
    let server = Server::start();
    let json = "\r\nContent-Type: application/json";
    for (body, call) in [
        (
            r#"{"mkdir":{}}"#,
            "MakeDirectory(Creation { mode: None, parents: Make })",
        ),
        (
            r#"{"mkdir":{"mode":"0700","parents":false}}"#,
            "MakeDirectory(Creation { mode: Some(448), parents: Expect })",
        ),
        (r#"{"move":{"to":"/b c"}}"#, "Move(\"/b c\")"),
        (r#"{"copy":{"to_base64":"L/8="}}"#, "Copy(\"/\\xff\")"),
        (r#"{"chmod":{"mode":"600"}}"#, "SetMode(384, One)"),
        (
            r#"{"chmod":{"mode":"0600","recursive":true}}"#,
            "SetMode(384, Tree)",
        ),
    ] {
        let reply = send(&server, "POST", "/a", json, body.as_bytes()).await;
        reply.is_json(200, &entry("/a"));
        let expected = format!("{call} \"/a\" as -");
        assert_eq!(server.calls().pop().unwrap(), expected);
    }
    for (rest, call) in [
        ("/a", "Remove(One) \"/a\" as -"),
        ("/a?recursive=true&user=7", "Remove(Tree) \"/a\" as 7"),
    ] {
        let reply = send(&server, "DELETE", rest, "", b"").await;
        reply.is_json(200, "{}");
        assert_eq!(server.calls().pop().unwrap(), call);
    }
}

#[tokio::test]
async fn what_a_request_for_files_may_not_say_is_told() {
    let server = Server::start();
    let json = "\r\nContent-Type: application/json";
    for (method, rest, body, detail) in [
        ("GET", "/a?zzz=1", "", "zzz"),
        ("GET", "/a?limit=0", "", "limit"),
        ("GET", "/a?limit=10001", "", "limit"),
        ("GET", "/a?limit=-1", "", "limit"),
        ("GET", "/a?after=%2F", "", "after"),
        ("GET", "/a?archive=zip", "", "archive"),
        ("GET", "/a?stat=yes", "", "stat"),
        ("PUT", "/a?mode=rwx", "x", "mode"),
        ("PUT", "/a?mode=10000", "x", "mode"),
        ("DELETE", "/a?archive=tar", "", "archive"),
        ("POST", "/a", "{}", "mkdir, move, copy and chmod"),
        ("POST", "/a", r#"{"link":{}}"#, "link"),
        ("POST", "/a", r#"{"move":{}}"#, "to"),
        ("POST", "/a", r#"{"move":{"to":"b"}}"#, "absolute"),
        ("POST", "/a", r#"{"move":{"to":"/b\u0000"}}"#, "NUL"),
        ("POST", "/a", r#"{"copy":{"to_base64":"!"}}"#, "base64"),
        ("POST", "/a", r#"{"chmod":{"mode":"9"}}"#, "mode"),
        ("POST", "/a", r#"{"chmod":{"mode":420}}"#, "mode"),
    ] {
        let reply = send(&server, method, rest, json, body.as_bytes()).await;
        reply.detail(400, "invalid-request", &[detail]);
    }
    let reply = send(&server, "POST", "/a", "", b"{}").await;
    reply.problem(415, "unsupported-media-type");
    assert!(server.calls().is_empty(), "{:?}", server.calls());
}
