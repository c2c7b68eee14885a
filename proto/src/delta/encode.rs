//! From a file of values to a container.

use std::io::{BufWriter, Read, Write};

use super::frame::{FRAME_VALUES, Frame, Packer, check, places, preamble};
use super::quantize::{Dequantizer, Quantizer, largest};
use super::values::{ValuesReader, ValuesWriter};
use super::{Codec, DeltaError, Stream};
use crate::layout::Layout;

/// How values become codes of `int8` and `int4`; other codecs round to the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, half to even.
    Nearest,
    /// Up or down at random, so that the expected value is the value. The same values and seed give the same bytes.
    Stochastic {
        /// Where the draws come from (ChaCha8). Errors cancel only between sites and rounds whose seeds differ.
        seed: [u8; 32],
    },
}

/// Encodes an update.
pub struct Encoder<'a> {
    layout: &'a Layout,
    codec: Codec,
    rounding: Rounding,
    earlier: Option<&'a mut dyn Read>,
    residual: Option<&'a mut dyn Write>,
}

/// What an encoding came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Encoded {
    /// Bytes of the tensors as F32.
    pub bytes_in: u64,
    /// Bytes of the container.
    pub bytes_out: u64,
    /// Sum of the squares of what was to be encoded: the update, plus the earlier residual where there is one.
    pub delta_square: f64,
    /// Sum of the squares of what is lost of that.
    pub error_square: f64,
}

impl Encoded {
    /// The L2 norm of what is lost in that of what was to be encoded; 0 where that is 0.
    pub fn relative_error(&self) -> f64 {
        if self.delta_square > 0.0 { (self.error_square / self.delta_square).sqrt() } else { 0.0 }
    }
}

impl<'a> Encoder<'a> {
    /// Of updates that have the tensors of this layout.
    pub fn new(layout: &'a Layout, codec: Codec, rounding: Rounding) -> Self {
        Self { layout, codec, rounding, earlier: None, residual: None }
    }

    /// Adds what earlier encodings lost, a file that [`Encoder::residual_to`] wrote: error feedback (Karimireddy et al.
    /// 2019, 1901.09847), by which nothing is lost for good: `v = delta + e; c = Q(v); e <- v - c`.
    #[must_use]
    pub fn earlier(mut self, residual: &'a mut dyn Read) -> Self {
        self.earlier = Some(residual);
        self
    }

    /// Writes what this encoding loses, as an F32 safetensors file of the layout.
    #[must_use]
    pub fn residual_to(mut self, residual: &'a mut dyn Write) -> Self {
        self.residual = Some(residual);
        self
    }

    /// Encodes the F32 safetensors file `update`, which is read once from its start to its end.
    ///
    /// # Errors
    /// The layout is not of F32, a file is not of its tensors, a value is not finite or is too large, or a file or stream
    /// fails. What has been written by then is of no use.
    pub fn encode(self, update: impl Read, mut container: impl Write) -> Result<Encoded, DeltaError> {
        let Self { layout, codec, rounding, earlier, residual } = self;
        check(layout, codec)?;
        let mut update = ValuesReader::open(Stream::Update, update, layout)?;
        let mut earlier = earlier.map(|file| ValuesReader::open(Stream::Earlier, file, layout)).transpose()?;
        let residual = residual.map(|file| ValuesWriter::create(Stream::Residual, BufWriter::new(file), layout));
        let mut residual = residual.transpose()?;
        let failed = |source| DeltaError::Write { what: Stream::Container, source };
        let start = preamble(layout, codec);
        container.write_all(&start).map_err(failed)?;

        let mut encoded = Encoded {
            bytes_in: layout.file_bytes - layout.data_start,
            bytes_out: start.len() as u64,
            delta_square: 0.0,
            error_square: 0.0,
        };
        let (mut quantizer, mut dequantizer) = (Quantizer::new(codec, rounding), Dequantizer::new(codec));
        let (mut packer, mut frame, mut bytes) = (Packer::new()?, Frame::default(), Vec::new());
        let (mut values, mut other) = (vec![0.0; FRAME_VALUES], vec![0.0; FRAME_VALUES]);
        for place in places(layout) {
            let (values, other) = (&mut values[..place.values], &mut other[..place.values]);
            let tensor = || place.tensor.name.clone();
            update.read(values)?;
            if let Some(earlier) = &mut earlier {
                earlier.read(other)?;
                values.iter_mut().zip(&*other).for_each(|(value, lost)| *value += lost);
            }
            let largest = largest(values);
            if !largest.is_finite() {
                let odd = values.iter().enumerate().find(|(_, value)| !value.is_finite());
                let (index, value) = odd.map_or((0, largest), |(index, value)| (index as u64, *value));
                return Err(DeltaError::NotFinite { tensor: tensor(), index: place.first + index, value });
            }
            quantizer.quantize(values, largest, &mut frame);
            packer.pack(&frame, place, codec, &mut bytes)?;
            container.write_all(&bytes).map_err(failed)?;
            encoded.bytes_out += bytes.len() as u64;

            // What the other side will have; a value of its own that is not finite is all that can be wrong with it.
            dequantizer.dequantize(&frame, other).map_err(|_| DeltaError::TooLarge { tensor: tensor(), codec })?;
            encoded.delta_square += square_sum(values);
            other.iter_mut().zip(&*values).for_each(|(other, value)| *other = value - *other);
            encoded.error_square += square_sum(other);
            if let Some(residual) = &mut residual {
                residual.write(other)?;
            }
        }
        update.finish()?;
        earlier.map_or(Ok(()), ValuesReader::finish)?;
        residual.map_or(Ok(()), ValuesWriter::finish)?;
        container.flush().map_err(failed)?;
        Ok(encoded)
    }
}

/// In eight sums side by side, which a processor computes together.
fn square_sum(values: &[f32]) -> f64 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for eight in eights {
        for (sum, value) in sums.iter_mut().zip(eight) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    let rest: f64 = rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    sums.iter().sum::<f64>() + rest
}
