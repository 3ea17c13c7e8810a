//! The checker must see each fault as what it is: a hole, a repetition, a swap, an announced gap, a wrong offset, a wrong
//! epoch; and a long random run against a plain list of what was sent.
use super::*;

const LAYOUT: Layout = Layout { channels: 1, subscriptions: 1 };

fn subscribed() -> PositionChecker {
    let mut checker = PositionChecker::new(LAYOUT, 0, 1);
    assert_eq!(checker.position(0), None);
    checker.answered(0, Answer { epoch: "a", offset: 10, recovered: false });
    assert_eq!(checker.position(0), Some(("a", 10)));
    checker
}

/// Delivers numbers whose offsets are right: number n is at offset n + 11.
fn deliver(checker: &mut PositionChecker, numbers: &[u32]) -> Counts {
    for &number in numbers {
        checker.take(0, number, u64::from(number) + 11);
    }
    checker.counts()
}

#[test]
fn a_first_subscribe_is_no_recovery_and_in_order_is_intact() {
    let mut checker = subscribed();
    let counts = deliver(&mut checker, &[0, 1, 2, 3]);
    assert_eq!(counts, Counts { received: 4, ..Counts::default() });
    assert!(counts.intact());
    assert_eq!(checker.position(0), Some(("a", 14)));
    assert!(!checker.settled(), "it is not over");
    checker.ended(vec![5]);
    assert!(!checker.settled());
    checker.ended(vec![4]);
    assert!(checker.settled());
}

#[test]
fn behind_an_announcement_only_a_last_answer_settles() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    checker.answered(0, Answer { epoch: "b", offset: 3, recovered: false });
    assert!(checker.in_doubt().is_empty(), "it is not over");
    checker.ended(vec![5]);
    assert!(!checker.settled(), "more may have been published behind the answer");
    assert_eq!(checker.in_doubt(), [0]);
    checker.answered(0, Answer { epoch: "b", offset: 3, recovered: true });
    assert!(checker.settled() && checker.in_doubt().is_empty());
    let (counts, _) = checker.finish(&[5], &[]);
    assert_eq!((counts.announced, counts.missing_at_end, counts.lost), (3, 0, 0));
}

#[test]
fn an_answer_settles_nothing_without_an_announcement() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    checker.ended(vec![3]);
    checker.answered(0, Answer { epoch: "a", offset: 12, recovered: true });
    assert!(!checker.settled() && checker.in_doubt().is_empty());
}

#[test]
fn a_hole_is_lost() {
    let mut checker = subscribed();
    let counts = deliver(&mut checker, &[0, 1, 4, 5]);
    assert_eq!(counts, Counts { received: 4, lost: 2, wrong_offsets: 1, ..Counts::default() });
    assert!(!counts.intact() && !counts.never_silent());
}

#[test]
fn a_hole_with_dense_offsets_is_still_lost() {
    // A server that numbers what it has left anew hides nothing.
    let mut checker = subscribed();
    checker.take(0, 0, 11);
    checker.take(0, 2, 12);
    assert_eq!(checker.counts(), Counts { received: 2, lost: 1, ..Counts::default() });
}

#[test]
fn a_repetition_is_a_duplicate() {
    let mut checker = subscribed();
    let counts = deliver(&mut checker, &[0, 1, 1, 2]);
    assert_eq!(counts, Counts { received: 3, duplicates: 1, wrong_offsets: 1, ..Counts::default() });
    assert_eq!(checker.position(0), Some(("a", 13)), "a repetition does not throw it back");
}

#[test]
fn a_swap_is_disorder_and_nothing_is_lost() {
    let mut checker = subscribed();
    let counts = deliver(&mut checker, &[0, 2, 1, 3]);
    assert_eq!((counts.received, counts.lost, counts.duplicates, counts.disordered), (4, 0, 0, 1));
    assert!(counts.wrong_offsets > 0 && !counts.never_silent());
}

#[test]
fn what_is_missing_behind_recovered_false_is_announced() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    checker.answered(0, Answer { epoch: "b", offset: 3, recovered: false });
    assert_eq!(checker.position(0), Some(("b", 3)));
    assert!(checker.take(0, 5, 4));
    assert!(checker.take(0, 6, 5));
    let counts = checker.counts();
    assert_eq!(counts, Counts { received: 4, announced: 3, unrecovered: 1, ..Counts::default() });
    assert!(counts.never_silent() && !counts.intact());
    // The announcement covers one gap only.
    checker.take(0, 8, 6);
    assert_eq!(checker.counts().lost, 1);
}

#[test]
fn a_needless_announcement_is_counted() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    checker.answered(0, Answer { epoch: "a", offset: 12, recovered: false });
    let counts = deliver(&mut checker, &[2]);
    assert_eq!((counts.unrecovered, counts.unrecovered_needlessly, counts.announced), (1, 1, 0));
    assert!(counts.intact());
}

#[test]
fn what_comes_again_behind_recovered_false_is_announced_too() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1, 2]);
    checker.answered(0, Answer { epoch: "b", offset: 1, recovered: false });
    checker.take(0, 1, 2);
    checker.take(0, 2, 3);
    let counts = checker.counts();
    assert_eq!((counts.announced_repeats, counts.duplicates, counts.lost), (2, 0, 0));
    assert!(counts.never_silent() && !counts.intact());
}

#[test]
fn a_recovery_continues_the_numbers_and_the_epoch() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    checker.answered(0, Answer { epoch: "a", offset: 12, recovered: true });
    let counts = deliver(&mut checker, &[2, 3]);
    assert_eq!(counts, Counts { received: 4, recoveries: 1, ..Counts::default() });
    // The same with one missing: recovered:true was a lie.
    checker.answered(0, Answer { epoch: "a", offset: 14, recovered: true });
    let counts = deliver(&mut checker, &[5]);
    assert_eq!((counts.lost, counts.wrong_offsets), (1, 1));
    checker.answered(0, Answer { epoch: "b", offset: 16, recovered: true });
    assert_eq!(checker.counts().wrong_epochs, 1);
}

#[test]
fn the_end_counts_what_is_missing_there() {
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    let (counts, _) = checker.finish(&[5], &[]);
    assert_eq!((counts.lost, counts.missing_at_end), (3, 3));
    let mut checker = subscribed();
    deliver(&mut checker, &[0, 1]);
    checker.answered(0, Answer { epoch: "b", offset: 9, recovered: false });
    let (counts, _) = checker.finish(&[5], &[]);
    assert_eq!((counts.lost, counts.announced), (0, 3));
}

#[test]
fn a_delivery_before_the_answer_is_foreign() {
    let mut checker = PositionChecker::new(LAYOUT, 0, 1);
    assert!(!checker.take(0, 0, 1));
    assert_eq!(checker.counts().foreign, 1);
    assert!(!checker.counts().never_silent());
}

/// Two workers with one subscriber each; number 1 was never confirmed to its writer.
fn unconfirmed(seen: [&[u32]; 2], written: u32) -> Counts {
    let (mut all, mut parts) = (Counts::default(), Vec::new());
    for (worker, numbers) in seen.iter().enumerate() {
        let mut checker = PositionChecker::new(LAYOUT, worker as u64, 1);
        checker.answered(0, Answer { epoch: "a", offset: 0, recovered: false });
        for (offset, &number) in (1..).zip(*numbers) {
            checker.take(0, number, offset);
        }
        let (counts, tallies) = checker.finish(&[written], &[(0, 1)]);
        all.add(&counts);
        parts.extend(tallies);
    }
    discount(&mut all, LAYOUT, 2, parts.into_iter());
    all
}

#[test]
fn a_number_that_nobody_saw_was_not_published_but_one_that_somebody_saw_is_lost_for_the_others() {
    let counts = unconfirmed([&[0, 2], &[0, 2]], 3);
    assert_eq!((counts.lost, counts.unpublished), (0, 1));
    let counts = unconfirmed([&[0, 1, 2], &[0, 2]], 3);
    assert_eq!((counts.lost, counts.unpublished), (1, 0));
    let counts = unconfirmed([&[0, 1, 2], &[0, 1, 2]], 3);
    assert_eq!((counts.lost, counts.unpublished), (0, 0));
    // The last of all, and a confirmed one that is missing beside it.
    let counts = unconfirmed([&[0], &[0]], 2);
    assert_eq!((counts.lost, counts.missing_at_end, counts.unpublished), (0, 0, 1));
    let counts = unconfirmed([&[0], &[0]], 3);
    assert_eq!((counts.lost, counts.missing_at_end, counts.unpublished), (2, 2, 1));
}

#[test]
fn a_late_number_of_a_writer_that_did_not_wait_is_not_the_servers_disorder() {
    let counts = unconfirmed([&[0, 2, 1], &[0, 2, 1]], 3);
    assert_eq!((counts.lost, counts.disordered, counts.late_unconfirmed), (0, 0, 2));
}

/// Faults thrown into a long run at random are counted exactly, whatever their order.
#[test]
fn random_faults_are_counted_exactly() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.subsec_nanos());
    eprintln!("seed {seed}");
    let mut random = crate::fleet::reconnect::Random::new(u64::from(seed));
    let mut checker = subscribed();
    let (mut wanted, mut number, mut offset) = (Counts::default(), 0u32, 10u64);
    for _ in 0..20_000 {
        match random.below(50) {
            0 => {
                let hole = 1 + random.below(3) as u32;
                (number, offset) = (number + hole, offset + u64::from(hole));
                wanted.lost += u64::from(hole);
                wanted.wrong_offsets += 1;
            }
            1 if number > 0 => {
                assert!(!checker.take(0, number - 1, offset));
                wanted.duplicates += 1;
                wanted.wrong_offsets += 1;
                continue;
            }
            2 => {
                // The next two, swapped.
                checker.take(0, number + 1, offset + 2);
                checker.take(0, number, offset + 1);
                (number, offset) = (number + 2, offset + 2);
                wanted.received += 2;
                wanted.disordered += 1;
                wanted.wrong_offsets += 2;
                continue;
            }
            3 => {
                let gap = random.below(4) as u32;
                offset = random.below(100);
                checker.answered(0, Answer { epoch: &format!("e{number}"), offset, recovered: false });
                number += gap;
                wanted.announced += u64::from(gap);
                wanted.unrecovered += 1;
                wanted.unrecovered_needlessly += u64::from(gap == 0);
            }
            _ => {}
        }
        offset += 1;
        assert!(checker.take(0, number, offset), "seed {seed}");
        wanted.received += 1;
        number += 1;
    }
    assert_eq!(checker.counts(), wanted, "seed {seed}");
}

#[test]
fn a_number_that_nobody_confirmed_may_come_again_behind_an_announcement_and_only_there() {
    for (announced, unconfirmed, expected) in
        [(true, &[(0, 1)][..], (0, 1)), (true, &[], (1, 0)), (false, &[(0, 1)], (1, 0))]
    {
        let mut checker = subscribed();
        deliver(&mut checker, &[0, 1]);
        if announced {
            checker.answered(0, Answer { epoch: "b", offset: 1, recovered: false });
        }
        deliver(&mut checker, &[2, 1]);
        assert!(checker.examples()[0].contains("number 1 again"), "{:?}", checker.examples());
        let (counts, _) = checker.finish(&[3], unconfirmed);
        assert_eq!((counts.duplicates, counts.announced_repeats), expected, "{announced} {unconfirmed:?}");
    }
}
