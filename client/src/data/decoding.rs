//! Images are decoded when they are read, since only a whole image shows a damaged one.

use rayon::prelude::*;

use super::Place;
use super::content::Content;
use super::error::Fault;
use super::image::decode;
use super::raw::RawRow;

/// Encoded bytes that are decoded together.
const DECODED_TOGETHER: usize = 16 << 20;
/// Rows that are decoded together.
const MOST_TOGETHER: usize = 256;

/// Rows between a reader and whoever takes them, who gets them in the same order, those with a damaged image as faults.
pub(super) struct Decoding<'a> {
    each: &'a mut dyn FnMut(Place, Result<RawRow, Fault>),
    waiting: Vec<(Place, Result<RawRow, Fault>)>,
    waiting_bytes: usize,
}

impl<'a> Decoding<'a> {
    pub(super) fn new(each: &'a mut dyn FnMut(Place, Result<RawRow, Fault>)) -> Self {
        Self { each, waiting: Vec::new(), waiting_bytes: 0 }
    }

    pub(super) fn add(&mut self, place: Place, row: Result<RawRow, Fault>) {
        self.waiting_bytes += row.as_ref().map_or(0, |row| row.content.length());
        self.waiting.push((place, row));
        if self.waiting_bytes >= DECODED_TOGETHER || self.waiting.len() >= MOST_TOGETHER {
            self.finish();
        }
    }

    /// Hands on what is waiting.
    pub(super) fn finish(&mut self) {
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let decoded: Vec<_> = waiting.into_par_iter().map(|(place, row)| (place, row.and_then(decodable))).collect();
        decoded.into_iter().for_each(|(place, row)| (self.each)(place, row));
    }
}

fn decodable(row: RawRow) -> Result<RawRow, Fault> {
    let Content::Image(picture) = &row.content else { return Ok(row) };
    match decode(&picture.bytes) {
        Ok(_) => Ok(row),
        Err(fault) => Err(Fault::Image { file: picture.file.clone(), fault }),
    }
}
