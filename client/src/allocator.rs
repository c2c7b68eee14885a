//! How the programs allocate. Training allocates and frees the same large buffers in every step; the system's allocator
//! gives them back each time, and the system clears them again for the next.

pub use mimalloc::MiMalloc;

/// The option `mi_option_purge_delay`, for which the bindings have no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How long freed memory is kept, in milliseconds: longer than most steps of training take, so that the next one finds it. With
/// the default of a second, slower steps fault their pages again.
const KEPT: libc::c_long = 10_000;

/// Keeps freed memory from one step of training to the next. `MIMALLOC_PURGE_DELAY` in the environment goes before.
#[expect(unsafe_code, reason = "the allocator's settings have no safe form")]
pub fn keep_freed_memory() {
    // SAFETY: sets a number that the allocator reads; an option that it does not know would be ignored.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEPT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "as above")]
    fn the_option_is_the_delay() {
        // SAFETY: reads a number.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        // Of all options this one alone is a second by default.
        assert_eq!(delay(), 1000);
        keep_freed_memory();
        assert_eq!(delay(), KEPT);
    }
}
