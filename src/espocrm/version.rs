//! Versions of EspoCRM, and what changed for webhooks from one to the next.

use std::fmt;

/// A version as the CRM names it, such as 9.3.10. What stands behind the third number is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrmVersion([u32; 3]);

impl CrmVersion {
    /// Webhooks know `skipOwn`.
    pub const SKIP_OWN: Self = Self([9, 2, 0]);
    /// Private addresses are called only if `webhookAllowedAddressList` names them.
    pub const ALLOWED_LIST: Self = Self([9, 3, 2]);
    /// One failed answer of DNS is final for a batch, and `/etc/hosts` does not count.
    pub const DNS_IS_FINAL: Self = Self([9, 3, 4]);
    /// A refused connection is final for a batch, and an allowed IP address crashes the job.
    pub const REFUSED_IS_FINAL: Self = Self([10, 0, 0]);

    /// Reads a version; `None` if it is none, as in a copy of the source.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-', '+']).map(|part| part.parse().ok());
        let major = numbers.next()??;
        Some(Self([major, numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0)]))
    }
}

impl fmt::Display for CrmVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(out, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let version = |text| CrmVersion::parse(text).expect("it is a version");
        assert!(version("9.3.10") > CrmVersion::ALLOWED_LIST && version("9.3.1") < CrmVersion::ALLOWED_LIST);
        assert!(version("10.0.0-beta1") == CrmVersion::REFUSED_IS_FINAL && version("9.10") < version("10"));
        assert_eq!(version("8.4.2").to_string(), "8.4.2");
        assert_eq!(CrmVersion::parse("@@version"), None);
        assert_eq!(CrmVersion::parse(""), None);
    }
}
