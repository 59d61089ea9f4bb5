//! Ids and paths: refused, or told again as they were.

#![no_main]

use derrick::init::files::protocol::RawPath;
use derrick::init::unpack::Compression;
use derrick::provider::{EventId, ExecId, WorkspaceId, check_session_name};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = RawPath::from(bytes);
    assert_eq!(path.as_bytes(), bytes);
    // One line of plain characters, whatever is in it.
    let shown = format!("{path} {path:?}");
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    let told = serde_json::to_string(&path).expect("a path is JSON");
    if let Ok(heard) = serde_json::from_str::<RawPath>(&told) {
        assert_eq!(heard, path);
    }
    // A refusal is an answer too.
    let _ = Compression::detect(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = text.parse::<WorkspaceId>() {
        assert_eq!(id.to_string(), text);
        assert!(
            !text.contains(['/', '.', '\0']),
            "it is a name of a directory"
        );
    }
    if let Ok(id) = text.parse::<ExecId>() {
        let told = id.to_string();
        assert!(
            !told.contains(['/', '.', '\0']),
            "it is a name of a directory"
        );
        assert_eq!(told.parse::<ExecId>().ok(), Some(id));
    }
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string().parse::<EventId>().ok(), Some(id));
    }
    let _ = check_session_name(text);
    let _ = derrick::init::user::check(text);
});
