//! fedtune-tests
