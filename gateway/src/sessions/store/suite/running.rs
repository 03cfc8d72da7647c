//! Turns that run, their tokens, and restarts.

use super::*;

fn tokens(turn: u128, first: u32, token_ids: &[u32]) -> Appended {
    Appended { turn: turn_id(turn), first, token_ids: token_ids.to_vec() }
}

/// What the turns that run are, and how far.
async fn claimed(store: &dyn Store) -> Vec<(u128, Vec<u32>, bool)> {
    let claimed = store.claim().await.unwrap();
    claimed.into_iter().map(|claim| (claim.turn.id.0.as_u128(), claim.token_ids, claim.stop)).collect()
}

pub async fn running_turns_are_claimed_once_after_a_restart(bed: &dyn Bed) {
    let store = bed.open().await;
    let (one, other) = (talked(&*store, 1, &[1]).await, talked(&*store, 2, &[2]).await);
    store.begin("t", other, new_turn(4)).await.unwrap();
    store.begin("t", one, new_turn(3)).await.unwrap();
    assert_eq!(store.claim().await, Ok(vec![]));
    drop(store);

    let store = bed.open().await;
    let (tenant, turn) =
        ("t".to_owned(), Turn { id: turn_id(3), index: 1, accepted: said("hello", 200), answer: None });
    let first = Claimed { tenant, session: one, turn, token_ids: vec![], stop: false };
    let claimed_now = store.claim().await.unwrap();
    assert_eq!(claimed_now[0], first);
    assert_eq!(claimed_now.iter().map(|claim| claim.session).collect::<Vec<_>>(), [one, other]);
    assert_eq!(store.claim().await, Ok(vec![]));
    store.finish(turn_id(3), answer("", 0)).await.unwrap();
    drop(store);

    assert_eq!(claimed(&*bed.open().await).await, [(4, vec![], false)]);
}

pub async fn tokens_and_stops_outlive_a_restart(bed: &dyn Bed) {
    let store = bed.open().await;
    let (one, other) = (talked(&*store, 1, &[]).await, talked(&*store, 2, &[]).await);
    store.begin("t", one, new_turn(1)).await.unwrap();
    store.begin("t", other, new_turn(2)).await.unwrap();
    store.append(vec![tokens(1, 0, &[10, 11]), tokens(2, 0, &[20])]).await.unwrap();
    store.append(vec![tokens(1, 2, &[12])]).await.unwrap();
    store.stop(turn_id(2)).await.unwrap();
    drop(store);

    let store = bed.open().await;
    assert_eq!(claimed(&*store).await, [(1, vec![10, 11, 12], false), (2, vec![20], true)]);
    assert_eq!(store.stops().await, Ok(vec![turn_id(2)]));
    assert_eq!(store.append(vec![tokens(1, 3, &[13])]).await, Ok(vec![]));
    store.stop(turn_id(1)).await.unwrap();
    assert_eq!(store.stops().await, Ok(vec![turn_id(1), turn_id(2)]));
    drop(store);
    assert_eq!(claimed(&*bed.open().await).await, [(1, vec![10, 11, 12, 13], true), (2, vec![20], true)]);
}

pub async fn tokens_follow_one_another(bed: &dyn Bed) {
    let store = bed.open().await;
    let (one, other) = (talked(&*store, 1, &[]).await, talked(&*store, 2, &[]).await);
    store.begin("t", one, new_turn(1)).await.unwrap();
    store.begin("t", other, new_turn(2)).await.unwrap();
    store.append(vec![tokens(1, 0, &[10, 11])]).await.unwrap();
    // Said again, and with more.
    store.append(vec![tokens(1, 0, &[10, 11])]).await.unwrap();
    store.append(vec![tokens(1, 1, &[11, 12])]).await.unwrap();
    // A gap, and another token: nothing of such a call is done.
    let gap = StoreError::NotNext { turn: turn_id(1), has: 3, first: 4 };
    assert_eq!(store.append(vec![tokens(2, 0, &[20]), tokens(1, 4, &[14])]).await, Err(gap));
    let differs = StoreError::OtherToken { turn: turn_id(1), index: 2 };
    assert_eq!(store.append(vec![tokens(2, 0, &[20]), tokens(1, 2, &[99])]).await, Err(differs));
    drop(store);
    assert_eq!(claimed(&*bed.open().await).await, [(1, vec![10, 11, 12], false), (2, vec![], false)]);
}

pub async fn tokens_of_ended_turns_are_left_out(bed: &dyn Bed) {
    let store = bed.open().await;
    let (one, other) = (talked(&*store, 1, &[1]).await, talked(&*store, 2, &[]).await);
    store.begin("t", other, new_turn(2)).await.unwrap();
    let mixed = vec![tokens(1, 5, &[10]), tokens(9, 0, &[1]), tokens(2, 0, &[20]), tokens(1, 6, &[11])];
    assert_eq!(store.append(mixed).await, Ok(vec![turn_id(1), turn_id(9)]));
    store.stop(turn_id(9)).await.unwrap();
    let turns = store.turns("t", one, 0, 1).await.unwrap();
    assert_eq!(turns[0].answer, Some(answer("hi", 300)));
    // The turn of that name has none of them.
    store.begin("t", one, new_turn(9)).await.unwrap();
    drop(store);
    assert_eq!(claimed(&*bed.open().await).await, [(2, vec![20], false), (9, vec![], false)]);
}

pub async fn what_nobody_runs_is_nobodys(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[]).await;
    store.begin("t", id, new_turn(1)).await.unwrap();
    store.append(vec![tokens(1, 0, &[10])]).await.unwrap();
    store.append(vec![tokens(1, 1, &[11, 12])]).await.unwrap();
    assert_eq!(store.tokens(turn_id(1), 0).await, Ok(None), "who runs it has them");
    drop(store);

    let store = bed.open().await;
    assert_eq!(store.append(vec![tokens(1, 3, &[13])]).await, Ok(vec![turn_id(1)]));
    assert_eq!(store.finish(turn_id(1), answer("", 0)).await, Err(StoreError::Taken(turn_id(1))));
    store.discard(turn_id(1)).await.unwrap();
    let tokens_from = async |first| store.tokens(turn_id(1), first).await.unwrap();
    assert_eq!(tokens_from(0).await, Some(vec![10, 11, 12]));
    assert_eq!(tokens_from(2).await, Some(vec![12]));
    assert_eq!((tokens_from(3).await, tokens_from(9).await), (Some(vec![]), Some(vec![])));
    assert_eq!(store.tokens(turn_id(9), 0).await, Ok(None));
    // Whoever runs it will hear of this.
    store.stop(turn_id(1)).await.unwrap();
    assert_eq!(store.stops().await, Ok(vec![]));
    assert_eq!(claimed(&*store).await, [(1, vec![10, 11, 12], true)]);
    assert_eq!(tokens_from(0).await, None);
    assert_eq!(store.stops().await, Ok(vec![turn_id(1)]));
    store.finish(turn_id(1), answer("", 0)).await.unwrap();
    assert_eq!(store.stops().await, Ok(vec![]));
}

pub async fn a_turn_taken_back_leaves_nothing(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1]).await;
    let kept = bytes_kept(&*store, id).await;
    store.begin("t", id, new_turn(2)).await.unwrap();
    store.discard(turn_id(2)).await.unwrap();
    store.discard(turn_id(2)).await.unwrap();
    assert_eq!(bytes_kept(&*store, id).await, kept);
    assert_eq!(names(&*store, id).await, [turn_id(1)]);
    assert_eq!(store.session("t", id).await.unwrap().running, None);
    assert_eq!(store.finish(turn_id(2), answer("", 0)).await, Err(StoreError::NoTurn(turn_id(2))));
    drop(store);
    let store = bed.open().await;
    assert_eq!(store.claim().await, Ok(vec![]));
    assert_eq!(store.expire(u64::MAX, 10).await, Ok(1));
}

pub async fn a_running_turn_holds_its_session(bed: &dyn Bed) {
    let store = bed.open().await;
    let id = talked(&*store, 1, &[1]).await;
    store.begin("t", id, new_turn(2)).await.unwrap();
    let runs = StoreError::Conflict { session: id, version: 4, why: Conflict::Running };
    assert_eq!(store.truncate("t", id, ANY, 0).await, Err(runs.clone()));
    assert_eq!(store.delete("t", id, ANY).await, Err(runs.clone()));
    assert_eq!(store.fork("t", id, new_fork(2, 2)).await, Err(runs));
    assert_eq!(store.expire(u64::MAX, 10).await, Ok(0));
    assert_eq!(store.fork("t", id, new_fork(2, 1)).await.unwrap().turns, 1);
    assert_eq!(names(&*store, id).await, [turn_id(1), turn_id(2)]);
}
