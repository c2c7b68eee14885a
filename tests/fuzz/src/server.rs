//! What the aggregator reads: bytes of sites, certificates, its own records.

use std::sync::LazyLock;

use fedtune_config::job::Patterns;
use fedtune_proto::layout::Layout;
use fedtune_server::aggregate::{Bounds, check_state, check_update, decode};
use fedtune_server::pki::{Authority, Identity, Role};
use fedtune_server::round::{Machine, RoundRecord};
use fedtune_server::simulate::partition::{Partition, Table};
use fedtune_server::store::Artifacts;
use fedtune_server::store::artifacts::Writer;
use fedtune_server::store::records::BaseFile;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use super::{choice, folder};

/// A peer's certificate (DER), and the names in certificates.
pub fn certificate(data: &[u8]) {
    let named = std::str::from_utf8(data).ok().and_then(|text| text.parse().ok());
    for identity in [Identity::of_certificate(data), named].into_iter().flatten() {
        assert_eq!(identity.to_string().parse::<Identity>().expect("its own name"), identity);
    }
}

/// The authority's files, parted by a NUL byte. An authority that opens can issue a bundle.
pub fn authority(data: &[u8]) {
    let files = folder(["ca.pem", "ca-key.pem"].into_iter().zip(data.split(|byte| *byte == 0)));
    let Ok(authority) = Authority::open(files.path()) else { return };
    let site = Identity::new(Role::Site, "north").expect("sound");
    let _ = authority.issue_bundle(&site, &files.path().join("bundle"));
    let _ = authority.issue_server(&["localhost".to_owned()]);
}

/// What a site uploads, as it is stored. The first byte chooses what it is to be: a first state, an update, or a container.
pub fn update(data: &[u8]) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
    let Some((codec, bytes)) = choice(data, 7) else { return };
    let store = folder([]);
    let artifacts = Artifacts::open(store.path()).expect("a folder of our own");
    RUNTIME.block_on(async {
        let put = |name: &'static str, bytes: Vec<u8>| {
            let artifacts = artifacts.clone();
            async move {
                let mut writer = Writer::create(&artifacts, name).await.expect("a folder of our own");
                writer.append(bytes.into()).await.expect("a folder of our own");
                writer.finish(&artifacts).await.expect("a folder of our own")
            }
        };
        let layout = Layout::of_tensors([("w".to_owned(), "F32".to_owned(), vec![5, 2])]).expect("small");
        let mut file = layout.header();
        file.resize(layout.file_bytes as usize, 0);
        let (state, sent) = (put("state", file).await, put("sent", bytes.to_vec()).await);
        let codecs = ["none", "f16", "int8", "int4", "top-k"];
        let update = match codec.checked_sub(2).and_then(|place| codecs.get(place)) {
            None if codec == 0 => {
                let _ = check_state(&artifacts, sent).await;
                return;
            }
            None => Ok(sent),
            Some(codec) => decode(&artifacts, state, sent, codec.parse().expect("a codec"), "decoded").await,
        };
        let bounds = Bounds { examples: 10, norm: 1e6, excluded: Patterns::default() };
        if let Ok(update) = update
            && let Ok(norm) = check_update(&artifacts, state, update, 1, &bounds).await
        {
            assert!((0.0..=bounds.norm).contains(&norm));
        }
    });
}

/// Records. The first byte chooses which.
pub fn records(data: &[u8]) {
    let Some((kind, text)) = choice(data, 3) else { return };
    match kind {
        0 => drop(reread::<Machine>(text)),
        1 => {
            let Some(round) = reread::<RoundRecord>(text) else { return };
            if let Some(sums) = round.evaluation() {
                sums.measures();
                sums.per_label();
            }
        }
        _ => drop(reread::<Vec<BaseFile>>(text)),
    }
}

/// A record that reads back as it is written.
fn reread<T: Serialize + DeserializeOwned>(text: &[u8]) -> Option<T> {
    let record: T = serde_json::from_slice(text).ok()?;
    let text = serde_json::to_string(&record).expect("plain text");
    let again: T = serde_json::from_str(&text).expect("its own text");
    assert_eq!(serde_json::to_string(&again).expect("plain text"), text);
    Some(record)
}

/// A labelled file that `simulate` splits among sites. The first byte chooses its kind and how it is split.
pub fn partition(data: &[u8]) {
    let Some((way, text)) = choice(data, 6) else { return };
    let name = ["rows.csv", "rows.jsonl"][way % 2];
    let files = folder([(name, text)]);
    let Ok(table) = Table::read(&files.path().join(name), Some("label")) else { return };
    let _ = table.labels();
    let partition = [Partition::Iid, Partition::Dirichlet(0.5), Partition::Column("label".into())][way / 2].clone();
    let Ok(shards) = partition.split(&table, None, 1) else { return };
    for shard in &shards {
        shard.describe(&table);
        table.write(shard, &files.path().join("shard")).expect("a folder of our own");
    }
}
