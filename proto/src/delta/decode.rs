//! From a container, which may be anybody's, to a file of values.

use std::io::{BufReader, BufWriter, Read, Write};

use super::frame::{Counted, FRAME_VALUES, Frame, Unpacker, check, check_preamble, places, refused};
use super::quantize::Dequantizer;
use super::values::ValuesWriter;
use super::{Codec, DeltaError, Stream};
use crate::container::at_end;
use crate::layout::Layout;

/// What a decoding came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the container.
    pub bytes_in: u64,
    /// Bytes of the tensors as F32.
    pub bytes_out: u64,
}

/// Decodes a container of the tensors of `layout`, encoded with `codec`, and writes an F32 safetensors file with the header
/// of the layout. The container must end where `container` does. All values written are finite.
///
/// Nothing that the container says makes this allocate more than a few frames.
///
/// # Errors
/// The layout is not of F32, the container is not sound or of something else, or a file or stream fails. What has been
/// written by then is of no use.
pub fn decode(container: impl Read, layout: &Layout, codec: Codec, update: impl Write) -> Result<Decoded, DeltaError> {
    check(layout, codec)?;
    let mut input = Counted { input: BufReader::new(container), at: 0 };
    check_preamble(&mut input, layout, codec)?;
    let mut update = ValuesWriter::create(Stream::Decoded, BufWriter::new(update), layout)?;
    let (mut unpacker, mut frame, mut dequantizer) = (Unpacker::new()?, Frame::default(), Dequantizer::new(codec));
    let mut values = vec![0.0; FRAME_VALUES];
    for place in places(layout) {
        let byte = input.at;
        let values = &mut values[..place.values];
        unpacker.unpack(&mut input, place, codec, &mut frame)?;
        dequantizer.dequantize(&frame, values).map_err(|fault| refused(place, byte, fault))?;
        update.write(values)?;
    }
    if !at_end(&mut input.input).map_err(|source| DeltaError::Read { what: Stream::Container, source })? {
        return Err(DeltaError::Trailing { byte: input.at });
    }
    update.finish()?;
    Ok(Decoded { bytes_in: input.at, bytes_out: layout.file_bytes - layout.data_start })
}

#[cfg(test)]
mod tests;
