//! CSV by RFC 4180 with bounded memory: a cell above the limit is counted and not kept, however large it is.

use std::io::BufRead;
use std::path::Path;

use csv_core::{ReadFieldResult, Reader};
use serde_json::Value;

use super::columns::{self, Columns, ContentColumns};
use super::error::{DataError, Fault};
use super::raw::{self, RawRow};
use super::{MAX_CELL, MAX_COLUMNS, MAX_TEXT, Place};

/// Bytes of a column's name that are looked at.
const MAX_NAME: usize = 1024;

/// A cell, cut at a limit.
#[derive(Debug, Default)]
struct Cell {
    bytes: Vec<u8>,
    length: usize,
}

/// Where a byte stands in the quoting of RFC 4180.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quoting {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote inside a quoted field: the end of it, or the first of two.
    AfterQuote,
}

/// Reads records cell by cell.
struct Records<'a, R> {
    path: &'a Path,
    input: R,
    reader: Reader,
    line: u64,
    /// The byte of the file at which `input` stands.
    offset: u64,
    ended: bool,
    quoting: Quoting,
    /// Whether something else than a separator followed a closing quote of this record.
    misquoted: bool,
}

/// One record: where it begins, how many lines it takes, and how many cells it has.
struct Record {
    place: Place,
    lines: u64,
    cells: usize,
}

impl<'a, R: BufRead> Records<'a, R> {
    /// Records of `input`, which stands at a byte of the file.
    fn new(path: &'a Path, input: R, offset: u64) -> Self {
        Self {
            path,
            input,
            reader: Reader::new(),
            line: 1,
            offset,
            ended: false,
            quoting: Quoting::FieldStart,
            misquoted: false,
        }
    }

    fn fill(&mut self) -> Result<bool, DataError> {
        let path = self.path;
        self.input
            .fill_buf()
            .map(|buffer| !buffer.is_empty())
            .map_err(|source| DataError::Read { path: path.into(), source })
    }

    fn consume(&mut self, count: usize) -> Result<(), DataError> {
        let path = self.path;
        let buffer = self.input.fill_buf().map_err(|source| DataError::Read { path: path.into(), source })?;
        for byte in &buffer[..count] {
            self.line += u64::from(*byte == b'\n');
            self.quoting = match (self.quoting, byte) {
                (Quoting::Quoted, b'"') => Quoting::AfterQuote,
                (Quoting::Quoted, _) | (Quoting::AfterQuote | Quoting::FieldStart, b'"') => Quoting::Quoted,
                (_, b',' | b'\n' | b'\r') => Quoting::FieldStart,
                (Quoting::AfterQuote, _) => {
                    self.misquoted = true;
                    Quoting::Bare
                }
                (Quoting::Bare | Quoting::FieldStart, _) => Quoting::Bare,
            };
        }
        self.input.consume(count);
        self.offset += count as u64;
        Ok(())
    }

    /// Passes over blank lines, so that the line of the next record is known.
    fn skip_blank(&mut self) -> Result<bool, DataError> {
        while self.fill()? {
            let path = self.path;
            let buffer = self.input.fill_buf().map_err(|source| DataError::Read { path: path.into(), source })?;
            let blank = buffer.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
            let more = blank < buffer.len();
            self.consume(blank)?;
            if more {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next record; `keep` gives for each place the cell to fill and how many bytes to keep of it.
    fn next(
        &mut self,
        mut keep: impl FnMut(usize) -> Option<usize>,
        mut cell: impl FnMut(usize, &[u8]),
    ) -> Result<Option<Record>, DataError> {
        if self.ended || !self.skip_blank()? {
            return Ok(None);
        }
        let place = Place { line: self.line, start: self.offset };
        let line = place.line;
        self.misquoted = false;
        let mut cells = 0;
        let mut output = [0; 4096];
        let mut kept = 0;
        loop {
            let at_end = !self.fill()?;
            let (result, read, written) = if at_end {
                // A line end closes the record, unless a quote is open.
                self.ended = true;
                self.reader.read_field(b"\n", &mut output)
            } else {
                let path = self.path;
                let buffer = self.input.fill_buf().map_err(|source| DataError::Read { path: path.into(), source })?;
                self.reader.read_field(buffer, &mut output)
            };
            if let Some(limit) = keep(cells) {
                let more = written.min(limit.saturating_sub(kept));
                cell(cells, &output[..more]);
                kept += written;
            }
            if !at_end {
                self.consume(read)?;
            }
            match result {
                ReadFieldResult::InputEmpty if at_end => {
                    return Err(DataError::OpenQuote { path: self.path.into(), line, lines: self.line - line + 1 });
                }
                ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
                ReadFieldResult::Field { record_end } => {
                    cells += 1;
                    kept = 0;
                    if record_end {
                        // The line end that closes the record is read by now.
                        let lines = (self.line - line).max(1);
                        // A quote that is not closed runs on to the next row's opening quote, which then seems to
                        // close it in the middle of a cell. The rows between are hidden, so the file is refused.
                        if self.misquoted && lines > 1 {
                            return Err(DataError::OpenQuote { path: self.path.into(), line, lines });
                        }
                        return Ok(Some(Record { place, lines, cells }));
                    }
                }
                ReadFieldResult::End => return Ok(None),
            }
        }
    }
}

/// A row and where it begins.
type PlacedRow = (Place, Result<RawRow, Fault>);

/// What the header says: the number of cells, and what is read of them.
#[derive(Debug)]
pub(super) struct Layout {
    cells: usize,
    /// For each cell of a line, which of a row's values it is; mostly none or one.
    wanted: Vec<Vec<usize>>,
    /// How many values a row has.
    values: usize,
}

impl Layout {
    fn of(&self, place: usize) -> &[usize] {
        self.wanted.get(place).map_or(&[], Vec::as_slice)
    }
}

/// Calls `each` with every row; see [`super::scan`]. `input` stands at the byte `start` of the file.
pub(super) fn scan(
    path: &Path,
    input: impl BufRead,
    start: u64,
    columns: &Columns,
    each: &mut dyn FnMut(Place, Result<RawRow, Fault>),
) -> Result<Layout, DataError> {
    let mut records = Records::new(path, input, start);
    let (header, names) = records.header()?;
    let line = header.place.line;
    let named = columns.named();
    check_separator(path, line, &names, named.first().map(|(name, _)| *name))?;
    let mut layout = Layout { cells: header.cells, wanted: vec![Vec::new(); names.len()], values: named.len() };
    for (value, (name, role)) in named.into_iter().enumerate() {
        layout.wanted[columns::find(path, line, &names, name, role)?].push(value);
    }
    if columns.needs_lists() {
        return Err(DataError::NeedsLists { path: path.into() });
    }
    while let Some((place, row)) = records.row(&layout, columns)? {
        each(place, row);
    }
    Ok(layout)
}

/// The names of all columns.
pub(super) fn names(path: &Path, input: impl BufRead, start: u64) -> Result<Vec<String>, DataError> {
    let (header, names) = Records::new(path, input, start).header()?;
    check_separator(path, header.place.line, &names, None)?;
    if header.cells > MAX_COLUMNS {
        return Err(DataError::TooManyColumns { path: path.into(), found: header.cells, most: MAX_COLUMNS });
    }
    Ok(names)
}

/// The row that begins where `input` stands, some way into the file; `None` if no usable one does.
pub(super) fn row_at(
    path: &Path,
    input: impl BufRead,
    layout: &Layout,
    columns: &Columns,
) -> Result<Option<RawRow>, DataError> {
    let mut records = Records::new(path, input, 0);
    // The reader passes over a byte-order mark where it begins, which is not where the file begins.
    records.reader.read_field(b"\n", &mut [0]);
    match records.row(layout, columns) {
        Ok(found) => Ok(found.and_then(|(_, row)| row.ok())),
        Err(DataError::OpenQuote { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl<R: BufRead> Records<'_, R> {
    /// The first record as names of columns, the first [`MAX_COLUMNS`] of them.
    fn header(&mut self) -> Result<(Record, Vec<String>), DataError> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let header = self.next(
            |place| (place < MAX_COLUMNS).then_some(MAX_NAME),
            |place, bytes| {
                names.resize(names.len().max(place + 1), Vec::new());
                names[place].extend_from_slice(bytes);
            },
        )?;
        let Some(header) = header else { return Err(DataError::Empty { path: self.path.into() }) };
        Ok((header, decode(self.path, names)?))
    }

    /// The next record as a row.
    fn row(&mut self, layout: &Layout, columns: &Columns) -> Result<Option<PlacedRow>, DataError> {
        let mut taken: Vec<Cell> = Vec::with_capacity(layout.values);
        taken.resize_with(layout.values, Cell::default);
        let cells = columns.content.cells();
        // One byte above the limit is kept, so that the check below sees the excess.
        let record = self.next(
            |place| (!layout.of(place).is_empty()).then_some(usize::MAX),
            |place, bytes| {
                for value in layout.of(place) {
                    let cell = &mut taken[*value];
                    let most = if *value < cells { MAX_CELL } else { MAX_TEXT };
                    let room = (most + 1).saturating_sub(cell.bytes.len());
                    cell.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    cell.length += bytes.len();
                }
            },
        )?;
        let Some(record) = record else { return Ok(None) };
        let not_utf8 = |cell: &Cell| std::str::from_utf8(&cell.bytes).is_err() && cell.length == cell.bytes.len();
        let row = if record.cells == layout.cells {
            row(taken, columns)
        } else if taken.first().is_some_and(not_utf8) {
            // Said first: such a file has one encoding fault, and as many other faults as it causes.
            Err(Fault::NotUtf8)
        } else {
            Err(Fault::FieldCount { found: record.cells, expected: layout.cells, lines: record.lines })
        };
        Ok(Some((record.place, row)))
    }
}

fn row(taken: Vec<Cell>, columns: &Columns) -> Result<RawRow, Fault> {
    let ContentColumns::Cells(cells) = &columns.content else {
        let values = taken.into_iter().map(|cell| content(cell).map(|text| Some(Value::String(text))));
        return raw::row(columns, values.collect::<Result<_, _>>()?);
    };
    let value = |(place, cell): (usize, Cell)| match cells.get(place) {
        Some(column) if cell.length > MAX_CELL => {
            Err(Fault::CellTooLong { column: column.name.clone(), bytes: cell.length })
        }
        _ => content(cell).map(|text| Some(Value::String(text))),
    };
    raw::row(columns, taken.into_iter().enumerate().map(value).collect::<Result<_, _>>()?)
}

fn content(cell: Cell) -> Result<String, Fault> {
    if cell.length > MAX_TEXT {
        return Err(Fault::TooLong { bytes: cell.length });
    }
    if cell.bytes.contains(&0) {
        return Err(Fault::Nul);
    }
    String::from_utf8(cell.bytes).map_err(|_| Fault::NotUtf8)
}

fn decode(path: &Path, names: Vec<Vec<u8>>) -> Result<Vec<String>, DataError> {
    names
        .into_iter()
        .map(|name| match String::from_utf8(name) {
            Ok(name) if !name.contains('\0') => Ok(name),
            _ => Err(DataError::NotText {
                path: path.into(),
                found: "a first line that is not UTF-8",
                remedy: "Give a CSV file in UTF-8 whose first line names the columns",
            }),
        })
        .collect()
}

/// A header in one piece that another separator would cut is a file with that separator; and one of which another would cut
/// out the column `text`, where that is known.
fn check_separator(path: &Path, line: u64, names: &[String], text: Option<&str>) -> Result<(), DataError> {
    if let Some(text) = text {
        if names.iter().any(|name| name == text) {
            return Ok(());
        }
        for (separator, found) in [(';', "semicolons"), ('\t', "tabs"), ('|', "vertical bars")] {
            if names.iter().any(|name| name.split(separator).any(|part| part.trim_matches(['"', ' ']) == text)) {
                return Err(DataError::Separator { path: path.into(), line, found });
            }
        }
    }
    match names {
        [only] if only.contains(';') => Err(DataError::Separator { path: path.into(), line, found: "semicolons" }),
        [only] if only.contains('\t') => Err(DataError::Separator { path: path.into(), line, found: "tabs" }),
        _ => Ok(()),
    }
}
