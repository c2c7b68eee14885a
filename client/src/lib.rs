//! The site's side of fedtune: reads labelled text, fine-tunes a pre-trained model on it, and evaluates.
//!
//! Read in this order: [`data`] (files to rows), [`model`] (folders to a trainable classifier), [`finetune`] (the loop,
//! optimiser and metrics), [`device`], and the edges [`session`] (a site's life in a federation) and [`cli`] with its
//! [`exit`] codes.

pub mod allocator;
pub mod cli;
pub mod data;
pub mod device;
pub mod exit;
pub mod finetune;
#[cfg(feature = "hub")]
pub mod hub;
pub mod model;
pub mod session;
