//! Keeps passwords in addresses out of messages.

/// An address without user and password, for messages.
#[must_use]
pub fn without_credentials(address: &str) -> String {
    let (scheme, rest) = address.find("://").map_or(("", address), |at| address.split_at(at + 3));
    if let Some((_, host)) = rest.rsplit_once('@') {
        return format!("{scheme}***@{host}");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rsplit_once(':') {
        // Not a port, but perhaps a password with a comma or a slash in it.
        Some((host, port)) if !port.ends_with(']') && !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{scheme}{host}:***")
        }
        _ => address.to_owned(),
    }
}

/// Takes user and password out of every address in a message.
#[must_use]
pub fn hide_credentials(message: &str) -> String {
    let end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',');
    let words = message.split_inclusive(end).map(|word| match word.trim_end_matches(end) {
        address if address.contains("://") || address.contains('@') => {
            format!("{}{}", without_credentials(address), &word[address.len()..])
        }
        _ => word.to_owned(),
    });
    words.collect()
}
