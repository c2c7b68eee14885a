//! What can be wrong with an image.

use std::fmt;

use super::decode::{FORMATS, MAX_BYTES, MAX_PIXELS, MAX_SIDE};

/// Why an image is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFault {
    /// No bytes at all where an image should be: a null, or only the path of a file that is elsewhere.
    Absent,
    /// Zero bytes.
    Empty,
    /// More bytes than [`MAX_BYTES`].
    TooManyBytes {
        /// Its bytes.
        bytes: u64,
    },
    /// The first bytes are those of no image.
    NotImage {
        /// The first bytes, in hexadecimal.
        head: String,
    },
    /// An image of a format that is not read.
    Format {
        /// The format, as its file ending.
        found: String,
    },
    /// More pixels than [`MAX_PIXELS`], a side longer than [`MAX_SIDE`], or more than 256 MiB when decoded.
    TooManyPixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The bytes end before the image does.
    Truncated {
        /// The format.
        format: &'static str,
        /// How many bytes there are.
        bytes: usize,
    },
    /// Bytes that do not fit the format.
    Damaged {
        /// The format.
        format: &'static str,
        /// The decoder's words.
        message: String,
    },
    /// A kind of image that the decoder does not know.
    Unsupported {
        /// The format.
        format: &'static str,
        /// The decoder's words.
        message: String,
    },
    /// A file that cannot be read, or is none.
    Unreadable {
        /// Why.
        message: String,
    },
}

impl ImageFault {
    /// What faults of this kind are called in a report.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "no image",
            Self::Empty => "image of zero bytes",
            Self::TooManyBytes { .. } => "image of too many bytes",
            Self::NotImage { .. } => "not an image",
            Self::Format { .. } => "image format not read",
            Self::TooManyPixels { .. } => "image of too many pixels",
            Self::Truncated { .. } => "truncated image",
            Self::Damaged { .. } => "damaged image",
            Self::Unsupported { .. } => "unsupported kind of image",
            Self::Unreadable { .. } => "unreadable image file",
        }
    }
}

impl fmt::Display for ImageFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => {
                write!(out, "found no bytes, expected an encoded image; store the bytes in the file, not only a path")
            }
            Self::Empty => write!(out, "found 0 bytes, expected an encoded image"),
            Self::TooManyBytes { bytes } => write!(out, "found {bytes} bytes, expected at most {MAX_BYTES}"),
            Self::NotImage { head } => write!(out, "it begins with the bytes {head}, expected {FORMATS}"),
            Self::Format { found } => write!(out, "found {found}, expected {FORMATS}"),
            Self::TooManyPixels { width, height } => {
                write!(
                    out,
                    "found {width} x {height} pixels, expected at most {MAX_PIXELS} in all and {MAX_SIDE} a side; make it smaller"
                )
            }
            Self::Truncated { format, bytes } => {
                write!(out, "the {format} image is not complete: it ends after {bytes} bytes")
            }
            Self::Damaged { format, message } | Self::Unsupported { format, message } => {
                write!(out, "{format}: {message}")
            }
            Self::Unreadable { message } => out.write_str(message),
        }
    }
}
