//! Who asks: the identity in the certificate of the connection.

use tonic::{Request, Status};

use crate::pki::{Identity, Role};

/// The caller's identity, if its role is one of these.
///
/// # Errors
/// PERMISSION_DENIED, with what was found and what is needed.
pub(super) fn require<T>(request: &Request<T>, roles: &[Role]) -> Result<Identity, Status> {
    let certificates = request.peer_certs();
    let leaf = certificates.as_ref().and_then(|chain| chain.first());
    let identity = leaf.and_then(|leaf| Identity::of_certificate(leaf)).ok_or_else(|| {
        Status::unauthenticated("the certificate names no fedtune identity; use a bundle of this federation")
    })?;
    if roles.contains(&identity.role) {
        return Ok(identity);
    }
    let needed: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    Err(Status::permission_denied(format!(
        "this call needs a certificate of role {}; {} has the role {}",
        needed.join(" or "),
        identity.name,
        identity.role
    )))
}
