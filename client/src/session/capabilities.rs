//! What the site tells of itself; label counts only where its policy allows it.

use std::collections::BTreeMap;

use fedtune_config::job::{Task, TaskKind};
use fedtune_config::site::{DeviceKind, Duplicates};
use fedtune_proto::v1::{Capabilities, LabelCount};

use super::work::Site;
use crate::data::{self, Columns, DataError, TargetReader};

pub(super) fn of(site: &Site) -> Result<Capabilities, DataError> {
    let device = match site.config.device.kind {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Cuda => "cuda",
    };
    let mut label_counts = Vec::new();
    if let (true, Some(train)) = (site.config.policy.share_label_counts, &site.config.data.train) {
        let image = site.config.data.image_column.as_deref().unwrap_or("image");
        let images = data::holds_images(train, image)?;
        let kind = if images { TaskKind::ImageClassification } else { TaskKind::TextClassification };
        let mut task = Task::new(kind, Vec::new());
        let columns = Columns::of(&task, &(&site.config.data).into());
        task.labels = data::labels_in(train, &columns, &task)?;
        let (mut rows, mut report) = data::read(train, &columns, &TargetReader::new(&task, &BTreeMap::new())?)?;
        let labels = task.labels;
        if site.config.data.duplicates == Duplicates::Remove {
            rows = report.remove_duplicates(&rows);
        }
        let mut counts = vec![0; labels.len()];
        rows.labels().for_each(|label| counts[label] += 1);
        // The job's names, where the site maps its own to them.
        let job_name = |label: String| site.config.data.labels.get(&label).cloned().unwrap_or(label);
        label_counts = labels
            .into_iter()
            .zip(counts)
            .map(|(label, examples)| LabelCount { label: job_name(label), examples })
            .collect();
    }
    Ok(Capabilities { device: device.into(), memory_bytes: memory_bytes().unwrap_or(0), label_counts })
}

/// The machine's memory, where the system tells it.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}
