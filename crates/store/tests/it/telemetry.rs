//! Windows: stored once, found by device, class, bundle and time.

use pleach_domain::LatencyHistogram;
use pleach_domain::metrics::Confusion;
use pleach_domain::window::Window;
use pleach_store::windows::{self, Filter};
use pleach_store::{Page, devices};

use crate::fixture::{Fixture, class_id, device, digest};

on_both!(a_repeated_window_is_stored_once, windows_are_found_by_device_class_and_time, windows_of_a_bundle_come_newest_first);

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
