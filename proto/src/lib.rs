//! What both sides say, and what they must agree on bit for bit.
//!
//! Read in this order: [`v1`] (the generated messages and services), [`version`] (which programs work together),
//! [`digest`] (how artifacts are named), [`layout`] (how states and updates lie in a file), [`recipe`] (how a whole
//! model is written from a base model and a state).

pub mod digest;
pub mod layout;
pub mod recipe;
pub mod version;

/// Messages and services generated from `fedtune/v1/*.proto`, which hold their documentation.
pub mod v1 {
    #![expect(missing_docs, clippy::all, reason = "generated code")]
    tonic::include_proto!("fedtune.v1");
}

/// The compiled descriptors of every service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Artifacts travel in chunks of at most this many bytes.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The largest gRPC message either side decodes: a chunk and its envelope, or a job with its records.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// HTTP/2 flow-control windows for bulk transfer, in bytes: one stream, and the connection.
pub const WINDOW_BYTES: (u32, u32) = (8 << 20, 16 << 20);
