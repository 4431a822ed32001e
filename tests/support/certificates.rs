//! A private authority and what it signs, as files.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// An authority, with a folder for its own certificate and those it signs.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// Until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Now,
    NoMore,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Authority {}", uuid::Uuid::new_v4()));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("keys can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("it can sign itself");
        let this = Self { folder: tempfile::tempdir().expect("a temporary folder can be made"), issuer };
        std::fs::write(this.ca(), this.issuer.pem()).expect("the folder is ours");
        this
    }

    /// The file with its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What a server or client on this machine shows. The same file name again: a renewal in its place.
    pub(crate) fn sign(&self, file: &str, name: &str, holds: Holds) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).expect("it is a name");
        params.distinguished_name.push(DnType::CommonName, name);
        if holds == Holds::NoMore {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().expect("keys can be made");
        let signed = params.signed_by(&key, &self.issuer).expect("the authority can sign");
        let path = |kind: &str| self.folder.path().join(format!("{file}.{kind}.pem"));
        let identity = Identity { cert: path("cert"), key: path("key") };
        std::fs::write(&identity.cert, signed.pem()).expect("the folder is ours");
        std::fs::write(&identity.key, key.serialize_pem()).expect("the folder is ours");
        identity
    }
}
