//! Creates beyond what there is room for: refused with what is missing, or let in in order; and what
//! `GET /capacity` says of it beforehand.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Answer, Api, Derrick, GUARD, Launch, Mode, fixture, mode};

/// A small base that starts fast, with further fields of the config.
fn busybox(fields: &Value) -> Value {
    let mut config =
        json!({ "name": "test", "base": { "type": "tarball", "path": fixture("busybox.tar") } });
    for (name, value) in fields.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

fn capacity(api: &Api) -> Value {
    api.get("/capacity").expect(200).json()
}

fn until_waiting(api: &Api, count: u64) {
    let guard = Instant::now() + GUARD;
    while capacity(api)["waiting"] != count {
        assert!(Instant::now() < guard, "{}", capacity(api));
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The id of what was made.
fn made(answer: Answer) -> String {
    let answer = answer.expect(200).json();
    answer["id"].as_str().expect("it has an id").to_owned()
}

/// What is missing.
fn refused(answer: Answer) -> String {
    assert_eq!(answer.headers["retry-after"], "1");
    let problem = answer.problem(429);
    assert_eq!(problem["type"], "urn:derrick:problem:too-many");
    problem["detail"].as_str().expect("a text").to_owned()
}

#[test]
fn who_waits_is_let_in_in_order_and_nobody_gets_past() {
    let derrick = Derrick::start(busybox(&json!({ "max_workspaces": 1 })));
    let first = derrick.create();
    let ask = |number: u64| {
        let pending = derrick
            .api
            .start("/workspaces?wait=1000", json!({ "ttl": 1000 + number }));
        until_waiting(&derrick.api, number);
        pending
    };
    let mut waiting = vec![ask(1), ask(2), ask(3)];
    let told = capacity(&derrick.api);
    assert_eq!(told["more"], 0, "{told}");
    let metrics = derrick.api.get("/metrics").expect(200).text();
    assert!(metrics.contains("\nderrick_creates_waiting 3\n"));
    let detail = refused(derrick.api.post("/workspaces", &json!({})));
    assert_eq!(
        detail,
        "there are 1 workspaces, which is as many as the config's max_workspaces allows; 3 other requests wait"
    );
    refused(derrick.api.post("/workspaces?wait=0", &json!({})));
    refused(derrick.api.post("/workspaces?wait=0.05", &json!({})));
    until_waiting(&derrick.api, 3);

    let mut last = first;
    for left in [2, 1, 0] {
        assert!(last.delete());
        let id = made(waiting.remove(0).answer());
        last = derrick.api.workspace(&id);
        // In the order in which they came.
        assert_eq!(last.describe()["ttl"], 1003.0 - f64::from(left));
        until_waiting(&derrick.api, u64::try_from(left).expect("small"));
        assert_eq!(derrick.api.list(), [id]);
    }
}

#[test]
fn owners_take_turns_and_none_fills_the_queue() {
    const ALL: &str = "0123456789abcdef0123456789abcdef";
    const A: &str = "00112233445566778899aabbccddee01";
    const B: &str = "00112233445566778899aabbccddee02";
    let derrick = Launch::new(busybox(&json!({ "max_workspaces": 1 })))
        .token(&format!(
            "{ALL}\n{A} name=a scope=own\n{B} name=b scope=own\n"
        ))
        .start();
    let (a, b) = (
        derrick.api.with_token(Some(A)),
        derrick.api.with_token(Some(B)),
    );
    let mut last = a.create();
    let ask = |api: &Api, number: u64, count: u64| {
        let pending = api.start("/workspaces?wait=1000", json!({ "ttl": number }));
        until_waiting(&derrick.api, count);
        pending
    };
    let waiting = [
        ask(&a, 1001, 1),
        ask(&a, 1002, 2),
        ask(&a, 1003, 3),
        ask(&b, 2001, 4),
        ask(&b, 2002, 5),
    ];
    let mut order = Vec::new();
    for left in (0..5).rev() {
        assert!(last.delete());
        until_waiting(&derrick.api, left);
        let guard = Instant::now() + GUARD;
        last = loop {
            if let [id] = derrick.api.list().as_slice() {
                break derrick.api.workspace(id);
            }
            assert!(Instant::now() < guard, "none is made");
            std::thread::park_timeout(Duration::from_millis(5));
        };
        order.push(last.describe()["ttl"].as_f64().expect("it has one"));
    }
    assert_eq!(order, [1001.0, 2001.0, 1002.0, 2002.0, 1003.0]);
    for pending in waiting {
        made(pending.answer());
    }

    let request = format!(
        "POST /workspaces?wait=1000 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {A}\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}",
        derrick.api.address()
    );
    let _waiting: Vec<_> = (0..256)
        .map(|_| {
            let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
            stream.write_all(request.as_bytes()).expect("it reads");
            stream
        })
        .collect();
    until_waiting(&derrick.api, 256);
    let detail = refused(a.post("/workspaces?wait=1000", &json!({})));
    assert_eq!(
        detail,
        "256 creates of this owner wait for a place, which is as many as may; 256 other requests wait"
    );
    // Of another one there is none before it.
    let pending = b.start("/workspaces?wait=1000", json!({ "ttl": 2003 }));
    until_waiting(&derrick.api, 257);
    assert!(last.delete());
    until_waiting(&derrick.api, 256);
    let guard = Instant::now() + GUARD;
    while derrick.api.list().is_empty() {
        assert!(Instant::now() < guard, "none is made");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let first = derrick.api.list().remove(0);
    assert!(derrick.api.workspace(&first).delete());
    made(pending.answer());
}

#[test]
fn who_goes_away_waits_no_more() {
    let derrick = Derrick::start(busybox(&json!({ "max_workspaces": 1 })));
    let first = derrick.create();
    let request = format!(
        "POST /workspaces?wait=1000 HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: 2\r\n\r\n{{}}",
        derrick.api.address()
    );
    let mut stream = TcpStream::connect(derrick.api.address()).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    until_waiting(&derrick.api, 1);
    let second = derrick.api.start("/workspaces?wait=1000", json!({}));
    until_waiting(&derrick.api, 2);
    drop(stream);
    until_waiting(&derrick.api, 1);
    assert!(first.delete());
    let id = made(second.answer());
    assert_eq!(derrick.api.list(), [id]);
}

#[test]
fn who_waits_when_derrick_ends_is_told() {
    let mut derrick = Derrick::start(busybox(&json!({ "max_workspaces": 1 })));
    derrick.create();
    let waiting = derrick.api.start("/workspaces?wait=1000", json!({}));
    until_waiting(&derrick.api, 1);
    assert!(derrick.stop().success());
    waiting.answer().problem(409);
}

#[test]
fn a_wait_has_a_length_that_can_be_waited() {
    let derrick = Derrick::start(busybox(&json!({})));
    for wait in ["-1", "3601", "x", "NaN", ""] {
        let path = format!("/workspaces?wait={wait}");
        derrick.api.post(&path, &json!({})).problem(400);
    }
    made(derrick.api.post("/workspaces?wait=3600", &json!({})));
}

#[test]
fn without_memory_nothing_is_made_and_the_numbers_say_why() {
    let derrick = Derrick::start(busybox(&json!({ "min_free_memory": "1024TiB" })));
    let told = capacity(&derrick.api);
    assert_eq!(told["more"], 0, "{told}");
    assert_eq!(told["memory"]["more"], 0, "{told}");
    assert_eq!(told["memory"]["floor"], 1u64 << 50, "{told}");
    let detail = refused(derrick.api.post("/workspaces", &json!({})));
    assert!(detail.contains("GiB of memory are available"), "{detail}");
    assert!(detail.contains("1.0 PiB are to be left"), "{detail}");
    refused(derrick.api.post("/workspaces?wait=0.5", &json!({})));
    assert_eq!(derrick.api.list(), Vec::<String>::new());
}

#[test]
fn what_is_requested_is_promised_once() {
    let plain = Derrick::start(busybox(&json!({})));
    let total = capacity(&plain.api)["memory"]["total"].as_u64();
    let total = total.expect("the host has some");
    drop(plain);
    let most = total - (64 << 20);
    let config = json!({
        "requests": { "memory": most / 100 * 40 },
        "min_free_memory": "64MiB",
        "best_effort": ["limits"],
    });
    let derrick = Derrick::start(busybox(&config));
    let own = json!({ "requests": { "memory": total } });
    let problem = derrick.api.post("/workspaces", &own).problem(422);
    let detail = problem["detail"].to_string();
    assert!(detail.contains("requests.memory"), "{detail}");
    let small = json!({ "requests": { "memory": 4096 } });
    let first = derrick.create();
    assert_eq!(capacity(&derrick.api)["memory"]["basis"], "request");
    derrick.create();
    let told = capacity(&derrick.api);
    assert_eq!(told["memory"]["promised"], most / 100 * 80, "{told}");
    assert_eq!(
        (&told["more"], &told["memory"]["more"]),
        (&json!(0), &json!(0))
    );
    let detail = refused(derrick.api.post("/workspaces", &json!({})));
    assert!(detail.contains("requests for memory come to"), "{detail}");
    // Who asks for little gets it, but not past one who waits.
    let little = derrick.api.create_with(&small);
    assert!(little.delete());
    let waiting = derrick.api.start("/workspaces?wait=1000", json!({}));
    until_waiting(&derrick.api, 1);
    let detail = refused(derrick.api.post("/workspaces", &small));
    assert_eq!(detail, "others wait for a place; another request waits");
    assert!(first.delete());
    made(waiting.answer());
}

#[test]
fn more_is_how_many_there_can_be() {
    let derrick = Derrick::start(busybox(&json!({ "max_workspaces": 3 })));
    let told = capacity(&derrick.api);
    assert_eq!(told["more"], 3, "{told}");
    let of = |told: &Value| {
        let places = &told["workspaces"];
        let numbers = ["running", "stopped", "coming", "limit", "more"];
        numbers.map(|name| places[name].as_u64().expect("a number"))
    };
    assert_eq!(of(&told), [0, 0, 0, 3, 3]);
    let memory = &told["memory"];
    let number = |name: &str| memory[name].as_u64().expect("a number");
    let least = number("more") * number("per_workspace") + number("floor");
    assert!(least <= number("available"), "{told}");
    assert!(told["pressure"].is_object(), "{told}");
    assert!(told["disk"]["free"].as_u64() >= told["disk"]["floor"].as_u64());
    match mode() {
        Mode::Root => {
            let ranges = &told["ranges"];
            assert!(ranges["free"].as_u64() <= ranges["total"].as_u64());
            assert!(ranges["free"].as_u64() > Some(3), "{told}");
        }
        Mode::Subordinate | Mode::Single => assert_eq!(told.get("ranges"), None),
    }
    let mut made = Vec::new();
    for left in [2, 1, 0] {
        made.push(derrick.create());
        let told = capacity(&derrick.api);
        assert_eq!(told["more"], left, "{told}");
        assert_eq!(told["workspaces"]["running"], 3 - left, "{told}");
    }
    refused(derrick.api.post("/workspaces", &json!({})));
    assert!(made[0].delete());
    assert_eq!(capacity(&derrick.api)["more"], 1);
    assert_eq!(of(&capacity(&derrick.api)), [2, 0, 0, 3, 1]);
}

#[test]
fn an_unlimited_provider_counts_by_memory_and_a_small_disk_is_none() {
    let derrick = Derrick::start(busybox(&json!({})));
    let told = capacity(&derrick.api);
    assert_eq!(told["workspaces"].get("limit"), None, "{told}");
    assert_eq!(told["workspaces"].get("more"), None, "{told}");
    assert!(told["more"].as_u64() > Some(0), "{told}");
    assert!(told["more"].as_u64() <= told["memory"]["more"].as_u64());
    let full = Launch::new(busybox(&json!({})))
        .arguments(["--min-free", "1000000TB"])
        .start();
    let told = capacity(&full.api);
    assert_eq!(
        (&told["more"], &told["disk"]["more"]),
        (&json!(0), &json!(0))
    );
    full.api.post("/workspaces", &json!({})).problem(507);
}

#[test]
fn capacity_is_for_who_may_make_workspaces() {
    const ALL: &str = "0123456789abcdef0123456789abcdef";
    const OWN: &str = "00112233445566778899aabbccddee01";
    const ONE: &str = "00112233445566778899aabbccddee02";
    let derrick = Launch::new(busybox(&json!({})))
        .token(&format!("{ALL}\n{OWN} name=a scope=own\n{ONE} scope=x\n"))
        .start();
    capacity(&derrick.api);
    capacity(&derrick.api.with_token(Some(OWN)));
    let refused = derrick.api.with_token(Some(ONE)).get("/capacity");
    assert_eq!(
        refused.problem(403)["type"],
        "urn:derrick:problem:beyond-scope"
    );
}
