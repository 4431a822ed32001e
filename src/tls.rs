//! TLS to the stores: its files, and what to do after a failed handshake. Knows a store only by the name of its
//! section.
//!
//! Each connection reads the files again: a certificate that was renewed in place is used from the next one on.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// The files of TLS to one store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities to trust (`ca_file`); without it those of the system.
    pub ca: Option<PathBuf>,
    /// Certificate and key to show (`client_cert_file`, `client_key_file`).
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A file that TLS can't use.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {path:?}: {problem}")]
pub struct TlsFileError {
    /// The last part of its key.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: TlsFileProblem,
}

/// What is wrong with a file. Never quotes the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileProblem {
    /// It can't be read.
    #[error("read file: {0}")]
    Unreadable(io::Error),
    /// It lacks what it is for.
    #[error("it holds no {0} in PEM")]
    Missing(PemItem),
    /// It is damaged.
    #[error("it holds no good PEM of a {0}")]
    Damaged(PemItem),
    /// rustls refuses a certificate in it.
    #[error("it holds a bad certificate: {0}")]
    BadCertificate(rustls::Error),
    /// The key belongs to another certificate.
    #[error("it does not fit client_cert_file: {0}")]
    KeyOfAnother(rustls::Error),
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PemItem {
    /// At least one certificate.
    Certificate,
    /// A private key.
    PrivateKey,
}

impl fmt::Display for PemItem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Certificate => "certificate",
            Self::PrivateKey => "private key",
        })
    }
}

impl TlsFileProblem {
    fn pem(error: pem::Error, wanted: PemItem) -> Self {
        match error {
            pem::Error::Io(error) => Self::Unreadable(error),
            pem::Error::NoItemsFound => Self::Missing(wanted),
            _ => Self::Damaged(wanted),
        }
    }
}

impl TlsFiles {
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ca.is_none() && self.client.is_none()
    }

    /// Reads all of them as a connection does.
    ///
    /// # Errors
    /// The first file that can't be read, or holds something else than it should.
    pub fn check(&self) -> Result<(), TlsFileError> {
        let roots = self.roots()?;
        let Some((certificate, key)) = &self.client else { return Ok(()) };
        let wrong = |problem| TlsFileError { key: "client_cert_file", path: certificate.clone(), problem };
        let chain = certificates(certificate).map_err(wrong)?;
        let wrong = |problem| TlsFileError { key: "client_key_file", path: key.clone(), problem };
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| wrong(TlsFileProblem::pem(error, PemItem::PrivateKey)))?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key);
        config.map(drop).map_err(|error| wrong(TlsFileProblem::KeyOfAnother(error)))
    }

    /// What a client without a certificate of its own needs: the authorities of `ca_file`, else those of the system.
    ///
    /// # Errors
    /// If the file of the authorities can't be used.
    pub fn client_config(&self) -> Result<ClientConfig, TlsFileError> {
        let mut roots = self.roots()?;
        if self.ca.is_none() {
            roots.add_parsable_certificates(usable_authorities());
        }
        Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }

    /// The certificates of `ca_file`, if there is one.
    fn roots(&self) -> Result<RootCertStore, TlsFileError> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca {
            let wrong = |problem| TlsFileError { key: "ca_file", path: path.clone(), problem };
            for certificate in certificates(path).map_err(wrong)? {
                roots.add(certificate).map_err(|error| wrong(TlsFileProblem::BadCertificate(error)))?;
            }
        }
        Ok(roots)
    }
}

/// Whether this system has certificates of authorities. An image from scratch has none.
#[must_use]
pub fn system_has_authorities() -> bool {
    !usable_authorities().is_empty()
}

/// The system's certificates of authorities, in PEM.
#[must_use]
pub fn system_authorities() -> Vec<u8> {
    let one = |der: &CertificateDer<'_>| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    };
    usable_authorities().iter().map(one).collect::<String>().into_bytes()
}

/// Leaves out what rustls refuses: one bad certificate would make it refuse all.
fn usable_authorities() -> Vec<CertificateDer<'static>> {
    let mut found = rustls_native_certs::load_native_certs().certs;
    found.retain(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
    found
}

/// The certificates in a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileProblem> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all.map_err(|error| TlsFileProblem::pem(error, PemItem::Certificate))? {
        none if none.is_empty() => Err(TlsFileProblem::Missing(PemItem::Certificate)),
        all => Ok(all),
    }
}

/// Words in the error of a failed handshake (of rustls, the client or the server), and the advice. `{}` is the section.
/// The first match counts.
const CAUSES: [(&str, &str); 17] = [
    ("UnknownIssuer", "the server's certificate is of an authority that {}.ca_file does not name; check {}.ca_file"),
    ("BadSignature", "another authority of the same name signed the server's certificate; check {}.ca_file"),
    (
        "certificate not valid for name",
        "the server's certificate is for another host; check the host in {}.url, or have the certificate name it",
    ),
    ("certificate expired", "the server's certificate has expired; have the server behind {}.url show a new one"),
    ("certificate not valid yet", "the server's certificate does not hold yet; check the clocks"),
    ("invalid peer certificate", "check {}.ca_file, and the certificate of the server behind {}.url"),
    (
        "fatal alert: CertificateRequired",
        "the server wants a client certificate; set {}.client_cert_file and {}.client_key_file",
    ),
    (
        "fatal alert: CertificateExpired",
        "the server says that ours has expired; renew {}.client_cert_file and {}.client_key_file",
    ),
    (
        "fatal alert: UnknownCA",
        "the server does not know the authority of ours; check {}.client_cert_file and {}.client_key_file",
    ),
    (
        "fatal alert: BadCertificate",
        "the server wants a client certificate, or another one; check {}.client_cert_file and {}.client_key_file",
    ),
    (
        "fatal alert: Certificate",
        "the server does not take our certificate; check {}.client_cert_file and {}.client_key_file",
    ),
    (
        "fatal alert: DecryptError",
        "the server does not take our certificate; check {}.client_cert_file and {}.client_key_file",
    ),
    ("fatal alert", "the server broke the TLS handshake off; check {}.url, {}.ca_file and {}.client_cert_file"),
    ("InvalidContentType", "what answers there speaks no TLS; check scheme and port of {}.url"),
    ("peer is incompatible", "the server speaks no version or cipher of TLS that hookgate knows; it needs TLS 1.2"),
    ("client_cert_file", "check {}.client_cert_file and {}.client_key_file"),
    ("platform certs", "the system's own certificates can't be read; set {}.ca_file"),
];

/// What to do about an error, if TLS caused it. Trying again helps with none of these.
#[must_use]
pub fn advice(section: &str, problem: &str) -> Option<String> {
    let (_, advice) = CAUSES.iter().find(|(words, _)| problem.contains(words))?;
    Some(advice.replace("{}", section))
}
