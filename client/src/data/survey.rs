//! What the columns of a table hold, so that a model can be made for them: one pass over the file, in memory that does not
//! grow with its rows.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::check::{NumberSummary, Numbers};
use super::columns::{CellColumn, CellKind, Columns, ContentColumns, LabelColumn, LabelForm};
use super::content::{Cell, Content};
use super::error::{DataError, Fault};
use super::report::DataReport;
use super::target::{RawLabel, TargetRef};
use super::{column_names, columns, scan};

/// Most words of a column; each becomes an input.
pub const MOST_WORDS: usize = 256;

/// A column with so many different numbers or fewer may be a category that has numbers for names.
const FEW: usize = 20;

/// What a person says of a table.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// The column with the label or number.
    pub label: &'a str,
    /// Whether it holds numbers.
    pub regression: bool,
    /// Columns that are left out.
    pub ignore: &'a [String],
    /// Columns whose numbers are names.
    pub categories: &'a [String],
}

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The columns that are not left out, in the order of the file.
    pub columns: Vec<Surveyed>,
    /// Columns without a name, which are left out too; programs write row numbers so.
    pub unnamed: usize,
    /// Mean and deviation of the numbers to be learnt, for a regression.
    pub target: Option<NumberSummary>,
    /// Which rows were used.
    pub report: DataReport,
}

/// A column of a table and what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Surveyed {
    /// Its name.
    pub name: String,
    /// Rows without a value.
    pub missing: u64,
    /// The values.
    pub values: Values,
}

/// The values of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Numbers.
    Numbers(NumberSummary),
    /// Words, sorted; at most [`MOST_WORDS`].
    Words(Vec<String>),
}

/// A column while it is read.
#[derive(Debug, Default)]
struct Reading {
    missing: u64,
    numbers: Numbers,
    /// How many values are numbers, and how many are not.
    counts: [u64; 2],
    /// The first value that is no finite number, with its line.
    other: Option<(u64, String)>,
    /// The first infinite number, with its line.
    infinite: Option<(u64, String)>,
    /// The first [`MOST_WORDS`] different values and one more.
    words: BTreeSet<Box<str>>,
}

impl Reading {
    fn add(&mut self, line: u64, cell: &Cell) {
        // Cells are read as words here.
        let Cell::Word(word) = cell else { return self.missing += 1 };
        match Cell::number(word) {
            Some(Cell::Number(number)) => {
                self.counts[0] += 1;
                self.numbers.add(number);
            }
            _ => {
                self.counts[1] += 1;
                let infinite = word.parse::<f64>().is_ok();
                let first = if infinite { &mut self.infinite } else { &mut self.other };
                first.get_or_insert_with(|| (line, word.to_string()));
            }
        }
        if self.words.len() <= MOST_WORDS && !self.words.contains(word) {
            self.words.insert(word.clone());
        }
    }

    fn values(self, path: &Path, name: &str, category: bool) -> Result<Values, DataError> {
        let wrong = |found: String, remedy: &'static str| {
            Err(DataError::TableColumn { path: path.into(), column: name.into(), found, remedy })
        };
        let [numbers, others] = self.counts;
        if numbers + others == 0 {
            return wrong("holds no value in any row".into(), "leave it out with --ignore");
        }
        let shown = |(line, found): &(u64, String)| {
            let found: String = found.chars().take(40).collect();
            format!("{found:?} on line {line}")
        };
        if !category {
            if let Some(summary) = self.numbers.summary().filter(|_| others == 0) {
                return Ok(Values::Numbers(summary));
            }
            if let Some(first) = &self.infinite {
                let remedy = "correct it, leave the column out with --ignore, or name it with --category";
                return wrong(format!("has {}, which is no finite number", shown(first)), remedy);
            }
            if let (true, Some(first)) = (numbers > others && self.words.len() > FEW, &self.other) {
                let remedy = "correct them, leave the column out with --ignore, or name it with --category";
                let found = format!("has {numbers} numbers and {others} values that are none, first {}", shown(first));
                return wrong(found, remedy);
            }
        }
        if self.words.len() > MOST_WORDS {
            let found = format!("has more than {MOST_WORDS} different values, each of which would be an input");
            return wrong(found, "leave it out with --ignore (is it free text, a name or a number of a row?)");
        }
        Ok(Values::Words(self.words.into_iter().map(String::from).collect()))
    }
}

/// Looks at every row of a table. Rows with a fault are passed over and reported.
///
/// # Errors
/// The file as a whole is unusable, a wish names a column that is not there, no row can be used, or a column holds what no
/// input can be made of.
pub fn survey(path: &Path, wishes: Wishes<'_>) -> Result<Survey, DataError> {
    let names = column_names(path)?;
    for name in wishes.ignore.iter().chain(wishes.categories) {
        columns::find(path, 1, &names, name, columns::WISH)?;
    }
    let left_out = |name: &String| name.is_empty() || name == wishes.label || wishes.ignore.contains(name);
    let unnamed = names.iter().filter(|name| name.is_empty()).count();
    let word = |name: String| CellColumn { name, kind: CellKind::Word { known: Vec::new() } };
    let cells: Arc<[CellColumn]> = names.into_iter().filter(|name| !left_out(name)).map(word).collect();
    let columns = Columns {
        content: ContentColumns::Cells(Arc::clone(&cells)),
        label: Some(LabelColumn { name: wishes.label.into(), form: LabelForm::One }),
        group: None,
    };
    let mut readings: Vec<Reading> = Vec::new();
    readings.resize_with(cells.len(), Reading::default);
    let mut target = Numbers::default();
    let mut report = DataReport::new(path);
    scan(path, &columns, &mut |line, row| {
        let row = row.and_then(|row| match (wishes.regression, row.label) {
            (false, _) => Ok(row.content),
            (true, Some(RawLabel::One(text))) => match text.parse::<f64>().ok().filter(|x| (*x as f32).is_finite()) {
                Some(value) => {
                    target.add(value);
                    Ok(row.content)
                }
                None => Err(Fault::NotANumber { found: text }),
            },
            (true, _) => Err(Fault::LabelForm),
        });
        match row {
            Ok(Content::Cells(found)) => {
                report.use_row(TargetRef::Set(&[]));
                readings.iter_mut().zip(&found).for_each(|(reading, cell)| reading.add(line, cell));
            }
            Ok(_) => report.fault(line, Fault::LabelForm),
            Err(fault) => report.fault(line, fault),
        }
    })?;
    if report.rows == 0 {
        return Err(DataError::NoRows { path: path.into() });
    }
    if report.used == 0 {
        return Err(DataError::NoUsableRow { path: path.into(), report: Box::new(report), labels: Vec::new() });
    }
    if cells.is_empty() {
        return Err(DataError::TableColumn {
            path: path.into(),
            column: wishes.label.into(),
            found: "is the only one that is left".into(),
            remedy: "give a file with columns beside the label, and leave out fewer",
        });
    }
    let surveyed = readings.into_iter().zip(cells.iter()).map(|(reading, column)| {
        let (name, missing) = (column.name.clone(), reading.missing);
        let values = reading.values(path, &name, wishes.categories.contains(&name))?;
        Ok(Surveyed { name, missing, values })
    });
    let columns = surveyed.collect::<Result<_, DataError>>()?;
    let target = target.summary().filter(|_| wishes.regression);
    if let Some(NumberSummary { least, sd: 0.0, .. }) = target {
        return Err(DataError::TableColumn {
            path: path.into(),
            column: wishes.label.into(),
            found: format!("is {least} in every row"),
            remedy: "there is nothing to learn; name the right column with --label",
        });
    }
    Ok(Survey { columns, unnamed, target, report })
}
