//! The client of EspoCRM's API, against a stand-in that refuses what the real one refuses.

use std::time::{Duration, SystemTime};

use hookgate::{
    espocrm::{Access, ChangesOf, CrmError, EspoCrm as Client, Login},
    secrets::Secret,
};

use crate::support::{API_KEY, Authority, EspoCrm, Holds, NAME, Read};

const CREATE: &str = "CBeteiligte.create";

fn access(crm: &EspoCrm, login: Login) -> Access {
    Access { url: crm.url().parse().expect("it is an address"), login, ca: None }
}

fn admin(crm: &EspoCrm) -> Client {
    let login = Login::User { name: "admin".to_owned(), password: Secret::from("admin-password") };
    Client::new(&access(crm, login)).expect("it can be asked")
}

fn api_user(crm: &EspoCrm) -> Client {
    Client::new(&access(crm, Login::ApiKey(Secret::from(API_KEY)))).expect("it can be asked")
}

/// Whole seconds, as the CRM's times are.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

async fn all_failed(client: &Client) -> Vec<String> {
    let (mut found, mut behind) = (Vec::new(), 0);
    loop {
        let page = client.failed_items(&[CREATE.to_owned()], behind).await.expect("the CRM answers");
        found.extend(page.iter().filter_map(|item| item.target_id.clone()));
        match page.last() {
            Some(last) if page.len() == hookgate::espocrm::PAGE => behind = last.number,
            _ => return found,
        }
    }
}

async fn all_changes(client: &Client, of: ChangesOf, since: SystemTime, until: Option<SystemTime>) -> Vec<String> {
    let mut changes = client.changes(of, since, until);
    let mut found = Vec::new();
    while let Some(page) = changes.next().await.expect("the CRM answers") {
        found.extend(page.into_iter().map(|change| change.id));
    }
    found
}

#[tokio::test]
async fn failed_items_are_read_page_by_page_and_removed() {
    let crm = EspoCrm::start().await;
    let mut ids = Vec::new();
    for number in 0..450 {
        ids.push(crm.state().add_failed(CREATE, &format!("id-{number}"), now()));
    }
    crm.state().add_failed("CBeteiligte.update", "another", now());
    let client = admin(&crm);
    let expected: Vec<_> = (0..450).map(|number| format!("id-{number}")).collect();
    assert_eq!(all_failed(&client).await, expected);
    client.remove_items(&ids[..449]).await.expect("the CRM removes them");
    assert_eq!(crm.state().failed(), ["id-449", "another"]);
    client.remove_items(&ids[..1]).await.expect("one that is gone is no failure");
    assert_eq!(client.count_failed(&[CREATE.to_owned()], 10).await.expect("the CRM answers"), 1);
    // It removes none at once, so one by one.
    crm.state().version = "8.4.2";
    client.remove_items(&ids[440..]).await.expect("the CRM removes it");
    assert_eq!(crm.state().failed(), ["another"]);
}

#[tokio::test]
async fn a_refusal_says_what_the_user_lacks() {
    let crm = EspoCrm::start().await;
    crm.state().add_record("CBeteiligte", "a", now(), now());
    let refused = api_user(&crm).failed_items(&[CREATE.to_owned()], 0).await.expect_err("only for administrators");
    let said = refused.to_string();
    assert!(refused.is_denied() && said.contains("403") && said.contains("No access to scope."), "{said}");
    assert!(said.contains("needs an administrator: set espocrm.user"), "{said}");

    let login = Login::ApiKey(Secret::from("wrong"));
    let stranger = Client::new(&access(&crm, login)).expect("it can be asked");
    let said = stranger.webhooks("CBeteiligte").await.expect_err("it is no key").to_string();
    assert!(said.contains("401") && said.contains("api_key_file") && !said.contains("wrong"), "{said}");

    crm.state().read = Read::No;
    let of = ChangesOf::Created { entity_type: "CBeteiligte".to_owned() };
    let client = api_user(&crm);
    let said = client.changes(of, now(), None).next().await.expect_err("its role may not").to_string();
    assert!(said.contains("read: all"), "{said}");
}

#[tokio::test]
async fn records_are_found_while_others_change_them() {
    let crm = EspoCrm::start().await;
    let start = now() - Duration::from_secs(10_000);
    let at = move |seconds: u64| start + Duration::from_secs(seconds);
    for number in 0..500_u64 {
        // Many of one second, as a mass update makes them.
        let time = if (100..450).contains(&number) { at(100) } else { at(number) };
        crm.state().add_record("CBeteiligte", &format!("id-{number}"), at(0), time);
    }
    // While the first page is read, records of it and behind it are changed, and move to the end.
    crm.state().meanwhile.push(Box::new(move |state| {
        for number in 10..60 {
            state.modify("CBeteiligte", &format!("id-{number}"), at(5000 + number));
        }
    }));
    let client = api_user(&crm);
    let modified = ChangesOf::Modified { entity_type: "CBeteiligte".to_owned() };
    let mut found = all_changes(&client, modified.clone(), at(1), None).await;
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 499, "all but the one that was never modified");

    let until = all_changes(&client, modified, at(1), Some(at(99))).await;
    assert_eq!(until.len(), 49, "1 to 99 without those that moved");
    let created = ChangesOf::Created { entity_type: "CBeteiligte".to_owned() };
    assert_eq!(all_changes(&client, created, at(1), None).await.len(), 0);
}

#[tokio::test]
async fn deleted_records_are_in_the_history_of_actions() {
    let crm = EspoCrm::start().await;
    crm.state().add_record("CBeteiligte", "a", now(), now());
    crm.state().add_record("CBeteiligte", "b", now(), now());
    crm.state().delete_record("CBeteiligte", "a", now());
    let deleted = ChangesOf::Deleted { entity_type: "CBeteiligte".to_owned() };
    assert_eq!(all_changes(&admin(&crm), deleted.clone(), now() - Duration::from_secs(60), None).await, ["a"]);
    let refused = api_user(&crm).changes(deleted, now(), None).next().await.expect_err("only for administrators");
    assert!(refused.is_denied());
}

#[tokio::test]
async fn what_passes_is_tried_again_and_what_does_not_is_told_without_the_answer() {
    let crm = EspoCrm::start().await;
    crm.state().add_failed(CREATE, "a", now());
    crm.state().failing = vec![503, 502];
    assert_eq!(all_failed(&admin(&crm)).await, ["a"]);

    let page = format!("{{\"list\":[{{\"id\":\"{NAME}\",\"number\":\"{NAME}\",\"event\":1}}]}}");
    let server =
        crate::support::HttpServer::start(None, move |_request| hyper::Response::new(page.clone().into())).await;
    let login = Login::ApiKey(Secret::from(API_KEY));
    let access = Access { url: server.url().parse().expect("it is an address"), login, ca: None };
    let client = Client::new(&access).expect("it can be asked");
    let error = client.failed_items(&[], 0).await.expect_err("it is no answer of the API");
    assert!(matches!(error, CrmError::NotUnderstood { .. }) && !error.to_string().contains(NAME), "{error}");
}

#[tokio::test]
async fn the_clocks_are_compared() {
    let crm = EspoCrm::start().await;
    crm.state().clock_ahead = Duration::from_secs(600);
    let client = admin(&crm);
    assert_eq!(client.clock(), None);
    all_failed(&client).await;
    let clock = client.clock().expect("an answer has a date");
    assert!(clock.ahead && clock.apart.abs_diff(Duration::from_secs(600)) < Duration::from_secs(5), "{clock:?}");
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_if_it_is_named() {
    let authority = Authority::new();
    let identity = authority.sign("crm", "localhost", Holds::Now);
    let crm = EspoCrm::start_with(Some(&identity)).await;
    crm.state().add_webhook(CREATE, "https://hooks.example.com/", true, true);
    let said = api_user(&crm).webhooks("CBeteiligte").await.expect_err("nobody trusts it").to_string();
    assert!(said.contains("check espocrm.ca_file"), "{said}");
    let mut access = access(&crm, Login::ApiKey(Secret::from(API_KEY)));
    access.ca = Some(authority.ca());
    let found = Client::new(&access).expect("it can be asked").webhooks("CBeteiligte").await.expect("it is trusted");
    assert!(found[0].is_active && found[0].event.as_deref() == Some(CREATE));
}
