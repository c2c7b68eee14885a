//! Who asks: the identity in the certificate of the connection.

use hyper::http::Extensions;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Status};

use crate::pki::{Identity, Role};

/// Whom the certificate of a connection names, if anybody.
pub(super) fn of_connection(extensions: &Extensions) -> Option<Identity> {
    let certificates = extensions.get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
    Identity::of_certificate(certificates.first()?)
}

/// The caller's identity, which [`of_connection`] has found, if its role is one of these.
///
/// # Errors
/// PERMISSION_DENIED, with what was found and what is needed.
pub(super) fn require<T>(request: &Request<T>, roles: &[Role]) -> Result<Identity, Status> {
    let identity = request.extensions().get::<Identity>().ok_or_else(|| {
        Status::unauthenticated("the certificate names no fedtune identity; use a bundle of this federation")
    })?;
    if roles.contains(&identity.role) {
        return Ok(identity.clone());
    }
    let needed: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
    Err(Status::permission_denied(format!(
        "this call needs a certificate of role {}; {} has the role {}",
        needed.join(" or "),
        identity.name,
        identity.role
    )))
}
