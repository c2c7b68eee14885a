//! The federation's certificate authority, and the identities its certificates carry.
//!
//! An identity is a URI in the certificate, `spiffe://fedtune/ROLE/NAME`. Keys are written for their owner only.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

const AUTHORITY_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 825;

/// What a certificate lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Trains on its own data.
    Site,
    /// Scores states on its test file.
    Evaluator,
    /// Submits jobs and exports models.
    Operator,
}

impl Role {
    /// The word in certificates and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Evaluator => "evaluator",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Site, Self::Evaluator, Self::Operator]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("found the role {text:?}; expected site, evaluator or operator"))
    }
}

/// Who a certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What it may do.
    pub role: Role,
    /// Its name in the federation.
    pub name: String,
}

impl Identity {
    /// Checks the name: 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit.
    ///
    /// # Errors
    /// The name is malformed.
    pub fn new(role: Role, name: &str) -> Result<Self, PkiError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = name.as_bytes();
        let sound = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| plain(*b) || *b == b'-')
            && bytes.first().is_some_and(|b| plain(*b))
            && bytes.last().is_some_and(|b| plain(*b));
        if sound {
            Ok(Self { role, name: name.to_owned() })
        } else {
            Err(PkiError::Name(name.chars().take(80).collect()))
        }
    }

    /// The identity in a DER certificate, if it has one of ours.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        certificate
            .extensions()
            .iter()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .find_map(|name| match name {
                GeneralName::URI(uri) => uri.parse().ok(),
                _ => None,
            })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "spiffe://fedtune/{}/{}", self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = PkiError;
    fn from_str(uri: &str) -> Result<Self, PkiError> {
        let malformed = || PkiError::Name(uri.chars().take(80).collect());
        let (role, name) =
            uri.strip_prefix("spiffe://fedtune/").and_then(|rest| rest.split_once('/')).ok_or_else(malformed)?;
        Self::new(role.parse().map_err(|_| malformed())?, name)
    }
}

/// Something about keys or certificates went wrong.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A name that cannot stand in a certificate.
    #[error(
        "found the name {0:?}; expected 1 to 63 lower-case letters, digits and inner hyphens, such as north-hospital"
    )]
    Name(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key or certificate could not be made or read.
    #[error("{path}: {source}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: rcgen::Error,
    },
}

/// The certificate authority in a folder: `ca.pem` and `ca-key.pem`.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority in `folder`, which must not hold one.
    ///
    /// # Errors
    /// A file exists or cannot be written.
    pub fn create(folder: &Path) -> Result<Self, PkiError> {
        let certificate_path = folder.join("ca.pem");
        let failed = |source| PkiError::Certificate { path: certificate_path.clone(), source };
        // A name of its own, so that a peer says "unknown authority" where another federation's comes.
        let name = format!("fedtune certificate authority {}", Uuid::now_v7());
        let mut params = base_params(&name, AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let certificate_pem = certificate.pem();
        write_new(&folder.join("ca-key.pem"), key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&certificate_path, certificate_pem.as_bytes(), 0o644)?;
        Ok(Self { folder: folder.to_path_buf(), certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Opens the authority in `folder`.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| PkiError::File { path, source })
        };
        let certificate_pem = read("ca.pem")?;
        let failed = |source| PkiError::Certificate { path: folder.join("ca-key.pem"), source };
        let key = KeyPair::from_pem(&read("ca-key.pem")?).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(failed)?;
        Ok(Self { folder: folder.to_path_buf(), certificate_pem, issuer })
    }

    /// Writes `server.pem` and `server-key.pem` into the authority's folder, valid for these host names and addresses.
    ///
    /// # Errors
    /// A name is malformed, or a file exists or cannot be written.
    pub fn issue_server(&self, hosts: &[String]) -> Result<(), PkiError> {
        let path = self.folder.join("server.pem");
        let mut params = base_params("fedtune aggregator", LEAF_DAYS);
        params.subject_alt_names =
            CertificateParams::new(hosts).map_err(|source| PkiError::Certificate { path, source })?.subject_alt_names;
        self.issue(params, ExtendedKeyUsagePurpose::ServerAuth, &self.folder, "server")
    }

    /// Writes a bundle into `folder`: `ca.pem`, `site.pem`, `site-key.pem` (`operator…` for the operator).
    ///
    /// # Errors
    /// A file exists or cannot be written.
    pub fn issue_bundle(&self, identity: &Identity, folder: &Path) -> Result<(), PkiError> {
        create_folder(folder)?;
        let name = if identity.role == Role::Operator { "operator" } else { "site" };
        let mut params = base_params(&identity.name, LEAF_DAYS);
        let uri = identity.to_string();
        let san = uri.clone().try_into().map_err(|source| PkiError::Certificate { path: uri.into(), source })?;
        params.subject_alt_names = vec![SanType::URI(san)];
        write_new(&folder.join("ca.pem"), self.certificate_pem.as_bytes(), 0o644)?;
        self.issue(params, ExtendedKeyUsagePurpose::ClientAuth, folder, name)
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
        folder: &Path,
        name: &str,
    ) -> Result<(), PkiError> {
        let path = folder.join(format!("{name}.pem"));
        let failed = |source| PkiError::Certificate { path: path.clone(), source };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        write_new(&folder.join(format!("{name}-key.pem")), key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&path, certificate.pem().as_bytes(), 0o644)
    }
}

fn base_params(common_name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A little slack for clocks that are behind.
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
    params
}

/// Makes a folder that only its owner can enter.
pub(crate) fn create_folder(folder: &Path) -> Result<(), PkiError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|source| PkiError::File { path: folder.to_path_buf(), source })
}

/// Writes a file that must not exist yet, so that no key is ever overwritten.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| PkiError::File { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_back_from_certificates_and_bad_names_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let authority = Authority::create(folder.path()).expect("authority");
        let identity = Identity::new(Role::Site, "north-hospital").expect("name");
        let bundle = folder.path().join("bundle");
        authority.issue_bundle(&identity, &bundle).expect("bundle");
        let pem = fs::read(bundle.join("site.pem")).expect("certificate");
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("pem");
        assert_eq!(Identity::of_certificate(&pem.contents), Some(identity.clone()));
        let reopened = Authority::open(folder.path()).expect("reopened");
        assert!(matches!(reopened.issue_bundle(&identity, &bundle), Err(PkiError::File { .. })), "never overwritten");
        for name in ["", "-a", "a-", "A", "a/b", "..", "a.b", &"x".repeat(64)] {
            assert!(Identity::new(Role::Site, name).is_err(), "{name}");
        }
        assert_eq!(Identity::of_certificate(b"junk"), None);
    }
}
