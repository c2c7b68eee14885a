//! fedtune-client
