//! The CRM's API, as `[espocrm]` says.

mod inspect;

use std::{io, path::PathBuf};

use url::Url;

use crate::{
    espocrm::{self, EspoCrm, Login},
    redaction::without_credentials,
    secrets, settings,
};

pub use self::inspect::{CrmNumbers, inspect};

/// Why the CRM of the settings can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum CrmSettingsError {
    /// It is not configured.
    #[error(
        "{0} is not set; [espocrm] says where the CRM is and as whom to ask it: url, and api_key_file or user and password_file"
    )]
    Missing(&'static str),
    /// Two ways to log in.
    #[error("espocrm.api_key_file and espocrm.user are both set; leave one of them out")]
    TwoLogins,
    /// The address is none.
    #[error("espocrm.url {0:?} is no http or https address; write https://crm.example.com")]
    Url(String),
    /// A file can't be read.
    #[error("{key} = {path:?}: read file: {error}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The client can't be made.
    #[error(transparent)]
    Setup(#[from] espocrm::SetupError),
}

/// The CRM of the settings.
///
/// # Errors
/// If it is not configured, or its files can't be read.
pub fn open(settings: &settings::EspoCrm) -> Result<EspoCrm, CrmSettingsError> {
    let settings::EspoCrm { url, api_key_file, user, password_file, ca_file } = settings;
    let secret = |key, path: &PathBuf| match secrets::text(path) {
        Ok(text) => Ok(secrets::Secret::from(text.as_str())),
        Err(error) => Err(CrmSettingsError::File { key, path: path.clone(), error }),
    };
    let url = url.as_ref().ok_or(CrmSettingsError::Missing("espocrm.url"))?;
    let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let parsed = parsed.filter(|url| url.username().is_empty() && url.password().is_none() && url.query().is_none());
    let url = parsed.ok_or_else(|| CrmSettingsError::Url(without_credentials(url)))?;
    let login = match (api_key_file, user, password_file) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => return Err(CrmSettingsError::TwoLogins),
        (Some(path), None, None) => Login::ApiKey(secret("espocrm.api_key_file", path)?),
        (None, Some(name), Some(path)) => {
            Login::User { name: name.clone(), password: secret("espocrm.password_file", path)? }
        }
        (None, Some(_), None) => return Err(CrmSettingsError::Missing("espocrm.password_file")),
        (None, None, Some(_)) => return Err(CrmSettingsError::Missing("espocrm.user")),
        (None, None, None) => return Err(CrmSettingsError::Missing("espocrm.api_key_file or espocrm.user")),
    };
    Ok(EspoCrm::new(&espocrm::Access { url, login, ca: ca_file.clone() })?)
}
