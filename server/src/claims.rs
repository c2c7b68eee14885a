//! Names that one holds at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The names that are held. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<BTreeSet<String>>>);

impl Claims {
    /// The right to a name; `None` while another has it.
    pub(crate) fn take(&self, name: &str) -> Option<Claim> {
        self.held().insert(name.to_owned()).then(|| Claim { claims: self.clone(), name: name.to_owned() })
    }

    /// All of them; none is taken or given back meanwhile.
    pub(crate) fn held(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to a name, given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Claims,
    name: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.held().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_by_one_until_it_is_given_back() {
        let claims = Claims::default();
        let north = claims.take("north");
        assert!(north.is_some() && claims.clone().take("north").is_none() && claims.take("south").is_some());
        drop(north);
        assert!(claims.take("north").is_some() && claims.held().is_empty());
    }
}
