//! `--cache s3://…` against a server that speaks S3: Python's moto.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tests::python;

use crate::cache::{Bench, admitted, start};

/// A server with one empty bucket, `answers`.
struct S3 {
    server: Child,
    port: u16,
}

impl S3 {
    fn start(test: &str) -> Option<Self> {
        let python = python(&["moto", "flask"], test)?;
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let server = std::process::Command::new(python.program())
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto");
        let store = Self { server, port };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "moto does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        store.call("PUT", "", b"");
        Some(store)
    }

    /// What a process needs to know of it.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let own = |text: &str| text.to_owned();
        vec![
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", own("true")),
            ("AWS_REGION", own("us-east-1")),
            ("AWS_ACCESS_KEY_ID", own("one")),
            ("AWS_SECRET_ACCESS_KEY", own("two")),
        ]
    }

    /// Speaks to the bucket as nobody's client would: by hand.
    fn call(&self, method: &str, name: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("moto");
        let head = format!(
            "{method} /answers{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
             Authorization: AWS one:two\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {name}: {answer}");
        answer
    }

    /// The names in the bucket that end so.
    fn names(&self, end: &str) -> Vec<String> {
        let list = self.call("GET", "?list-type=2", b"");
        let keys = list.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        keys.filter(|key| key.ends_with(end)).map(|key| format!("/{key}")).collect()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Built by one machine, learned from by another that has nothing; what the store has wrong is named and
/// mended; a store that is gone is named, and nothing is lost.
#[test]
fn a_cache_in_an_s3_store_serves_another_machine_and_is_mended() {
    let test = "a_cache_in_an_s3_store_serves_another_machine_and_is_mended";
    let Some(store) = S3::start(test) else { return };
    let (teacher, cache) = (start(), "s3://answers/some/place");
    let bench = Bench::new().with(store.environment());
    let elsewhere = || fs::remove_dir_all(bench.path("home")).expect("the copy");
    let (status, complaint) = bench.build(&teacher, cache);
    assert_eq!(status, 0, "{complaint}");
    assert_eq!(store.names(".seg").len(), 1, "{:?}", store.names(""));
    let asked = admitted(&teacher);

    elsewhere();
    let (status, complaint) = bench.train(Some(&teacher), cache, "with");
    assert_eq!((status, admitted(&teacher)), (0, asked), "{complaint}");
    elsewhere();
    let (status, complaint) = bench.train(None, cache, "without");
    assert_eq!(status, 0, "{complaint}");
    let weights = |out: &str| fs::read(bench.path(out).join("model.safetensors")).expect("weights");
    assert!(weights("with") == weights("without"));
    let (status, shown, _) = bench.go(&["cache", "info", "--cache", cache]);
    assert!(status == 0 && shown.contains("top-k k=64"), "{shown}");

    // Other bytes under the name of a segment.
    store.call("PUT", &store.names(".seg")[0], b"not what the list says");
    elsewhere();
    let (status, shown, complaint) = bench.go(&["cache", "verify", "--cache", cache]);
    assert!(status == 1 && format!("{shown}{complaint}").contains("damaged"), "{shown}{complaint}");
    let (status, complaint) = bench.train(None, cache, "damaged");
    assert!(status == 1 && complaint.contains("lacks the answers of 12 of 12"), "{complaint}");
    let (status, complaint) = bench.build(&teacher, cache);
    assert_eq!(status, 0, "{complaint}");
    elsewhere();
    let (status, complaint) = bench.train(None, cache, "mended");
    assert_eq!(status, 0, "{complaint}");

    let absent = "s3://nobodys/place";
    let (status, complaint) = bench.train(None, absent, "absent");
    assert!(status == 1 && complaint.contains(absent), "{complaint}");
    assert!(complaint.contains("make the bucket"), "{complaint}");
    drop(store);
    // What this machine has of it does for a run, not for a build.
    let (status, complaint) = bench.train(None, cache, "away");
    assert!(status == 0 && complaint.contains("is used without it"), "{complaint}");
    let (status, complaint) = bench.build(&teacher, cache);
    assert!(status == 1 && complaint.contains(cache), "{complaint}");
}
