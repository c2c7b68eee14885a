//! Which programs work together.

use crate::v1::ProtocolVersion;

/// The protocol this crate speaks.
pub const PROTOCOL: ProtocolVersion = ProtocolVersion { major: 2, minor: 0 };

/// The two sides speak different protocols.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "incompatible versions: this side speaks protocol {}.{}, {peer} speaks {}.{}; install programs of the same major version on both sides",
    ours.major, ours.minor, theirs.major, theirs.minor
)]
pub struct Incompatible {
    /// Who the peer says it is.
    pub peer: String,
    /// Our protocol.
    pub ours: ProtocolVersion,
    /// The peer's.
    pub theirs: ProtocolVersion,
}

/// Checks that a peer, described as `program`, speaks our protocol. An absent version is protocol 0.0.
///
/// # Errors
/// The major numbers differ.
pub fn check(program: &str, theirs: Option<ProtocolVersion>) -> Result<(), Incompatible> {
    let theirs = theirs.unwrap_or_default();
    if theirs.major == PROTOCOL.major {
        return Ok(());
    }
    let peer = if program.is_empty() { "a peer that does not say its name".into() } else { program.to_owned() };
    Err(Incompatible { peer, ours: PROTOCOL, theirs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_versions_mix_and_major_versions_do_not() {
        assert_eq!(check("x", Some(ProtocolVersion { major: 2, minor: 9 })), Ok(()));
        let text =
            check("old-client 0.0.1", Some(ProtocolVersion { major: 1, minor: 0 })).expect_err("differs").to_string();
        assert!(text.contains("old-client 0.0.1") && text.contains("2.0") && text.contains("1.0"), "{text}");
        assert!(check("", None).is_err());
    }
}
