#![no_main]

// Panics that the client catches are no crashes; any other one ends the program still.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| fedtune_fuzz::tokenizer(data));
