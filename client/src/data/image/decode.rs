//! Encoded bytes to 8-bit RGB.
//!
//! Colours become what Pillow's `convert("RGB")` gives: alpha is dropped, palettes are looked up, CMYK is turned to RGB.
//! Grey of 16 bits is scaled to 8, where Pillow would clip it. The orientation of EXIF data is applied, as the `datasets`
//! library does.

use std::io::Cursor;
use std::sync::{Mutex, PoisonError};

use image::error::LimitErrorKind;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::{ImageFault, Pixels};

/// The largest encoded image, in bytes.
pub const MAX_BYTES: usize = 32 << 20;
/// The largest image, in pixels: 100 MB as RGB.
pub const MAX_PIXELS: u64 = 1 << 25;
/// The longest side, in pixels.
pub const MAX_SIDE: u32 = 65_535;
/// The largest image in the form the decoder gives it, in bytes.
const MAX_DECODED: u64 = 256 << 20;
/// What a decoder may take beside that.
const MAX_WORK: u64 = 512 << 20;
/// Larger images than this, in pixels, are decoded one at a time, so that threads do not multiply the memory.
const MANY_PIXELS: u64 = 1 << 22;
/// Held while a large image is decoded.
static LARGE: Mutex<()> = Mutex::new(());
/// The formats that are read.
pub(super) const FORMATS: &str = "a PNG, JPEG, BMP, GIF or WebP image";

/// Decodes an image; of a moving one the first picture. Its dimensions are checked before memory is taken for them.
///
/// # Errors
/// See [`ImageFault`].
pub fn decode(bytes: &[u8]) -> Result<Pixels, ImageFault> {
    if bytes.is_empty() {
        return Err(ImageFault::Empty);
    }
    if bytes.len() > MAX_BYTES {
        return Err(ImageFault::TooManyBytes { bytes: bytes.len() as u64 });
    }
    let format = image::guess_format(bytes).map_err(|_| not_image(bytes))?;
    let name = match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Gif => "GIF",
        ImageFormat::WebP => "WebP",
        other => {
            let found = other.extensions_str().first().unwrap_or(&"another format");
            return Err(ImageFault::Format { found: format!("an image of the format {found}") });
        }
    };
    if format == ImageFormat::Jpeg && jpeg_is_cut(bytes) {
        return Err(ImageFault::Truncated { format: name, bytes: bytes.len() });
    }
    let fault = |error| fault(name, bytes.len(), error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_WORK);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    let too_long = width.max(height) > MAX_SIDE;
    if too_long || u64::from(width) * u64::from(height) > MAX_PIXELS || decoder.total_bytes() > MAX_DECODED {
        return Err(ImageFault::TooManyPixels { width, height });
    }
    let many = u64::from(width) * u64::from(height) > MANY_PIXELS;
    let _alone = many.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let orientation = decoder.orientation().map_err(fault)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(fault)?;
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    let (width, height) = image.dimensions();
    Pixels::new(width, height, image.into_raw())
        .ok_or_else(|| ImageFault::Damaged { format: name, message: format!("it has {width} x {height} pixels") })
}

/// What text and other files are told by.
fn not_image(bytes: &[u8]) -> ImageFault {
    let head: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    ImageFault::NotImage { head: head.join(" ") }
}

fn fault(format: &'static str, bytes: usize, error: ImageError) -> ImageFault {
    match error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageFault::Truncated { format, bytes }
        }
        ImageError::Unsupported(error) => ImageFault::Unsupported { format, message: error.to_string() },
        ImageError::Limits(error) if error.kind() == LimitErrorKind::InsufficientMemory => {
            ImageFault::Damaged { format, message: "it takes too much memory to decode".into() }
        }
        other => ImageFault::Damaged { format, message: other.to_string() },
    }
}

/// Whether a JPEG has no end marker, going from segment to segment (ITU T.81, annex B): the decoder fills what is missing
/// with grey, and a half grey image teaches the wrong thing.
fn jpeg_is_cut(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // In the coded data of a scan 0xff stands before 0 and the restart markers; elsewhere it begins a segment.
        let Some(found) = bytes.get(at..).and_then(|rest| rest.windows(2).position(|pair| is_marker(pair[0], pair[1])))
        else {
            return true;
        };
        at += found + 2;
        match bytes[at - 1] {
            0xd9 => return false,
            // These have no length.
            0x01 | 0xd8 => {}
            _ => {
                let Some(length) = bytes.get(at..at + 2) else { return true };
                at += usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
}

fn is_marker(first: u8, second: u8) -> bool {
    first == 0xff && !matches!(second, 0 | 0xff | 0xd0..=0xd7)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use image::{ExtendedColorType, ImageEncoder};
    use proptest::prelude::*;

    use super::*;

    /// A gradient with some structure.
    fn sample(width: u32, height: u32) -> Vec<u8> {
        (0..height).flat_map(|y| (0..width).flat_map(move |x| [(x * 7) as u8, (y * 11) as u8, (x * y) as u8])).collect()
    }

    fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let image = image::RgbImage::from_raw(width, height, sample(width, height)).unwrap();
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    const ALL: [ImageFormat; 5] =
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::WebP];

    #[test]
    fn lossless_formats_come_back_as_they_were() {
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
            let pixels = decode(&encoded(format, 20, 13)).unwrap();
            assert_eq!((pixels.width(), pixels.height()), (20, 13));
            assert_eq!(pixels.rgb(), sample(20, 13), "{format:?}");
        }
        for format in [ImageFormat::Jpeg, ImageFormat::Gif] {
            let pixels = decode(&encoded(format, 20, 13)).unwrap();
            assert_eq!((pixels.width(), pixels.height()), (20, 13), "{format:?}");
        }
    }

    #[test]
    fn sixteen_bits_are_scaled_and_alpha_is_dropped() {
        let png = |values: &[u8], color| {
            let mut out = Vec::new();
            image::codecs::png::PngEncoder::new(&mut out).write_image(values, 2, 1, color).unwrap();
            decode(&out).unwrap().rgb
        };
        let grey: Vec<u8> = [0x8000u16, 0xffff].iter().flat_map(|value| value.to_ne_bytes()).collect();
        assert_eq!(png(&grey, ExtendedColorType::L16), [128, 128, 128, 255, 255, 255]);
        assert_eq!(png(&[9, 0, 200, 255], ExtendedColorType::La8), [9, 9, 9, 200, 200, 200]);
        assert_eq!(png(&[1, 2, 3, 0, 4, 5, 6, 99], ExtendedColorType::Rgba8), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_cut_is_said_to_be() {
        for format in ALL {
            let whole = encoded(format, 64, 48);
            for end in 1..whole.len() {
                let result = decode(&whole[..end]);
                if end < whole.len() - 16 {
                    assert!(result.is_err(), "{format:?} cut after {end} of {} bytes is read", whole.len());
                }
            }
            let half = decode(&whole[..whole.len() / 2]).unwrap_err();
            assert!(matches!(half, ImageFault::Truncated { .. } | ImageFault::Damaged { .. }), "{format:?}: {half}");
        }
    }

    #[test]
    fn a_cut_jpeg_is_named_as_such() {
        let whole = encoded(ImageFormat::Jpeg, 64, 48);
        let fault = decode(&whole[..whole.len() - 2]).unwrap_err();
        assert_eq!(fault, ImageFault::Truncated { format: "JPEG", bytes: whole.len() - 2 });
        assert!(fault.to_string().contains("not complete"), "{fault}");
    }

    #[test]
    fn declared_sizes_are_refused_before_memory_is_taken() {
        // A PNG header of 60 000 x 60 000 pixels, and nothing that would fill them.
        let mut png = encoded(ImageFormat::Png, 1, 1);
        png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let checksum = crc(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(decode(&png), Err(ImageFault::TooManyPixels { width: 60_000, height: 60_000 }));
        let mut bmp = encoded(ImageFormat::Bmp, 1, 1);
        bmp[18..26].copy_from_slice(&[0x60, 0xea, 0, 0, 0x60, 0xea, 0, 0]);
        assert_eq!(decode(&bmp), Err(ImageFault::TooManyPixels { width: 60_000, height: 60_000 }));
        let mut gif = encoded(ImageFormat::Gif, 1, 1);
        gif[6..10].copy_from_slice(&[0xff; 4]);
        assert_eq!(decode(&gif), Err(ImageFault::TooManyPixels { width: 65_535, height: 65_535 }));
    }

    /// CRC-32 as PNG has it.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
        })
    }

    #[test]
    fn other_content_is_named() {
        assert_eq!(decode(&[]), Err(ImageFault::Empty));
        assert_eq!(decode(b"text"), Err(ImageFault::NotImage { head: "74 65 78 74".into() }));
        let tiff = decode(b"II*\0\x08\0\0\0\0\0\0\0").unwrap_err();
        assert_eq!(tiff.to_string(), "found an image of the format tiff, expected a PNG, JPEG, BMP, GIF or WebP image");
        let large = decode(&vec![0; MAX_BYTES + 1]).unwrap_err();
        assert_eq!(large, ImageFault::TooManyBytes { bytes: MAX_BYTES as u64 + 1 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn damaged_bytes_are_a_fault_or_an_image(
            format in 0usize..5, flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            cut in any::<prop::sample::Index>(), keep: bool,
        ) {
            let mut bytes = encoded(ALL[format], 24, 17);
            for (place, value) in &flips {
                let place = place.index(bytes.len());
                bytes[place] ^= value;
            }
            if !keep {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(pixels) = decode(&bytes) {
                prop_assert_eq!(pixels.rgb().len() as u64, 3 * u64::from(pixels.width()) * u64::from(pixels.height()));
            }
        }

        #[test]
        fn any_bytes_after_a_signature_are_a_fault_or_an_image(
            format in 0usize..5, length in 2usize..40, rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let whole = encoded(ALL[format], 4, 4);
            let bytes = [&whole[..length.min(whole.len())], &rest].concat();
            let _ = decode(&bytes);
        }
    }
}
