//! What both sides say, and what they must agree on bit for bit.
//!
//! Read in this order: [`v1`] (the generated messages and services), [`version`] (which programs work together),
//! [`digest`] (how artifacts are named), [`layout`] (how states and updates lie in a file), [`delta`] (how updates are sent
//! smaller), [`difference`] (how a state is sent to who has the one before), [`folder`] (the files of a model), [`recipe`]
//! (how a whole model is written from a base model and a state), [`evaluation`] (what scores are sums of), [`channel`]
//! (dialling the aggregator with mutual TLS), [`transfer`] (moving artifacts, resumable both ways), [`pace`] (how much of
//! one is under way), [`incoming`] (the files in which they arrive).

pub mod channel;
mod container;
pub mod delta;
pub mod difference;
pub mod digest;
pub mod evaluation;
pub mod folder;
pub mod incoming;
pub mod layout;
pub mod pace;
pub mod recipe;
pub mod transfer;
pub mod version;

/// Messages and services generated from `fedtune/v1/*.proto`, which hold their documentation.
pub mod v1 {
    #![expect(missing_docs, clippy::all, reason = "generated code")]
    tonic::include_proto!("fedtune.v1");
}

/// The compiled descriptors of every service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Artifacts travel in chunks of at most this many bytes.
pub const CHUNK_BYTES: usize = 64 << 10;

/// The largest gRPC message either side decodes: a chunk and its envelope, or a job with its records.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// HTTP/2 flow-control window of one stream, in bytes: four chunks in flight, so bulk transfer on a fast line does not wait
/// for acknowledgements, while an aggregator with many sites stays small.
pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// HTTP/2 flow-control window of a connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
