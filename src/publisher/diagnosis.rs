//! What an error of NATS means to an operator: how NATS is, what is wrong, and what to do. Only here are the words of NATS
//! and its client library read. (What is wrong with a stream is in `judgement`.)

use super::{login, servers::CONNECT_TIMEOUT};
use crate::{nats_login::Login, readiness::Contact, tls};

/// What a failed attempt to connect says of a server, or of several if nobody knows of which.
pub(super) fn diagnose(server: &str, error: &str, as_whom: &Login) -> Contact {
    let server = server.trim_end_matches('/');
    let said = error.strip_prefix("IO error: ").unwrap_or(error);
    if is_refusal(error) {
        let said = said.rsplit(": ").next().unwrap_or(said);
        return Contact::Refused(format!("{server} does not let hookgate in ({said}): {}", login::advice(as_whom)));
    }
    if let Some(advice) = tls::advice("nats", error) {
        return Contact::Refused(format!("connect to {server}: {said}; {advice}"));
    }
    if said.starts_with("DNS error") {
        return unknown_host(server);
    }
    Contact::Unreachable(if said.starts_with("Connection refused") {
        format!("nothing listens on {server}; is NATS running there? (nats.url)")
    } else if said == "timed out" {
        format!("no answer from {server} within {CONNECT_TIMEOUT:?}; is it NATS that listens there, and does it work?")
    } else if said.starts_with("expected INFO") {
        format!("what answers on {server} is not NATS; check the port in nats.url")
    } else {
        format!("connect to {server}: {said}")
    })
}

/// No address is known of a server's host.
pub(super) fn unknown_host(server: &str) -> Contact {
    Contact::Unreachable(format!("no address is known of the host in {server}; check nats.url and the DNS"))
}

/// How it is with servers that deny something.
pub(super) fn denied(servers: &str, denial: &str) -> Contact {
    Contact::Refused(format!("{servers}: {denial}: grant it; docs/permissions.md has all that hookgate needs"))
}

/// Whether an error of the server is a permission that it denies.
pub(super) fn is_denial(text: &str) -> bool {
    text.to_ascii_lowercase().starts_with("permissions violation")
}

fn is_refusal(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["authorization", "authentication", "failed signing nonce"].iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_is_wrong_and_what_to_do() {
        let user = || Login::User { name: "gate".to_owned(), password: "secret".to_owned() };
        let cases = [
            (
                Login::None,
                "IO error: Connection refused (os error 111)",
                "unreachable",
                "nothing listens on nats://nats.test:4222; is NATS running there? (nats.url)",
            ),
            (
                Login::None,
                "DNS error: failed to lookup address information: Name or service not known",
                "unreachable",
                "no address is known of the host in nats://nats.test:4222; check nats.url and the DNS",
            ),
            (
                Login::None,
                "timed out",
                "unreachable",
                "no answer from nats://nats.test:4222 within 2s; is it NATS that listens there, and does it work?",
            ),
            (
                Login::None,
                "IO error: expected INFO, got nothing",
                "unreachable",
                "what answers on nats://nats.test:4222 is not NATS; check the port in nats.url",
            ),
            (
                Login::None,
                "authorization violation: nats: authorization violation",
                "refused",
                "nats://nats.test:4222 does not let hookgate in (authorization violation): the server wants a login: set nats.credentials_file, nats.nkey_seed_file, nats.user with nats.password_file, or nats.token_file",
            ),
            (
                user(),
                "authorization violation: nats: authorization violation",
                "refused",
                "nats://nats.test:4222 does not let hookgate in (authorization violation): check nats.user and nats.password_file, or the credentials in nats.url",
            ),
            (
                user(),
                "IO error: received corrupt message of type InvalidContentType",
                "refused",
                "connect to nats://nats.test:4222: received corrupt message of type InvalidContentType; what answers there speaks no TLS; check scheme and port of nats.url",
            ),
        ];
        for (login, error, state, expected) in cases {
            let contact = diagnose("nats://nats.test:4222/", error, &login);
            assert_eq!((contact.code(), contact.problem()), (state, Some(expected)), "{error:?}");
        }
    }
}
