//! What the site tells of itself; label counts only where its policy allows it.

use std::collections::BTreeMap;
use std::path::Path;

use fedtune_config::job::{Task, TaskKind};
use fedtune_config::site::{Data, DeviceKind, Duplicates};
use fedtune_proto::v1::{Capabilities, LabelCount};

use super::work::Site;
use crate::data::{self, CellColumn, CellKind, Columns, DataError, TargetReader};

pub(super) fn of(site: &Site) -> Result<Capabilities, DataError> {
    let device = match site.config.device.kind {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Cuda => "cuda",
    };
    let mut label_counts = Vec::new();
    if let (true, Some(train)) = (site.config.policy.share_label_counts, &site.config.data.train) {
        let mut task = Task::new(kind(&site.config.data, train)?, Vec::new());
        let mut columns = Columns::of(&task, &(&site.config.data).into());
        let remove = site.config.data.duplicates == Duplicates::Remove;
        let all_cells = match columns.is_table() {
            true => {
                let cells = remove.then(|| whole(&columns, train)).transpose().ok().flatten();
                columns = columns.taking([].into());
                cells
            }
            false => None,
        };
        task.labels = data::labels_in(train, &columns, &task)?;
        let targets = TargetReader::new(&task, &BTreeMap::new())?;
        let (mut rows, mut report) = data::read(train, &columns, &targets)?;
        // Which rows of a table repeat can be told only where all its cells can be read.
        let cells = all_cells.and_then(|columns| data::read(train, &columns, &targets).ok());
        let cells = cells.filter(|(_, found)| found.used == report.used);
        let repeats_known = cells.is_some() || !columns.is_table();
        if let Some(found) = cells {
            (rows, report) = found;
        }
        let labels = task.labels;
        if remove && repeats_known {
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

/// What kind of rows a training file has, as far as that matters for counting them. No job is known yet.
fn kind(data: &Data, train: &Path) -> Result<TaskKind, DataError> {
    if data::holds_images(train, data.image_column.as_deref().unwrap_or("image"))? {
        return Ok(TaskKind::ImageClassification);
    }
    let is_text = data.text_column.is_some() || data::column_names(train)?.iter().any(|name| name == "text");
    Ok(if is_text { TaskKind::TextClassification } else { TaskKind::TableClassification })
}

/// Rows of a table by all their cells, since the columns that a model takes are not known yet.
fn whole(columns: &Columns, train: &Path) -> Result<Columns, DataError> {
    let label = columns.label.as_ref().map(|label| label.name.clone());
    let names = data::column_names(train)?.into_iter().filter(|name| !name.is_empty() && Some(name) != label.as_ref());
    let cell = |name: String| CellColumn { name, kind: CellKind::Word { known: Vec::new() } };
    Ok(columns.clone().taking(names.map(cell).collect()))
}

/// The machine's memory, where the system tells it.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn labels_of_tables_are_counted_before_a_model_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let train = folder.path().join("train.csv");
        let text = "age,label\n1,ill\n2,well\n2.0,well\n2,well\n3,ill\n";
        let count = |rows: &str, duplicates: &str| {
            std::fs::write(&train, rows).unwrap();
            let site = format!(
                "[aggregator]\naddress = \"https://a:1\"\nbundle = \"b\"\n[data]\ntrain = {train:?}\n\
                 duplicates = \"{duplicates}\"\n[data.labels]\nill = \"sick\"\n[policy]\nshare_label_counts = true\n"
            );
            let config = fedtune_config::parse("site.toml".as_ref(), &site, std::iter::empty()).unwrap();
            let found = of(&Site { config, device: candle_core::Device::Cpu }).unwrap().label_counts;
            found.into_iter().map(|count| (count.label, count.examples)).collect::<Vec<_>>()
        };
        let expected = |ill, well| vec![("sick".to_owned(), ill), ("well".to_owned(), well)];
        assert_eq!(count(text, "keep"), expected(2, 3));
        assert_eq!(count(text, "remove"), expected(2, 1));
        // Columns that no model could take stand in nobody's way; then repeats are not known.
        let long = "x".repeat(5000);
        let odd = format!("age, ,notes|,label\n1,a,{long},ill\n1,a,{long},ill\n2,b,c,well\n");
        assert_eq!(count(&odd, "remove"), expected(2, 1));
        assert_eq!(count("text,label\na,ill\nb,well\nA,ill\n", "remove"), expected(1, 1));
    }
}
