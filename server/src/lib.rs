//! fedtune-server
