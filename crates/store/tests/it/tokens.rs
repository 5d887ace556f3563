//! Enrolment tokens and API tokens.

use pleach_domain::role::Role;
use pleach_store::api_tokens::{self, ApiToken};
use pleach_store::{Page, tokens};

use crate::fixture::{Fixture, digest};

on_both!(
    a_counted_token_is_used_up,
    an_expired_token_has_no_uses,
    of_two_who_take_the_last_use_one_gets_it,
    api_tokens_expire_and_are_taken_back
);

async fn a_counted_token_is_used_up(f: Fixture) {
    f.token("t", 2, 1_000).await;
    let id = "t".parse().unwrap();
    for (expected, left) in [(true, 1), (true, 0), (false, 0)] {
        let mut session = f.write().await;
        assert_eq!(tokens::take_use(&mut session, &id, 999).await.unwrap(), expected);
        session.commit().await.unwrap();
        let token = tokens::find(&mut f.read().await, &id).await.unwrap().unwrap();
        assert_eq!((token.uses_left, token.labels["site"].as_str(), token.secret_sha256), (left, "berlin", digest(7)));
    }
    assert_eq!(tokens::list(&mut f.read().await, Page::default()).await.unwrap().len(), 1);
}

async fn an_expired_token_has_no_uses(f: Fixture) {
    f.token("t", 2, 1_000).await;
    assert!(!tokens::take_use(&mut f.write().await, &"t".parse().unwrap(), 1_000).await.unwrap());
    assert!(!tokens::take_use(&mut f.write().await, &"other".parse().unwrap(), 1).await.unwrap());
}

async fn of_two_who_take_the_last_use_one_gets_it(f: Fixture) {
    f.token("t", 1, 1_000).await;
    let take = |store: pleach_store::Store| async move {
        let mut session = store.write().await.unwrap();
        let taken = tokens::take_use(&mut session, &"t".parse().unwrap(), 1).await.unwrap();
        session.commit().await.unwrap();
        taken
    };
    let (a, b) = tokio::join!(tokio::spawn(take(f.store.clone())), tokio::spawn(take(f.store.clone())));
    assert!(a.unwrap() ^ b.unwrap());
}

async fn api_tokens_expire_and_are_taken_back(f: Fixture) {
    let token = ApiToken { id: "admin".parse().unwrap(), role: Role::Admin, created_at_ms: 1, expires_at_ms: Some(100) };
    let mut session = f.write().await;
    assert!(!api_tokens::any(&mut session).await.unwrap());
    assert!(api_tokens::insert(&mut session, &token, &digest(1)).await.unwrap());
    assert!(!api_tokens::insert(&mut session, &token, &digest(2)).await.unwrap(), "the name is taken");
    assert!(api_tokens::any(&mut session).await.unwrap());
    assert_eq!(api_tokens::authenticate(&mut session, &digest(1), 99).await.unwrap(), Some(token.clone()));
    assert_eq!(api_tokens::authenticate(&mut session, &digest(1), 100).await.unwrap(), None);
    assert_eq!(api_tokens::authenticate(&mut session, &digest(2), 1).await.unwrap(), None);
    assert_eq!(api_tokens::list(&mut session, Page::default()).await.unwrap(), std::slice::from_ref(&token));
    assert!(api_tokens::remove(&mut session, &token.id).await.unwrap());
    assert_eq!(api_tokens::authenticate(&mut session, &digest(1), 1).await.unwrap(), None);
    assert!(!api_tokens::remove(&mut session, &token.id).await.unwrap());
}
