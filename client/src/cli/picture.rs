//! A confusion matrix as a picture.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use font8x8::{BASIC_FONTS, LATIN_FONTS, UnicodeFonts};

use super::CliError;
use super::table::shorten;
use crate::finetune::Evaluation;

/// Pixels of the matrix, if its cells come out between the two sizes.
const SIDE: usize = 960;
const LEAST_CELL: usize = 4;
const MOST_CELL: usize = 64;
/// Pixels of a character.
const GLYPH: usize = 8;
/// Characters of a label.
const NAME: usize = 24;

type Colour = [u8; 3];
const WHITE: Colour = [255, 255, 255];
const BLACK: Colour = [0, 0, 0];
/// A cell that has all rows of its label.
const FULL: Colour = [8, 69, 148];

/// Writes the matrix as PNG: a row for each true label, a column for each predicted one in the same order, each cell
/// shaded by its share of the row and, where it fits, with its count.
pub(super) fn confusion(evaluation: &Evaluation, labels: &[String], path: &Path) -> Result<(), CliError> {
    let written = draw(evaluation, labels).write(path);
    written.map_err(|source| CliError::Write { path: path.into(), source })
}

fn draw(evaluation: &Evaluation, labels: &[String]) -> Canvas {
    let count = labels.len().max(1);
    let cell = (SIDE / count).clamp(LEAST_CELL, MOST_CELL);
    // Cells of less than a character have no words beside them.
    let scale = if cell >= 5 * GLYPH { 2 } else { usize::from(cell > GLYPH) };
    let letter = GLYPH * scale;
    let names: Vec<String> =
        labels.iter().enumerate().map(|(i, label)| format!("{} {}", shorten(label, NAME), i + 1)).collect();
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let (left, top) = ((widest + 1) * letter, 2 * letter);
    let mut canvas = Canvas::new(left + count * cell, top + count * cell);
    for (i, row) in evaluation.confusion().unwrap_or_default().chunks(count).enumerate() {
        let y = top + i * cell;
        let middle = (cell.saturating_sub(letter)) / 2;
        if scale > 0 {
            let width = names[i].chars().count() * letter;
            canvas.text(left - letter / 2 - width, y + middle, scale, BLACK, &names[i]);
            let number = (i + 1).to_string();
            let indent = cell.saturating_sub(number.len() * letter) / 2;
            canvas.text(left + i * cell + indent, letter / 2, scale, BLACK, &number);
        }
        let support: u64 = row.iter().sum();
        for (j, rows) in row.iter().enumerate() {
            let share = *rows as f64 / support.max(1) as f64;
            let x = left + j * cell;
            canvas.fill(x, y, cell - 1, shade(share));
            let number = rows.to_string();
            let width = number.len() * letter;
            if *rows > 0 && scale > 0 && width + 2 <= cell {
                let colour = if share > 0.5 { WHITE } else { BLACK };
                canvas.text(x + (cell - width) / 2, y + middle, scale, colour, &number);
            }
        }
    }
    canvas
}

fn shade(share: f64) -> Colour {
    let mix = |full: u8| (255.0 - (255.0 - f64::from(full)) * share).round() as u8;
    FULL.map(mix)
}

/// RGB pixels, row by row, grey at first.
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Colour>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[235; 3]; width * height] }
    }

    fn set(&mut self, x: usize, y: usize, colour: Colour) {
        if x < self.width && y < self.height {
            self.pixels[y * self.width + x] = colour;
        }
    }

    /// A square.
    fn fill(&mut self, x: usize, y: usize, side: usize, colour: Colour) {
        for dy in 0..side {
            for dx in 0..side {
                self.set(x + dx, y + dy, colour);
            }
        }
    }

    fn text(&mut self, x: usize, y: usize, scale: usize, colour: Colour, text: &str) {
        for (place, c) in text.chars().enumerate() {
            let glyph = BASIC_FONTS.get(c).or_else(|| LATIN_FONTS.get(c)).or_else(|| BASIC_FONTS.get('?'));
            let lines = glyph.unwrap_or_default();
            for (dy, line) in lines.iter().enumerate() {
                for dx in (0..GLYPH).filter(|dx| (line >> dx) & 1 == 1) {
                    self.fill(x + (place * GLYPH + dx) * scale, y + dy * scale, scale, colour);
                }
            }
        }
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let size = |side: usize| u32::try_from(side).map_err(std::io::Error::other);
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), size(self.width)?, size(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_flattened())?;
        Ok(writer.finish()?)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::finetune::metrics::{Counts, Form};

    #[test]
    fn cells_are_shaded_by_their_share_of_the_row() {
        let evaluation =
            Evaluation { examples: 6, loss_sum: 0.0, ..Evaluation::from(Counts::Confusion(vec![3, 1, 0, 2])) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("matrix.png");
        confusion(&evaluation, &["caf\u{e9}".into(), "\u{6f22}".into()], &path).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        // Six characters and one of space, doubled; two cells of the largest size.
        assert_eq!((info.width, info.height), (7 * 16 + 2 * 64, 32 + 2 * 64));
        let corner = |row: usize, column: usize| {
            let place = ((32 + row * 64 + 2) * info.width as usize + 7 * 16 + column * 64 + 2) * 3;
            [pixels[place], pixels[place + 1], pixels[place + 2]]
        };
        assert_eq!([corner(0, 0), corner(0, 1)], [shade(0.75), shade(0.25)]);
        assert_eq!([corner(1, 0), corner(1, 1)], [WHITE, FULL]);
        assert!(pixels.chunks(3).any(|pixel| pixel == BLACK), "there are no words");
        let absent = confusion(&evaluation, &["a".into(), "b".into()], &folder.path().join("no/matrix.png"));
        assert!(absent.unwrap_err().to_string().contains("cannot write"));
    }

    #[test]
    fn any_number_of_labels_can_be_drawn() {
        for count in [0, 1, 19, 20, 100, 119, 120, 1000] {
            let labels: Vec<String> = (0..count).map(|i| format!("label {i}")).collect();
            let canvas = draw(&Evaluation::new(Form::Classes(count)), &labels);
            assert!(canvas.width >= count * LEAST_CELL && canvas.width < 5000, "{count}: {}", canvas.width);
        }
    }
}
