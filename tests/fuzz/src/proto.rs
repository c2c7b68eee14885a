//! What both programs read of each other.

use std::sync::LazyLock;
use std::time::Duration;

use fedtune_proto::channel::{ChannelError, Credentials};
use fedtune_proto::delta::{self as container, Codec, Encoder, Rounding, wire_bytes_max};
use fedtune_proto::difference as change;
use fedtune_proto::digest::{ArtifactRef, Digest};
use fedtune_proto::evaluation::{Evaluation, Form};
use fedtune_proto::layout::Layout;
use fedtune_proto::recipe::ExportRecipe;
use fedtune_proto::{v1, version};
use prost::Message;
use tokio::runtime::Runtime;

use super::{choice, folder};

/// Bytes before the first frame of a container.
pub const PREAMBLE: usize = 57;

/// How updates are encoded.
pub const CODECS: [Codec; 6] = [
    Codec::None,
    Codec::F16,
    Codec::Int8,
    Codec::Int4,
    Codec::TopK { share: Codec::SHARE },
    Codec::TopK { share: 1.0 },
];

/// States: of less than a frame in all, of blocks that are not full, and of more than a frame in one tensor.
pub static STATES: LazyLock<[Layout; 3]> = LazyLock::new(|| {
    let state = |shapes: &[&[u64]]| {
        let named = |(place, shape): (usize, &&[u64])| (format!("t{place}"), "F32".to_owned(), shape.to_vec());
        Layout::of_tensors(shapes.iter().enumerate().map(named)).expect("small")
    };
    [state(&[&[3], &[], &[0], &[2, 5]]), state(&[&[300], &[7, 10]]), state(&[&[66_000], &[40]])]
});

/// The first bytes of a container, by state and codec.
static PREAMBLES: LazyLock<Vec<Vec<Vec<u8>>>> = LazyLock::new(|| {
    let preamble = |state: &Layout, codec| {
        let mut update = state.header();
        update.resize(state.file_bytes as usize, 0);
        let mut bytes = Vec::new();
        let encoder = Encoder::new(state, codec, Rounding::Nearest);
        encoder.encode(&update[..], &mut bytes).expect("zeros");
        bytes.truncate(PREAMBLE);
        bytes
    };
    STATES.iter().map(|state| CODECS.iter().map(|codec| preamble(state, *codec)).collect()).collect()
});

/// The header of a safetensors file, behind four bytes that say how many bytes the tensors have.
pub fn layout(data: &[u8]) {
    let Some((size, header)) = data.split_first_chunk() else { return };
    let file_bytes = 8 + header.len() as u64 + u64::from(u32::from_le_bytes(*size));
    let Ok(found) = Layout::parse(header, file_bytes) else { return };
    assert_eq!(found.file_bytes, file_bytes);
    assert_eq!(found.same_tensors(&found), Ok(()));
    let tensors = found.tensors.iter().map(|t| (t.name.clone(), t.dtype.clone(), t.shape.clone()));
    let ours = Layout::of_tensors(tensors).expect("they fit a file");
    assert_eq!(Layout::parse(&ours.header()[8..], ours.file_bytes).as_ref(), Ok(&ours));
    assert_eq!(found.same_tensors(&ours), Ok(()));
}

/// A container of an update. The first two bytes choose its codec, its state and whether the preamble is among the rest.
pub fn delta(data: &[u8]) {
    let Some((way, rest)) = choice(data, 2 * CODECS.len()) else { return };
    let Some((state, rest)) = choice(rest, STATES.len()) else { return };
    let (number, whole) = (way % CODECS.len(), way >= CODECS.len());
    let (codec, layout) = (CODECS[number], &STATES[state]);
    let preamble: &[u8] = if whole { &[] } else { &PREAMBLES[state][number] };
    let mut update = Vec::new();
    let Ok(decoded) = container::decode(&[preamble, rest].concat()[..], layout, codec, &mut update) else { return };
    assert!(decoded.bytes_in <= wire_bytes_max(layout, codec));
    assert_eq!(update.len() as u64, layout.file_bytes);
    let values = update[layout.data_start as usize..].as_chunks().0;
    assert!(values.iter().all(|value| f32::from_le_bytes(*value).is_finite()));
}

/// How many bytes the states have whose difference is read: none, less than a word, some words and a part of one, and more
/// than a frame.
pub const SIZES: [usize; 4] = [0, 3, 41, 4 * 65_536 + 6];

/// A state of so many bytes, as one before.
pub fn before(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 31 % 251) as u8).collect()
}

/// The difference of two states. The first byte chooses their size and whether the preamble is among the rest; or that the
/// rest are two states.
pub fn difference(data: &[u8]) {
    let Some((way, rest)) = choice(data, 2 * SIZES.len() + 1) else { return };
    let Some(size) = SIZES.get(way % SIZES.len()).copied().filter(|_| way < 2 * SIZES.len()) else {
        let (before, next) = rest.split_at(rest.len() / 2);
        return again(before, &next[..before.len()]);
    };
    let before = before(size);
    let mut container = Vec::new();
    if way < SIZES.len() {
        container.extend_from_slice(b"ftstate\x01");
        container.extend_from_slice(&(size as u64).to_le_bytes());
    }
    container.extend_from_slice(rest);
    let mut next = Vec::new();
    let Ok(read) = change::decode(&container[..], &before[..], size as u64, &mut next) else { return };
    assert_eq!((read, next.len()), (container.len() as u64, size));
    again(&before, &next);
}

/// A difference makes the next state of the one before, and something as long of another one.
fn again(before: &[u8], next: &[u8]) {
    let (size, mut container, mut made) = (before.len() as u64, Vec::new(), Vec::new());
    let written = change::encode(before, next, size, &mut container).expect("two states of a size");
    assert_eq!(written, container.len() as u64);
    let read = change::decode(&container[..], before, size, &mut made).expect("its own container");
    assert_eq!((read, &made[..]), (written, next));
    made.clear();
    change::decode(&container[..], next, size, &mut made).expect("a state of its size");
    assert_eq!(made.len(), next.len());
}

/// The values of an update and of what earlier ones lost, or their whole files, as a site encodes them.
pub fn residual(data: &[u8]) {
    let Some((way, rest)) = choice(data, 2 * CODECS.len()) else { return };
    let (codec, whole) = (CODECS[way % CODECS.len()], way >= CODECS.len());
    let layout = &STATES[0];
    let (update, earlier) = rest.split_at(rest.len() / 2);
    let header = if whole { Vec::new() } else { layout.header() };
    let (update, earlier) = ([&header, update].concat(), [&header, earlier].concat());
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: [7; 32] }] {
        let (mut sent, mut lost, mut earlier) = (Vec::new(), Vec::new(), &earlier[..]);
        let encoder = Encoder::new(layout, codec, rounding).earlier(&mut earlier).residual_to(&mut lost);
        let Ok(encoded) = encoder.encode(&update[..], &mut sent) else { return };
        assert_eq!(encoded.bytes_out, sent.len() as u64);
        let mut update = Vec::new();
        container::decode(&sent[..], layout, codec, &mut update).expect("its own container");
        assert_eq!((update.len() as u64, lost.len() as u64), (layout.file_bytes, layout.file_bytes));
    }
}

/// The text of an export recipe.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(recipe) = ExportRecipe::checked(text, &STATES[0]) else { return };
    let text = serde_json::to_string(&recipe).expect("plain text");
    assert_eq!(ExportRecipe::checked(&text, &STATES[0]), Ok(recipe));
}

/// What is counted.
pub const FORMS: [Form; 8] = [
    Form::Classes(2),
    Form::Classes(3),
    Form::Sets(1),
    Form::Sets(3),
    Form::Values,
    Form::Tags(2),
    Form::Tags(3),
    Form::NextToken,
];

/// The sums of an evaluation as a message. The first byte chooses what was counted.
pub fn evaluation(data: &[u8]) {
    let Some((form, rest)) = choice(data, FORMS.len()) else { return };
    if let Ok(wire) = v1::Evaluation::decode(rest) {
        sums(wire, FORMS[form]);
    }
}

fn sums(wire: v1::Evaluation, form: Form) {
    let Ok(found) = Evaluation::checked(wire, form, 1 << 40) else { return };
    let mut both = Evaluation::new(form);
    for _ in 0..2 {
        assert!(both.merge(&found));
    }
    for sums in [&found, &both] {
        assert!(sums.measures().iter().all(|(_, value)| value.is_finite()));
        for name in ["accuracy", "macro_f1", "micro_f1", "entity_f1", "exact_match"] {
            assert!(sums.measure(name).is_none_or(|share| (0.0..=1.0).contains(&share)), "{name}: {sums:?}");
        }
        // These are quotients of sums of numbers that are no whole ones.
        for name in ["macro_auroc", "calibration_error"] {
            assert!(sums.measure(name).is_none_or(|share| (0.0..1.0 + 1e-6).contains(&share)), "{name}: {sums:?}");
        }
        sums.per_label();
    }
    // As it is recorded.
    let text = serde_json::to_string(&found).expect("numbers");
    assert_eq!(serde_json::from_str::<Evaluation>(&text).expect("its own text"), found);
    let again = Evaluation::checked(found.clone().into(), form, 1 << 40);
    assert_eq!(again.as_ref(), Ok(&found));
}

/// Names and numbers in texts: digests and codecs.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(codec) = text.parse::<Codec>() {
        assert_eq!(codec.to_string().parse(), Ok(codec));
    }
}

type Reread = fn(&[u8]);

macro_rules! reread {
    ($($name:ident)*) => { &[$(|data| {
        message::<v1::$name>(data);
    }),*] };
}

/// Every message that one of the programs receives.
const MESSAGES: &[Reread] = reread!(
    DownloadRequest DownloadChunk UploadStatusRequest UploadStatusResponse UploadRequest UploadResponse Directive
    HeartbeatRequest HeartbeatResponse ReportProgressRequest ReportProgressResponse ReportResultResponse
    SubmitJobResponse ListJobsRequest ListJobsResponse ShowJobRequest ShowJobResponse WatchJobRequest PauseJobRequest
    PauseJobResponse ResumeJobRequest ResumeJobResponse CancelJobRequest CancelJobResponse ListSitesRequest
    ListSitesResponse PlanExportRequest PlanExportResponse
);

/// What becomes of the messages that say more than their fields' types do.
const CHECKED: [Reread; 4] = [
    |data| {
        if let Some(opened) = message::<v1::OpenSessionRequest>(data) {
            let _ = version::check(&opened.program, opened.protocol).map_err(|refused| refused.to_string());
        }
    },
    |data| {
        let result = message::<v1::ReportResultRequest>(data);
        match result.and_then(|result| result.outcome) {
            Some(v1::report_result_request::Outcome::Initialized(first)) => {
                first.state.as_ref().map(artifact);
                recipe(first.recipe_json.as_bytes());
            }
            Some(v1::report_result_request::Outcome::Trained(trained)) => drop(trained.update.as_ref().map(artifact)),
            Some(v1::report_result_request::Outcome::Evaluated(scored)) => {
                FORMS.iter().for_each(|form| sums(scored.evaluation.clone().unwrap_or_default(), *form));
            }
            Some(v1::report_result_request::Outcome::Failed(_)) | None => {}
        }
    },
    |data| {
        if let Some(submitted) = message::<v1::SubmitJobRequest>(data) {
            submitted.base_model.iter().filter_map(|file| file.artifact.as_ref()).for_each(artifact);
            super::job_toml(submitted.job_text.as_bytes());
        }
    },
    |data| {
        if let Some(task) = message::<v1::Task>(data) {
            let change = task.difference.iter().flat_map(|change| [&change.artifact, &change.before]);
            change.chain([&task.state]).flatten().for_each(artifact);
            super::job_toml(task.job_text.as_bytes());
        }
    },
];

/// A protobuf message. The first byte chooses which.
pub fn messages(data: &[u8]) {
    let Some((kind, rest)) = choice(data, CHECKED.len() + MESSAGES.len()) else { return };
    CHECKED.iter().chain(MESSAGES).nth(kind).expect("one of them")(rest);
}

/// A message that reads back as it is written.
fn message<M: Message + Default>(data: &[u8]) -> Option<M> {
    let message = M::decode(data).ok()?;
    let bytes = message.encode_to_vec();
    // Not the messages, in which a NaN may stand.
    assert_eq!(M::decode(&bytes[..]).expect("its own bytes").encode_to_vec(), bytes);
    Some(message)
}

fn artifact(wire: &v1::Artifact) {
    if let Ok(artifact) = ArtifactRef::try_from(wire) {
        assert_eq!(v1::Artifact::from(artifact), *wire);
    }
}

/// The files of a bundle, parted by NUL bytes.
pub fn credentials(data: &[u8]) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names = ["ca.pem", "site.pem", "site-key.pem"];
    let files = folder(names.into_iter().zip(data.split(|byte| *byte == 0)));
    let Ok(credentials) = Credentials::read(files.path(), "site") else { return };
    // Nobody listens there: what matters is said before.
    let connected = RUNTIME.block_on(credentials.connect_within("https://127.0.0.1:1", Duration::from_secs(1)));
    assert!(matches!(connected, Err(ChannelError::Malformed { .. } | ChannelError::Connect { .. })));
}
