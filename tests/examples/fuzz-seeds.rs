//! Writes what the real encoders write into the corpus of `tests/fuzz`, a few files for each target. When a format changes,
//! run it again: `cargo run -p fedtune-tests --example fuzz-seeds`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedtune_config::Job;
use fedtune_config::job::{self, Cohort, Download, Evaluator, Late, Patterns, Strategy, Task, TaskKind};
use fedtune_proto::delta::{Encoder, Rounding};
use fedtune_proto::difference;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::evaluation::{Counts, Evaluation, Form, Probabilities};
use fedtune_proto::layout::Layout;
use fedtune_proto::recipe::{ExportRecipe, ExportTensor, TensorSource};
use fedtune_proto::{v1, version};
use fedtune_server::pki::{Authority, Identity, Role};
use fedtune_server::round::{self, Machine, Phase, Plan, RoundRecord, SiteShare, Trainee, Turn, Work};
use fedtune_server::store::records::BaseFile;
use fedtune_tests::repository;
use fuzz::proto::{CODECS, FORMS, PREAMBLE, SIZES, STATES, before};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use prost::Message;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a library of its own for the fuzz targets")]
mod fuzz;

struct Corpus(PathBuf);

impl Corpus {
    fn put(&self, target: &str, name: &str, bytes: impl AsRef<[u8]>) {
        let (_, read) = fuzz::TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
        read(bytes.as_ref());
        let folder = self.0.join(target);
        fs::create_dir_all(&folder).expect("a folder for the corpus");
        fs::write(folder.join(format!("seed-{name}")), bytes).expect("a folder for the corpus");
    }
}

fn main() {
    let corpus = Corpus(repository().join("tests/fuzz/corpus"));
    layouts(&corpus);
    updates(&corpus);
    texts(&corpus);
    evaluations(&corpus);
    messages(&corpus);
    keys(&corpus);
    records(&corpus);
    data(&corpus);
    images(&corpus);
    models(&corpus);
}

fn read(path: &str) -> Vec<u8> {
    fs::read(repository().join(path)).expect(path)
}

/// Values that look drawn, some of them 0.
fn values(count: usize) -> impl Iterator<Item = f32> {
    (0..count).map(|i| if i % 7 == 0 { 0.0 } else { ((i * 7919 % 1009) as f32 - 504.0) * 1e-4 })
}

fn update(layout: &Layout) -> Vec<u8> {
    let count = (layout.file_bytes - layout.data_start) as usize / 4;
    layout.header().into_iter().chain(values(count).flat_map(f32::to_le_bytes)).collect()
}

fn layouts(corpus: &Corpus) {
    for name in ["table-class", "bert", "resnet-switches"] {
        let file = read(&format!("tests/fixtures/{name}/model.safetensors"));
        let length = u64::from_le_bytes(*file.first_chunk().expect("a header")) as usize;
        let payload = (file.len() - 8 - length) as u32;
        corpus.put("layout", name, [&payload.to_le_bytes(), &file[8..8 + length]].concat());
    }
}

fn updates(corpus: &Corpus) {
    for (state, layout) in STATES.iter().enumerate() {
        for (number, codec) in CODECS.into_iter().enumerate() {
            let mut container = Vec::new();
            let encoder = Encoder::new(layout, codec, Rounding::Nearest);
            encoder.encode(&update(layout)[..], &mut container).expect("sound");
            // Most of a large one is of no use to a fuzzer.
            if container.len() < 20_000 {
                let (cut, whole) = (number as u8, (number + CODECS.len()) as u8);
                let name = format!("{state}-{number}");
                corpus.put("delta", &name, [&[cut, state as u8], &container[PREAMBLE..]].concat());
                corpus.put("delta", &format!("{name}-whole"), [&[whole, state as u8], &container[..]].concat());
            }
        }
    }
    for (kind, size) in SIZES.into_iter().enumerate() {
        let before = before(size);
        let next: Vec<u8> =
            (0..size).map(|i| if i % 997 == 5 { before[i].wrapping_sub(1) } else { before[i] }).collect();
        let mut container = Vec::new();
        difference::encode(&before[..], &next[..], size as u64, &mut container).expect("of one size");
        let (cut, whole) = (kind as u8, (kind + SIZES.len()) as u8);
        corpus.put("difference", &kind.to_string(), [&[cut], &container[16..]].concat());
        corpus.put("difference", &format!("{kind}-whole"), [&[whole], &container[..]].concat());
    }
    let halves: Vec<u8> = (0..90_u8).collect();
    corpus.put("difference", "halves", [&[2 * SIZES.len() as u8], &halves[..]].concat());
    let layout = &STATES[0];
    let data = &update(layout)[layout.data_start as usize..];
    for number in 0..CODECS.len() as u8 {
        corpus.put("residual", &number.to_string(), [&[number], data, data].concat());
    }
    let whole = update(layout);
    corpus.put("residual", "whole", [&[CODECS.len() as u8], &whole[..], &whole].concat());

    let layout = Layout::of_tensors([("w".to_owned(), "F32".to_owned(), vec![5, 2])]).expect("small");
    let whole = update(&layout);
    for kind in 0..7 {
        let sent = match ["none", "f16", "int8", "int4", "top-k"].get(usize::wrapping_sub(kind, 2)) {
            None => whole.clone(),
            Some(codec) => {
                let mut container = Vec::new();
                let encoder = Encoder::new(&layout, codec.parse().expect("a codec"), Rounding::Nearest);
                encoder.encode(&whole[..], &mut container).expect("sound");
                container
            }
        };
        corpus.put("update", &kind.to_string(), [&[kind as u8], &sent[..]].concat());
    }
}

fn job() -> Job {
    Job::classify("triage", Path::new("model"), vec!["yes".into(), "no".into()])
}

/// What a seed has that the plainest job does not, and its name.
type Change = (&'static str, fn(&mut Job));

/// Jobs that use what few do, and read back.
fn changes() -> [Change; 4] {
    [
        ("late", |job| {
            (job.rounds.late, job.rounds.staleness_max) = (Some(Late::Keep), Some(3));
            (job.rounds.target, job.rounds.cohort) = (Some(3), Cohort::Count(5));
        }),
        ("fedbuff", |job| {
            (job.rounds.late, job.rounds.staleness_max) = (Some(Late::Keep), Some(10));
            job.aggregation.strategy = Strategy::Fedbuff;
        }),
        ("excluded", |job| {
            job.aggregation.exclude = Patterns::new(["classifier.*", "*.bn[0-3].?"]).expect("patterns");
            job.evaluation.by = Evaluator::Sites;
        }),
        ("sent", |job| {
            (job.updates.compression, job.updates.top_k) = (job::Compression::TopK, Some(0.25));
            job.updates.download = Download::Whole;
        }),
    ]
}

fn recipe() -> String {
    let tensor = |name: &str, source| ExportTensor { name: name.into(), source };
    let recipe = ExportRecipe {
        config_json: r#"{"model_type": "bert"}"#.into(),
        adapter_config_json: Some("{}".into()),
        tensors: vec![
            tensor("a", TensorSource::State("t0".into())),
            tensor("b", TensorSource::Base("bert.embeddings".into())),
        ],
    };
    serde_json::to_string(&recipe).expect("plain text")
}

fn texts(corpus: &Corpus) {
    for name in ["server", "site", "job"] {
        // Without the comments, which say all that can be set.
        let text = String::from_utf8(read(&format!("config/examples/{name}.toml"))).expect("UTF-8");
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let code: Vec<&str> = lines.clone().filter(|line| !line.starts_with('#')).collect();
        let all = lines.map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line));
        let all: Vec<&str> = all.filter(|line| !line.starts_with('#')).collect();
        let target = format!("{name}_toml");
        corpus.put(&target, "example", code.join("\n"));
        corpus.put(&target, "every-field", all.join("\n"));
    }
    for kind in [
        TaskKind::MultiLabelClassification,
        TaskKind::TextRegression,
        TaskKind::TokenClassification,
        TaskKind::CausalLm,
        TaskKind::ImageClassification,
        TaskKind::TableRegression,
    ] {
        let job = Job::new("kind", Path::new("model"), Task::new(kind, vec!["a".into(), "b".into()]));
        corpus.put("job_toml", &format!("{kind:?}").to_lowercase(), job.to_toml());
    }
    corpus.put("job_toml", "canonical", job().to_toml());
    for (name, change) in changes() {
        let mut job = job();
        change(&mut job);
        let text = job.to_toml();
        let read: Result<Job, _> = fedtune_config::parse(Path::new(name), &text, std::iter::empty());
        read.unwrap_or_else(|e| panic!("{e}"));
        corpus.put("job_toml", name, text);
    }
    corpus.put(
        "server_toml",
        "environment",
        "[listen]\naddress = \"0.0.0.0:1\"\n\0LISTEN__ADDRESS=[::]:2\0LOG__LEVEL=3",
    );
    corpus.put("recipe", "adapters", recipe());
    corpus.put("names", "digest", Digest::of(b"").to_string());
    for codec in ["top-k:0.25", "none"] {
        corpus.put("names", codec, codec);
    }
    let rows: String = (0..40).map(|i| format!("\"note, {i}\",{},x\n", ["yes", "no"][i % 2])).collect();
    for way in [0, 2, 4] {
        corpus.put("partition", &format!("csv-{way}"), format!("{}text,label,ward\n{rows}", char::from(way)));
    }
    let rows: String = (0..40).map(|i| format!("{{\"text\":\"{i}\",\"label\":{}}}\n", i % 2)).collect();
    corpus.put("partition", "jsonl", format!("\u{1}{rows}"));
}

fn is_setting(text: &str) -> bool {
    let name = text.split(" = ").next().unwrap_or_default();
    text.contains(" = ") && !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

fn sums() -> Vec<v1::Evaluation> {
    let all = FORMS.into_iter().map(|form| {
        let mut sums = Evaluation::new(form);
        (sums.examples, sums.loss_sum) = (4, 2.5);
        match &mut sums.counts {
            Counts::Confusion(counts) => {
                counts[0] = 4;
                let labels = counts.len().isqrt();
                let mut sure = Probabilities::new(labels);
                for p in [0.999, 0.9, 0.6, 0.9] {
                    let mut row = vec![(1.0 - p) / (labels - 1) as f64; labels];
                    row[0] = p;
                    sure.add(&row, 0, 0);
                }
                sums.probabilities = Some(sure);
            }
            Counts::Sets(sets) => (sets.exact, sets.right[0], sets.predicted[0], sets.actual[0]) = (3, 1, 2, 2),
            Counts::Values(values) => {
                for (y, p) in [(1.0, 0.5), (2.0, 2.5), (-1.0, -1.0), (0.0, 0.5)] {
                    values.add(y, p);
                }
            }
            Counts::Tags(tags) => {
                tags.confusion[0] = 9;
                (tags.entities_right, tags.entities_predicted, tags.entities_actual) = (1, 2, 3);
            }
            Counts::Tokens(tokens) => (tokens.counted, tokens.right) = (9, 5),
        }
        v1::Evaluation::from(sums)
    });
    all.collect()
}

/// A classifier's sums as programs wrote them before there were probabilities, and of rows that are not all right.
fn other_sums() -> [v1::Evaluation; 2] {
    let mut plain = Evaluation::new(Form::Classes(2));
    (plain.examples, plain.loss_sum, plain.counts) = (3, 0.5, Counts::Confusion(vec![1, 1, 0, 1]));
    let mut sure = Probabilities::new(2);
    for (p, truth) in [(0.9, 1), (0.2, 0), (0.7, 0)] {
        sure.add(&[1.0 - p, p], usize::from(p > 0.5), truth);
    }
    let mixed = Evaluation { probabilities: Some(sure), ..plain.clone() };
    [plain.into(), mixed.into()]
}

fn evaluations(corpus: &Corpus) {
    for (form, sums) in sums().into_iter().enumerate() {
        corpus.put("evaluation", &form.to_string(), [&[form as u8], &sums.encode_to_vec()[..]].concat());
    }
    for (name, sums) in ["plain", "mixed"].into_iter().zip(other_sums()) {
        corpus.put("evaluation", name, [&[0], &sums.encode_to_vec()[..]].concat());
    }
}

fn artifact() -> ArtifactRef {
    ArtifactRef { digest: Digest::of(b"bytes"), size: 5 }
}

fn messages(corpus: &Corpus) {
    let put = |kind: u8, name: &str, message: Vec<u8>| corpus.put("messages", name, [&[kind], &message[..]].concat());
    let label_counts = vec![v1::LabelCount { label: "yes".into(), examples: 3 }];
    let capabilities = v1::Capabilities { device: "cpu".into(), memory_bytes: 1 << 30, label_counts };
    let (protocol, program) = (Some(version::PROTOCOL), "fedtune-client 0.1.0".to_owned());
    let opened = v1::OpenSessionRequest { protocol, program, capabilities: Some(capabilities) };
    put(0, "open-session", opened.encode_to_vec());
    let id = v1::TaskId { job: "job".into(), round: 1, attempt: 1, kind: 2 };
    let (wire, scored) = (Some(v1::Artifact::from(artifact())), sums().into_iter().next());
    let outcomes = [
        v1::report_result_request::Outcome::Initialized(v1::Initialized { state: wire.clone(), recipe_json: recipe() }),
        v1::report_result_request::Outcome::Trained(v1::Trained {
            update: wire.clone(),
            examples: 10,
            train_loss: 0.5,
            train_seconds: 2.0,
            relative_error: 0.1,
        }),
        v1::report_result_request::Outcome::Evaluated(v1::EvaluatedState { evaluation: scored }),
        v1::report_result_request::Outcome::Failed(v1::Failed { reason: "no data".into(), refused: true }),
    ];
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let (task, outcome) = (Some(id.clone()), Some(outcome));
        let result = v1::ReportResultRequest { task, outcome, bytes_down: 7, bytes_up: 9 };
        put(1, &format!("result-{number}"), result.encode_to_vec());
    }
    let base_model = vec![v1::ModelFile { name: "config.json".into(), artifact: wire.clone() }];
    let submitted = v1::SubmitJobRequest { protocol, job_text: job().to_toml(), base_model: base_model.clone() };
    put(2, "submit-job", submitted.encode_to_vec());
    let task = v1::Task {
        difference: Some(v1::Difference { artifact: wire.clone(), before: wire.clone() }),
        id: Some(id),
        job_text: job().to_toml(),
        job_digest: Digest::of(job().to_toml().as_bytes()).to_string(),
        base_model,
        state: wire.clone(),
        learning_rate_factor: 0.5,
    };
    put(3, "task", task.encode_to_vec());
    let directive = v1::Directive { kind: Some(v1::directive::Kind::Task(task)) };
    put(10, "directive", directive.encode_to_vec());
    let header = v1::UploadHeader { artifact: wire, offset: 5 };
    let upload = v1::UploadRequest { part: Some(v1::upload_request::Part::Header(header)) };
    put(8, "upload", upload.encode_to_vec());
}

/// Of an authority that nobody trusts, made here and now.
fn keys(corpus: &Corpus) {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::create(folder.path()).expect("a fresh folder");
    let identity = Identity::new(Role::Site, "north").expect("sound");
    let bundle = folder.path().join("bundle");
    authority.issue_bundle(&identity, &bundle).expect("a fresh folder");
    let read = |path: &Path| fs::read(path).expect("just written");
    let [ca, ca_key] = ["ca.pem", "ca-key.pem"].map(|name| read(&folder.path().join(name)));
    let [site, site_key] = ["site.pem", "site-key.pem"].map(|name| read(&bundle.join(name)));
    corpus.put("authority", "authority", [&ca[..], &ca_key].join(&0));
    corpus.put("credentials", "bundle", [&ca[..], &site, &site_key].join(&0));
    for (name, pem) in [("site", site), ("authority", ca)] {
        let pem = CertificateDer::from_pem_slice(&pem).expect("PEM");
        corpus.put("certificate", name, &pem);
    }
    corpus.put("certificate", "name", identity.to_string());
}

fn records(corpus: &Corpus) {
    let put = |kind: u8, name: &str, text: String| corpus.put("records", name, [&[kind], text.as_bytes()].concat());
    let json = |value: &Machine| serde_json::to_string(value).expect("plain text");
    let mut machine = Machine::new(Plan::of(&job()));
    put(0, "new", json(&machine));
    let sites = BTreeMap::from([("north".to_owned(), SiteShare::new(artifact(), 10, 1.5))]);
    let mut evaluations: BTreeMap<String, Evaluation> =
        FORMS.into_iter().enumerate().map(|(place, form)| (place.to_string(), Evaluation::new(form))).collect();
    let sure = other_sums().map(|sums| Evaluation::checked(sums, Form::Classes(2), 9).expect("sound"));
    evaluations.extend(["plain", "sure"].map(str::to_owned).into_iter().zip(sure));
    let record = RoundRecord {
        round: 1,
        attempt: 1,
        opened_ms: 1,
        base: Some(artifact()),
        undone: 0,
        from: Some(1),
        state: artifact(),
        moments: vec![artifact()],
        difference: Some(artifact()),
        shares: BTreeMap::from([("north".to_owned(), Some(1.0)), ("south".to_owned(), None)]),
        sites,
        problems: BTreeMap::from([("south".to_owned(), "silent".to_owned())]),
        flags: BTreeMap::new(),
        evaluations,
        aggregate_seconds: 0.5,
        wall_seconds: 2.0,
    };
    put(1, "round", serde_json::to_string(&record).expect("plain text"));
    machine.phase = Phase::Evaluating { record: Box::new(record), sites: BTreeMap::new(), since_ms: 3 };
    put(0, "evaluating", json(&machine));
    let turn = Turn { work: Work::Train, round: 3, attempt: 0 };
    let late = round::Late { turn, began: 2, state: artifact(), answer: Trainee::Working(5) };
    machine.late.insert("south".to_owned(), late);
    put(0, "late", json(&machine));
    let base = vec![BaseFile { name: "config.json".into(), artifact: artifact() }];
    put(2, "base", serde_json::to_string(&base).expect("plain text"));
}

fn data(corpus: &Corpus) {
    let kinds = [
        ("text,label", ["a cough,alpha", "\"x, \"\"y\"\"\",beta", "a cough,alpha"]),
        ("text,labels", ["a cough,alpha|beta", "fever,", "pain,gamma"]),
        ("text,label", ["a cough,1.5", "fever,-2e3", "pain,nan"]),
        ("age,pain,label", ["50,some,alpha", ",none,beta", "1e3,strong,gamma"]),
        ("prompt,response", ["why,so", "what,\"a\nb\"", "x,"]),
    ];
    for (kind, (header, rows)) in kinds.into_iter().enumerate() {
        let text = format!("{header}\n{}\n", rows.join("\n"));
        corpus.put("csv", &kind.to_string(), format!("{}{text}", char::from(kind as u8)));
    }
    let kinds = [
        json!({"text": "a cough", "label": "alpha"}),
        json!({"text": "a cough", "labels": ["alpha", "beta"]}),
        json!({"text": "a cough", "label": 1.5}),
        json!({"age": 50, "pain": "some", "label": "alpha"}),
        json!({"prompt": "why", "response": "so"}),
        json!({"tokens": ["a", "cough"], "labels": ["alpha", "beta"]}),
    ];
    for (kind, row) in kinds.into_iter().enumerate() {
        let text = format!("{}{row}\n{row}\n{{\"text\": \"\\u00e9\"}}\n", char::from(kind as u8));
        corpus.put("jsonl", &kind.to_string(), text);
    }
    let picture = picture();
    for (name, compression, dictionary) in [
        ("plain", Compression::UNCOMPRESSED, false),
        ("snappy", Compression::SNAPPY, true),
        ("zstd", Compression::ZSTD(ZstdLevel::default()), true),
    ] {
        for (kind, content) in [(0, &b"a cough"[..]), (6, &picture[..])] {
            let bytes = table(kind, content, compression, dictionary);
            corpus.put("parquet", &format!("{name}-{kind}"), [&[kind], &bytes[..]].concat());
        }
        let bytes = table(3, b"some", compression, dictionary);
        corpus.put("parquet", &format!("{name}-3"), [&[3], &bytes[..]].concat());
    }
}

fn table(kind: u8, content: &[u8], compression: Compression, dictionary: bool) -> Vec<u8> {
    let (name, kind) = match kind {
        0 => ("text", "(STRING)"),
        3 => ("pain", "(STRING)"),
        _ => ("image", ""),
    };
    let schema = format!(
        "message rows {{ optional binary {name} {kind}; optional binary label (STRING); optional double age; }}"
    );
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let properties = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary);
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).expect("in memory");
    let mut part = writer.next_row_group().expect("in memory");
    for values in [[content, content], [&b"alpha"[..], b"beta"]] {
        let mut column = part.next_column().expect("in memory").expect("a column");
        let values = values.map(|bytes| ByteArray::from(bytes.to_vec()));
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1, 1, 0]), None).expect("in memory");
        column.close().expect("in memory");
    }
    let mut column = part.next_column().expect("in memory").expect("a column");
    column.typed::<DoubleType>().write_batch(&[50.0, 61.5], Some(&[1, 0, 1]), None).expect("in memory");
    column.close().expect("in memory");
    part.close().expect("in memory");
    writer.into_inner().expect("in memory")
}

fn pillow() -> Value {
    serde_json::from_slice(&read("client/tests/images/pillow.json")).expect("JSON")
}

fn hex(value: &Value) -> Vec<u8> {
    let hex = value.as_str().expect("hex");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

fn picture() -> Vec<u8> {
    let cases = pillow();
    let encoded = cases["decode"].as_array().expect("cases").iter().map(|case| hex(&case["encoded"]));
    encoded.min_by_key(Vec::len).expect("a case")
}

fn images(corpus: &Corpus) {
    let cases = pillow();
    for (number, case) in cases["decode"].as_array().expect("cases").iter().enumerate() {
        corpus.put("picture", &number.to_string(), hex(&case["encoded"]));
    }
    for (number, case) in cases["prepare"].as_array().expect("cases").iter().enumerate() {
        corpus.put("preprocessor", &number.to_string(), case["config"].to_string());
    }
}

fn models(corpus: &Corpus) {
    for folder in fs::read_dir(repository().join("tests/fixtures")).expect("fixtures") {
        let folder = folder.expect("fixtures").path();
        if let Ok(config) = fs::read(folder.join("config.json")) {
            let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
            corpus.put("model_config", &name, config);
        }
    }
    let model = read("tests/fixtures/table-class/model.safetensors");
    for kind in 0..4 {
        corpus.put("tensors", &kind.to_string(), [&[kind], &model[..]].concat());
    }
    let lora = "tests/fixtures/bert/lora";
    let config = read(&format!("{lora}/adapter_config.json"));
    let tensors = read(&format!("{lora}/adapter_model.safetensors"));
    let length = (config.len() as u16).to_le_bytes();
    corpus.put("adapters", "bert", [&length, &config[..], &tensors].concat());
    let checkpoint = fuzz::client::trained(None);
    assert!(!checkpoint.is_empty(), "no checkpoint was written");
    corpus.put("checkpoint", "first", checkpoint);
    for (name, tokenizer) in tokenizers() {
        corpus.put("tokenizer", name, tokenizer.to_string());
    }
}

/// One of each kind of model, over a few words.
fn tokenizers() -> Vec<(&'static str, Value)> {
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added = json!([special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")]);
    let part = |name: &str, id: usize| {
        json!({name: {"id": if name == "Sequence" { "AB" } else { "[CLS][SEP]" }
        .get(if name == "Sequence" { id..id + 1 } else { 5 * id..5 * id + 5 }), "type_id": 0}})
    };
    let template = json!({"type": "TemplateProcessing",
        "single": [part("SpecialToken", 0), part("Sequence", 0), part("SpecialToken", 1)],
        "pair": [part("Sequence", 0), part("Sequence", 1)],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                           "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}});
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", "##5", "w5", "6", "mg", "."];
    let vocabulary = |words: &[&str]| words.iter().zip(0..).map(|(w, id)| ((*w).to_owned(), json!(id))).collect();
    let known: serde_json::Map<String, Value> = vocabulary(&words);
    let bytes: serde_json::Map<String, Value> =
        vocabulary(&["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", "5", "w5", "\u{120}"]);
    let pieces: Vec<Value> = ["[UNK]", "\u{2581}w", "5", "m", "g"].iter().map(|piece| json!([piece, -1.5])).collect();
    let whole = |normalizer: Value, pre: Value, post: Value, model: Value| {
        json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 12, "strategy": "LongestFirst",
               "stride": 0}, "padding": null, "added_tokens": added.clone(), "normalizer": normalizer,
               "pre_tokenizer": pre, "post_processor": post, "decoder": null, "model": model})
    };
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                      "strip_accents": null, "lowercase": true});
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    vec![
        (
            "word-piece",
            whole(
                bert,
                json!({"type": "BertPreTokenizer"}),
                template.clone(),
                json!({"type": "WordPiece",
                "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": known}),
            ),
        ),
        (
            "byte-level",
            whole(
                json!({"type": "NFC"}),
                split,
                json!({"type": "ByteLevel", "add_prefix_space": true,
                "trim_offsets": false, "use_regex": true}),
                json!({"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": false, "vocab": bytes, "merges": [["w", "5"]]}),
            ),
        ),
        (
            "unigram",
            whole(
                json!({"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "x"},
                "content": "y"}, {"type": "Lowercase"}]}),
                json!({"type": "Metaspace", "replacement": "\u{2581}",
                "prepend_scheme": "always", "split": true}),
                Value::Null,
                json!({"type": "Unigram", "unk_id": 0,
                "vocab": pieces, "byte_fallback": false}),
            ),
        ),
        (
            "words",
            whole(
                Value::Null,
                json!({"type": "Whitespace"}),
                template,
                json!({"type": "WordLevel", "vocab": known, "unk_token": "[UNK]"}),
            ),
        ),
    ]
}
