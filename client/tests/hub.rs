//! Models by name, from a hub that this test plays. `cargo test --workspace --features fedtune-client/hub --test hub`.
#![cfg(feature = "hub")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod tiny_model;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Serves the files of a folder as the model `org/tiny`, until the process ends. Gives the address.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let folder = folder.to_path_buf();
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap(), &folder)));
    address
}

fn answer(mut stream: TcpStream, folder: &Path) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let mut send = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n").unwrap();
        stream.write_all(body).unwrap();
    };
    if path == "/api/models/org/tiny/revision/main" {
        let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let siblings: Vec<Value> = names.map(|name| json!({ "rfilename": name })).collect();
        let info = json!({ "sha": "c0ffee", "siblings": siblings });
        return send("200 OK", "Content-Type: application/json\r\n", info.to_string().as_bytes());
    }
    let Some(name) = path.strip_prefix("/org/tiny/resolve/main/") else { return send("404 Not Found", "", b"") };
    let bytes = std::fs::read(folder.join(name)).unwrap();
    let range =
        headers.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let range = range.unwrap_or("0-".into());
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last.parse().map_or(bytes.len(), |last: usize| last + 1);
    let range = format!(
        "X-Repo-Commit: c0ffee\r\nETag: \"{name}\"\r\nContent-Range: bytes {first}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    send("206 Partial Content", &range, &bytes[first..end]);
}

fn finetune(folder: &Path, endpoint: &str, model: &str) -> Output {
    let fixed =
        ["--train", "train.csv", "--test", "train.csv", "--epochs", "1", "--max-length", "16", "--out", "tuned"];
    Command::new(env!("CARGO_BIN_EXE_fedtune-client"))
        .args(["finetune", "--model", model])
        .args(fixed)
        .current_dir(folder)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", folder.join("cache"))
        .output()
        .unwrap()
}

#[test]
fn a_model_is_fetched_by_its_name_once_and_kept() {
    let (model, folder) = (tiny_model::folder(), tempfile::tempdir().unwrap());
    std::fs::write(model.path().join("pytorch_model.bin"), "not read").unwrap();
    std::fs::write(folder.path().join("train.csv"), tiny_model::csv(30)).unwrap();
    let found = finetune(folder.path(), &serve(model.path()), "org/tiny");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let snapshot = folder.path().join("cache/hub/models--org--tiny/snapshots/c0ffee");
    let mut names: Vec<_> =
        std::fs::read_dir(snapshot).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    // Nobody listens there.
    let again = finetune(folder.path(), "http://127.0.0.1:9", "org/tiny");
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("the hub did not answer"));
    // The table of measures; what follows tells of the time it took.
    let table = |output: Output| {
        let text = String::from_utf8(output.stdout).unwrap();
        text.rsplit_once("\n\n").unwrap().0.to_owned()
    };
    assert_eq!(table(again), table(found));
}

#[test]
fn a_model_that_is_not_there_is_an_error_with_a_remedy() {
    let (model, folder) = (tiny_model::folder(), tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("train.csv"), tiny_model::csv(30)).unwrap();
    let endpoint = serve(model.path());
    for name in ["org/other", "org/tiny@other"] {
        let found = finetune(folder.path(), &endpoint, name);
        let message = String::from_utf8_lossy(&found.stderr).into_owned();
        assert_eq!(found.status.code(), Some(5), "{message}");
        assert!(message.contains(name) && message.contains("check the name"), "{message}");
    }
}
