//! Windows: stored once, found by device, class, bundle and time.

use pleach_domain::LatencyHistogram;
use pleach_domain::metrics::Confusion;
use pleach_domain::rollup::{Subject, add_up};
use pleach_domain::state::Span;
use pleach_domain::window::Window;
use pleach_store::windows::{self, Filter};
use pleach_store::{Page, devices, rollups};

use crate::fixture::{Fixture, class_id, device, digest};

on_both!(
    a_repeated_window_is_stored_once,
    many_windows_are_stored_with_one_statement_and_repeated_ones_left_out,
    windows_are_found_by_device_class_and_time,
    windows_of_a_bundle_come_newest_first,
    every_window_is_added_up_once_wherever_it_belongs,
    two_that_add_up_at_once_share_the_windows,
    old_windows_go_only_after_they_were_added_up,
);

fn window(number: u64, bundle: u8) -> Window {
    let mut latency = LatencyHistogram::new();
    (1..=number * 10).for_each(|i| latency.record_us(i * 100));
    Window {
        number,
        bundle: digest(bundle),
        rung: "rung-1".into(),
        start_ms: 1_000 * number as i64,
        duration_ms: 1_000,
        requests: number * 10,
        errors: 1,
        latency,
        confusion: (number % 2 == 1).then(|| Confusion::from_counts(2, vec![3, 1, 0, number]).unwrap()),
        cpu_us: u64::from(u32::MAX) * 4,
        memory_bytes: 1 << 40,
    }
}

async fn a_repeated_window_is_stored_once(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    assert!(windows::insert(&mut session, id, &window(1, 1), 5_000).await.unwrap());
    assert!(!windows::insert(&mut session, id, &Window { requests: 999, ..window(1, 1) }, 6_000).await.unwrap());
    let stored = windows::list(&mut session, &Filter::default(), Page::default()).await.unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!((&stored[0].window, &stored[0].device, stored[0].class.as_ref()), (&window(1, 1), id, Some(&class_id())));
    assert_eq!(stored[0].received_at_ms, 5_000);
}

async fn windows_are_found_by_device_class_and_time(f: Fixture) {
    let ids = f.class_of(2).await;
    let mut session = f.write().await;
    devices::insert(&mut session, &device(2), 1).await.unwrap();
    for id in [&ids[0], &ids[1], &device(2).id] {
        for number in 1..=4 {
            assert!(windows::insert(&mut session, id, &window(number, 1), 9_000).await.unwrap());
        }
    }
    let mut count = async |filter: Filter| windows::list(&mut session, &filter, Page::default()).await.unwrap().len();
    assert_eq!(count(Filter::default()).await, 12);
    assert_eq!(count(Filter { device: Some(ids[0].clone()), ..Filter::default() }).await, 4);
    assert_eq!(count(Filter { class: Some(class_id()), ..Filter::default() }).await, 8);
    assert_eq!(count(Filter { class: Some(class_id()), since_ms: 3_000, ..Filter::default() }).await, 4);
    let last = windows::list(&mut session, &Filter { device: Some(ids[1].clone()), ..Filter::default() }, Page::of(2)).await.unwrap();
    assert_eq!(last.iter().map(|w| w.window.number).collect::<Vec<_>>(), [3, 4], "the newest, newest last");
}

async fn windows_of_a_bundle_come_newest_first(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    for (number, bundle) in [(1, 1), (2, 1), (3, 2), (4, 1)] {
        windows::insert(&mut session, id, &window(number, bundle), 100 * number as i64).await.unwrap();
    }
    let found = windows::of_bundle(&mut session, &digest(1), 100, Page::default()).await.unwrap();
    assert_eq!(found.iter().map(|w| w.window.number).collect::<Vec<_>>(), [4, 2], "what arrived after");
}

async fn many_windows_are_stored_with_one_statement_and_repeated_ones_left_out(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    let all: Vec<Window> = (1..=300).map(|number| window(number, 1)).collect();
    assert_eq!(windows::insert_all(&mut session, id, &all[..200], 5_000).await.unwrap(), 200);
    assert_eq!(windows::insert_all(&mut session, id, &all, 6_000).await.unwrap(), 100);
    assert_eq!(windows::insert_all(&mut session, id, &[], 6_000).await.unwrap(), 0);
    let stored = windows::list(&mut session, &Filter::default(), Page::default()).await.unwrap();
    assert_eq!(stored.into_iter().map(|row| row.window).collect::<Vec<_>>(), all);
}

/// Adds up at most `limit` windows. Answers how many.
async fn roll(f: &Fixture, limit: u32) -> usize {
    let mut session = f.write().await;
    let taken = windows::take_unrolled(&mut session, Page::of(limit)).await.unwrap();
    for (key, sums) in add_up(taken.iter().map(|row| (&row.device, row.class.as_ref(), &row.window))) {
        rollups::add(&mut session, &key, &sums).await.unwrap();
    }
    session.commit().await.unwrap();
    taken.len()
}

async fn every_window_is_added_up_once_wherever_it_belongs(f: Fixture) {
    let ids = f.class_of(2).await;
    let store = async |id, numbers: &[u64]| {
        let mut session = f.write().await;
        let all: Vec<Window> = numbers.iter().map(|&number| window(number, 1)).collect();
        windows::insert_all(&mut session, id, &all, 5_000).await.unwrap();
        session.commit().await.unwrap();
    };
    store(&ids[0], &[50, 70]).await;
    store(&ids[1], &[130]).await;
    assert_eq!((roll(&f, 2).await, roll(&f, 2).await, roll(&f, 2).await), (2, 1, 0));
    // Late and repeated.
    store(&ids[0], &[10, 50]).await;
    assert_eq!((roll(&f, 100).await, roll(&f, 100).await), (1, 0));
    let class = Subject::Class(class_id());
    let filter = |subject: &Subject, span| rollups::Filter { subject: subject.clone(), span, since_ms: 0, until_ms: i64::MAX };
    let mut session = f.read().await;
    let minutes = rollups::list(&mut session, &filter(&class, Span::Minute), Page::default()).await.unwrap();
    let seen: Vec<_> = minutes.iter().map(|(key, sums)| (key.start_ms, sums.windows, sums.requests)).collect();
    assert_eq!(seen, [(0, 2, 600), (60_000, 1, 700), (120_000, 1, 1_300)]);
    assert_eq!(minutes[0].1.latency.count(), 600, "histograms merge");
    let day = rollups::list(&mut session, &filter(&class, Span::Day), Page::default()).await.unwrap();
    assert_eq!((day.len(), day[0].1.windows, day[0].1.errors, day[0].1.labelled), (1, 4, 4, 0));
    let own = rollups::list(&mut session, &filter(&Subject::Device(ids[0].clone()), Span::Hour), Page::default()).await.unwrap();
    assert_eq!((own.len(), own[0].1.windows), (1, 3));
    let until = rollups::Filter { until_ms: 60_000, ..filter(&class, Span::Minute) };
    assert_eq!(rollups::list(&mut session, &until, Page::default()).await.unwrap().len(), 1);
}

async fn two_that_add_up_at_once_share_the_windows(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    let all: Vec<Window> = (1..=40).map(|number| window(number, 1)).collect();
    windows::insert_all(&mut session, id, &all, 5_000).await.unwrap();
    session.commit().await.unwrap();
    let both = async || while roll(&f, 7).await > 0 {};
    tokio::join!(both(), both());
    let filter = rollups::Filter { subject: Subject::Class(class_id()), span: Span::Day, since_ms: 0, until_ms: i64::MAX };
    let day = rollups::list(&mut f.read().await, &filter, Page::default()).await.unwrap();
    assert_eq!(day[0].1.windows, 40);
}

async fn old_windows_go_only_after_they_were_added_up(f: Fixture) {
    let id = &f.class_of(1).await[0];
    let mut session = f.write().await;
    windows::insert_all(&mut session, id, &[window(1, 1), window(2, 1)], 5_000).await.unwrap();
    assert_eq!(windows::forget(&mut session, 9_000, Page::default()).await.unwrap(), 0);
    session.commit().await.unwrap();
    roll(&f, 1).await;
    let mut session = f.write().await;
    assert_eq!(windows::forget(&mut session, 9_000, Page::default()).await.unwrap(), 1);
    assert_eq!(windows::forget(&mut session, 5_000, Page::default()).await.unwrap(), 0);
    assert!(rollups::forget(&mut session, Span::Hour, i64::MAX).await.unwrap() > 0);
    assert_eq!(rollups::forget(&mut session, Span::Hour, i64::MAX).await.unwrap(), 0);
}
